"""``peftport assess``: from a folder and data to an answer."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from transformers import AutoModelForCausalLM, BertModel

import peftport
from peftport.assessing import Settings
from peftport.assessing.bench import Bench
from peftport.assessing.data import labelled
from peftport.assessing.language import as_language_model
from peftport.cli.main import run
from peftport.data.datasets import load_dataset
from peftport.data.tasks import Task, encode
from peftport.errors import InputError
from peftport.formats import save_module
from peftport.hosts.load import load_host
from peftport.methods.base import Module, config_from_json
from peftport.methods.scores import class_scores
from peftport.testing.pico import pico_bert, pico_llama, pico_reviews
from peftport.train.reference import TrainSpec, fresh_module, train

SMALL = (
    "--budgets 0,10 --seeds 3 --native-steps 100 --accept 0.6 --rates 0.01 --head-rates 0.01 "
    "--test 120"
)
QUICK = Settings(
    budgets=(0, 4), seeds=3, native_steps=6, rates=(1e-2,), head_rates=(1e-2,), test=60
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two near hosts, data, and a lora that knows its task."""
    root = tmp_path_factory.mktemp("assess")
    pico_bert(root / "old")
    model = BertModel.from_pretrained(root / "old")
    pico_bert(root / "new")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(root / "new")
    rows = [(text, ("bad", "good")[label]) for text, label in pico_reviews(900)]
    with (root / "d.csv").open("w") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    args = f"train lora --host {root}/old --data {root}/d.csv -o {root}/lora --lr 0.01 --set r=4 -q"
    assert run(args.split()) == 0
    return root


def test_a_module_that_knows_its_task_works(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        f"assess {place}/lora --target {place}/new --data {place}/d.csv -o {tmp_path}/out {SMALL}"
    )
    assert run(line.split()) == 0
    out = capsys.readouterr().out
    assert out.startswith("works as it is: recovery")
    assert "Thresholds: works: recovery's interval above 0.6" in out
    facts = json.loads((tmp_path / "out/assessment.json").read_text())
    assert facts["judgement"]["answer"] == "works" and facts["data"]["test"] == 120
    assert any("source-train split is left out" in note for note in facts["data"]["notes"])
    assert set(facts["rates"]) == {"ported", "sampled", "scratch", "native"}
    with np.load(tmp_path / "out/scores.npz") as scores:
        hits = scores["ported_0"].argmax(-1) == scores["labels"]  # [S, N]
        assert (scores["ported_0"] == scores["ported_0"][0]).all(), "nothing was trained yet"
        assert scores["native"].shape == (3, 120, 2) and not np.allclose(*scores["scratch_10"][:2])
    assert facts["metrics"]["ported"]["0"]["accuracy"] == pytest.approx(hits.mean())
    assert run(line.split()) == 2, "the folder is in use"


def test_the_slots_are_what_the_reference_trainer_makes_alone(place: Path) -> None:
    """Every init starts, trains and is measured as it would be by itself."""
    found = peftport.assess(
        place / "lora", str(place / "new"), str(place / "d.csv"), settings=QUICK
    )
    host = load_host(str(place / "new"))
    data, task = found.data, found.prepared.task
    texts, held = (encode(host.tokenizer, p.texts, task) for p in (data.train, data.test))
    for init, start in (
        ("ported", found.module),
        ("scratch", fresh_module(host, found.module.config, 2)),
    ):
        spec = TrainSpec(steps=4, lr=1e-2, head_lr=1e-2, seed=2)
        ((_, module),) = train(host, start, texts, data.train.labels, spec)
        logits = getattr(found.measured if init == "ported" else found.controls, init)[4][2]
        np.testing.assert_allclose(logits, class_scores(host, module, held), atol=1e-3)


