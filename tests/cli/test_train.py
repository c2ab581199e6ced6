"""``peftport train``: from a csv and a pico host to a folder that its library reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peftport import load_module
from peftport.cli.main import run
from peftport.testing.pico import pico_bert, pico_distilbert, pico_reviews, pico_t5


def write_reviews(path: Path, text: str = "text", label: str = "label") -> Path:
    rows = [f"{words},{'pos' if good else 'neg'}" for words, good in pico_reviews(400)]
    path.write_text("\n".join([f"{text},{label}", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    pico_bert(folder / "bert")
    pico_t5(folder / "t5")
    write_reviews(folder / "reviews.csv")
    return folder


def train(place: Path, output: Path, method: str, *more: str, host: str = "bert") -> int:
    return run(
        ["train", method, "--host", str(place / host), "--data", str(place / "reviews.csv"),
         "-o", str(output), *more]
    )  # fmt: skip


def test_a_trained_module_beats_its_host_and_says_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "lora"
    assert (
        train(place, out, "lora", "--steps", "150", "--lr", "1e-2", "--set", "r=4", "--json") == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert facts["scores"]["balanced_accuracy"] > 0.9
    assert facts["host_alone"]["balanced_accuracy"] == 0.5
    assert facts["training"]["steps"] == 150
    assert facts["method"]["r"] == 4
    card = (out / "README.md").read_text()
    assert f"{facts['scores']['balanced_accuracy']:.3f}" in card
    assert facts["host"]["fingerprint"][:16] in card
    assert [p.name for p in tmp_path.glob("made/.*")] == []


def test_what_was_saved_is_what_was_measured(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peftport.data.datasets import load_dataset
    from peftport.data.tasks import Task, encode
    from peftport.hosts.load import load_host
    from peftport.train.evaluate import class_scores
    from peftport.train.metrics import metrics

    out = tmp_path / "bottleneck"
    assert train(place, out, "bottleneck", "--steps", "30", "--lr", "1e-2", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    test = load_dataset(str(place / "reviews.csv")).split("test")
    host = load_host(str(place / "bert"))
    encoded = encode(host.tokenizer, [e.text for e in test], Task())
    scores = class_scores(host, load_module(out), encoded)
    again = metrics(scores, np.array([e.label for e in test]))
    assert again == pytest.approx(facts["scores"], abs=1e-6)


def test_the_same_seed_gives_the_same_module(place: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert train(place, tmp_path / name, "lora", "--steps", "5", "-q") == 0
    assert train(place, tmp_path / "c", "lora", "--steps", "5", "--seed", "1", "-q") == 0
    a, b, c = (load_module(tmp_path / name).digest for name in "abc")
    assert a == b
    assert a != c


def test_a_t5_host_answers_with_the_words_of_the_task(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "task.yaml"
    task.write_text("template: 'sentiment : {text}'\nverbalisers: [bad, good]\nmax_tokens: 32\n")
    out = tmp_path / "prefix"
    code = train(
        place, out, "prefix", "--steps", "4", "--task", str(task), "--set", "length=3", "--json",
        host="t5",
    )  # fmt: skip
    assert code == 0
    facts: Any = json.loads(capsys.readouterr().out)
    assert facts["task"]["verbalisers"] == ["bad", "good"]
    assert facts["host"]["head"] == ""
    assert load_module(out).config.to_json()["length"] == 3


def test_columns_and_an_empty_folder(place: Path, tmp_path: Path) -> None:
    data = write_reviews(tmp_path / "other.csv", "body", "stars")
    out = tmp_path / "out"
    out.mkdir()
    code = run(
        ["train", "lora", "--host", str(place / "bert"), "--data", str(data), "-o", str(out),
         "--text-column", "body", "--label-column", "stars", "--steps", "1", "-q"]
    )  # fmt: skip
    assert code == 0
    assert (out / "README.md").is_file()


def test_divergence_is_a_failed_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(place, tmp_path / "out", "lora", "--lr", "1e30", "--steps", "40") == 1
    assert "diverged at step" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scores_that_are_none_are_a_failed_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last step was still finite, what it led to is not."""
    assert train(place, tmp_path / "out", "lora", "--lr", "1e30", "--steps", "1") == 1
    assert "its scores after 1 steps are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused_before_the_host_is_loaded(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftport.hosts.load.load_host", lambda *_, **__: pytest.fail("loaded"))
    for method, setting in (("prefix", "length=33"), ("lora", "roles=[gate]"), ("lora", "r=99999")):
        assert train(place, tmp_path / "out", method, "--set", setting) == 2


