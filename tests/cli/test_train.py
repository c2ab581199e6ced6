"""``peftport train``: from a csv and a pico host to a folder that its library reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftport import load_module
from peftport.cli.main import run
from peftport.testing.pico import pico_bert, pico_reviews, pico_t5


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