def test_rates_are_chosen_without_the_test_texts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates follow the validation texts: with other test labels they stay."""
    args: tuple[Any, ...] = (place / "lora", str(place / "new"), str(place / "d.csv"))
    wide = replace(QUICK, rates=(1e-3, 1e-2), native_steps=0)
    first = peftport.assess(*args, settings=wide)
    real = labelled

    def flipped(*given: Any) -> Any:
        data = real(*given)
        return replace(data, test=replace(data.test, labels=tuple(1 - x for x in data.test.labels)))

    monkeypatch.setattr("peftport.assessing.run.labelled", flipped)
    second = peftport.assess(*args, settings=wide)
    assert second.measured.rates == first.measured.rates
    assert second.controls.rates == first.controls.rates
    assert second.judgement.rows[0].scores != first.judgement.rows[0].scores


def test_classes_go_by_name_then_by_the_map(place: Path) -> None:
    data = load_dataset(str(place / "d.csv"))
    known = Module(
        config_from_json({"method": "lora"}), {}, {}, "", "", {"classes": ["good", "bad"]}
    )
    by_name = labelled(data, known, 2, QUICK)
    assert by_name.classes == ("good", "bad")
    mapped = labelled(data, known, 2, QUICK, {"bad": "good", "good": 1})
    assert mapped.classes == ("bad", "good")
    assert by_name.test.labels == tuple(1 - label for label in mapped.test.labels)
    for labels, words in (
        ({"bad": 0}, "no entry for class 'good'"),
        ({"bad": 0, "good": 0}, "two classes"),
        ({"bad": 0, "good": 7}, r"expected 0\.\.1 or good, bad"),
        ({"bda": 0, "good": 1}, "did you mean 'bad'"),
    ):
        with pytest.raises(InputError, match=words):
            labelled(data, known, 2, QUICK, labels)
    with pytest.raises(InputError, match="has 2 classes"):
        labelled(data, replace(known, notes={}), 3, QUICK)


def test_texts_are_not_chosen_by_where_they_stand(place: Path, tmp_path: Path) -> None:
    """A file sorted by class, of which a part is used, still has both."""
    lines = (place / "d.csv").read_text().splitlines()
    rows = sorted(lines[1:], key=lambda line: line.rpartition(",")[2])
    (tmp_path / "sorted.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    host = load_host(str(place / "new"))
    module = fresh_module(host, config_from_json({"method": "lora"}), 0)
    few = replace(QUICK, train=40, validation=20, test=30)
    one, two = (
        labelled(load_dataset(str(path)), module, 2, few)
        for path in (place / "d.csv", tmp_path / "sorted.csv")
    )
    for part in ("train", "validation", "test"):
        assert set(getattr(two, part).labels) == {0, 1}
        assert getattr(two, part) == getattr(one, part)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--seeds 2", "seeds must be >= 3"),
        ("--budgets 10,30", "budgets must begin with 0"),
        ("--budgets 0,ten", "expected numbers like"),
        ("--label good", "DATA=ADAPTER"),
        ("--sampled gausian", "did you mean 'gaussian'"),
        ("--lm", "decoder-only host"),
        ("--accept 0", "accept must lie"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    place: Path, tmp_path: Path, more: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"assess {place}/lora --target {place}/new --data {place}/d.csv -o {tmp_path}/out {more}"
    assert run(line.split()) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


# Without labels ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decoder")
    pico_llama(root / "old")
    pico_llama(root / "new", 0)
    host = load_host(str(root / "old"))
    module = fresh_module(host, config_from_json({"method": "lora", "r": 2}), 0)
    save_module(module, root / "lora", spec=host.spec)
    (root / "t.txt").write_text("\n".join(text for text, _ in pico_reviews(300)) + "\n")
    return root


def test_losses_are_those_of_transformers(decoder: Path) -> None:
    host = as_language_model(load_host(str(decoder / "old")))
    texts = encode(host.tokenizer, ["the film is good", "a bad plot was very long"], Task())
    found = class_scores(host, None, texts)  # [N, 2]
    model = AutoModelForCausalLM.from_pretrained(decoder / "old").eval()
    for ids, (loss, count) in zip(texts.ids, found, strict=True):
        row = torch.tensor([ids])
        with torch.no_grad():
            logits = model(row).logits
        expected = F.cross_entropy(logits[0, :-1], row[0, 1:], reduction="sum")
        assert loss == pytest.approx(float(expected), rel=1e-4) and count == len(ids) - 1


def test_an_adapter_without_labels_gets_loss_and_perplexity(decoder: Path) -> None:
    tiny = Settings(
        budgets=(0, 6), seeds=3, native_steps=12, rates=(3e-2,), head_rates=(1e-2,), test=40,
        train=80, validation=10,
    )  # fmt: skip
    found = peftport.assess(
        decoder / "lora", str(decoder / "new"), str(decoder / "t.txt"),
        language_model=True, settings=tiny,
    )  # fmt: skip
    metrics = found.facts()["metrics"]
    assert metrics["native"]["12"]["loss"] < metrics["ported"]["0"]["loss"] - 0.3
    assert metrics["native"]["12"]["perplexity"] < metrics["ported"]["0"]["perplexity"]
    row = found.judgement.rows[0]
    assert row.scores["ported"].point == pytest.approx(found.judgement.floor, abs=1e-5)
    assert row.recovery is not None and abs(row.recovery.point) < 0.01, "a fresh lora is nothing"
    assert found.score == "minus loss of a token"


def test_every_bank_holds_like_modules_and_no_more_than_asked(place: Path) -> None:
    host = load_host(str(place / "new"))
    config = config_from_json({"method": "lora"})
    modules = {name: fresh_module(host, config, seed) for seed, name in enumerate("ab")}
    data = labelled(load_dataset(str(place / "d.csv")), modules["a"], 2, QUICK)
    bench = Bench(host, data, Task(), replace(QUICK, bank=4))
    runs = bench._runs(modules, [(n, i) for n in "ab" for i in ("ported", "sampled")], {})
    sizes = [len(rows) for rows in bench._banks(runs)]
    assert sum(sizes) == 12 and sizes == [4, 4, 4]


def test_the_readme_of_an_assessment_is_markdown(place: Path, tmp_path: Path) -> None:
    found = peftport.assess(
        place / "lora", str(place / "new"), str(place / "d.csv"), tmp_path / "o", settings=QUICK
    )
    text = (tmp_path / "o/README.md").read_text()
    assert text.count("\n| ") == 2 + len(QUICK.budgets) and found.judgement.short in text
    assert yaml.safe_load((tmp_path / "o/assessment.json").read_text())["format"] == "peft"