def test_a_text_and_a_prefix_must_have_places(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "task.yaml"
    for tokens, length, code in ((96, 1, 2), (97, 0, 2), (64, 33, 2), (64, 32, 0)):
        task.write_text(f"max_tokens: {tokens}\n")
        method = ["prefix", "--set", f"length={length}"] if length else ["lora"]
        out = tmp_path / f"out{tokens}-{length}"
        assert train(place, out, *method, "--task", str(task), "--steps", "1") == code
        told = capsys.readouterr().err
        assert ("96 tokens" in told and "max_tokens" in told) is (code == 2)
        assert out.exists() is (code == 0)


@pytest.mark.parametrize("host", ["bert", "t5"])
def test_a_bfloat16_host_trains_a_float32_module(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    common = ["--steps", "100", "--lr", "1e-2", "--json"]
    if host == "t5":
        common += ["--verbaliser", "bad", "--verbaliser", "good"]
    facts = {}
    for dtype in ("float32", "bfloat16"):
        more = ["--device", "cpu", "--dtype", dtype, *common]
        assert train(place, tmp_path / dtype, "lora", *more, host=host) == 0
        facts[dtype] = json.loads(capsys.readouterr().out)
        assert (facts[dtype]["host"]["dtype"], facts[dtype]["host"]["device"]) == (dtype, "cpu")
        assert f"weights were in {dtype} on cpu" in (tmp_path / dtype / "README.md").read_text()
    wide, narrow = (load_module(tmp_path / dtype) for dtype in facts)
    assert {tensor.dtype for _, tensor in narrow.tensors()} == {torch.float32}
    # float32 in what it holds too: bfloat16 could not tell these numbers apart
    assert any((t != t.bfloat16().float()).any() for _, t in narrow.tensors())
    assert narrow.digest != wide.digest
    one, two = (found["scores"]["auc"] for found in facts.values())
    assert one > 0.9
    assert abs(one - two) < 0.1 * (one - 0.5)  # a tenth of what training changed; 0.04 measured
    assert narrow.fingerprint == wide.fingerprint


def test_without_cuda_it_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train(place, tmp_path / "out", "lora", "--device", "cuda") == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("device 'cuda' is not to be had here; use 'cpu' or 'auto'")
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_host_that_trains_in_float32_only_is_one_line(
    tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pico_distilbert(tmp_path / "d")
    host = str(tmp_path / "d")
    assert train(place, tmp_path / "out", "lora", "--dtype", "bfloat16", host=host) == 2
    said = capsys.readouterr().err
    assert "trained on it in float32 only; leave --dtype bfloat16 out" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_cuda_it_is_the_cpus(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    auc = []
    for name, device in (("cpu", "cpu"), ("one", "cuda"), ("two", "auto")):
        more = ["--device", device, "--dtype", dtype, "--steps", "100", "--lr", "1e-2", "--json"]
        assert train(place, tmp_path / name, "lora", *more) == 0
        auc.append(json.loads(capsys.readouterr().out)["scores"]["auc"])
    assert load_module(tmp_path / "one").digest == load_module(tmp_path / "two").digest
    assert abs(auc[0] - auc[1]) < (0.002 if dtype == "float32" else 0.03)
