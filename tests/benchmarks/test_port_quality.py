"""The benchmark of strategies, on pico hosts: it proves the code and no claim."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from peftport.data.datasets import load_dataset
from peftport.data.splits import hash_unit
from peftport.testing.pico import pico_bert

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "port_quality.py"


def run(*args: object) -> str:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quality")
    config = yaml.safe_load(SCRIPT.with_suffix(".yaml").read_text())
    source = str(pico_bert(root / "a", 0))
    target = str(pico_bert(root / "b", 1, d_model=48, layers=3))
    data = {"dataset": "rotten-tomatoes", "test": 45, "validation": 30}
    own = {"data": {**data, "test": 40}}  # a pair's settings win over the others'
    config |= {
        "confirm": {"pico": {"source": source, "target": target, "settings": own}},
        "data": data,
        "texts": 40,
        "seeds": {"lora": [0, 1]},
        "source": {"steps": 3, "batch": 4, "head-rate": 1e-2},
        "target": {"budgets": [0, 2], "batch": 4},
        "scratch": {"rates": [1e-3, 1e-2], "head-rates": [1e-2], "seed": 100},
        "strategies": ["copy", "pad", "ridge", "effect", "distil"],
        "choose": {
            "pairs": [{"source": source, "target": target}],
            "seeds": [5],
            "sentences": 25,
            "strategies": ["pad"],
            "starts": ["distil start=effect", "distil start=silent"],
        },
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    run("run", "--config", root / "config.yaml", "--rows", root / "rows.jsonl")
    run("table", "--config", root / "config.yaml", "--rows", root / "rows.jsonl", "-o", root / "o")
    return root


def test_every_init_is_measured_at_every_budget(done: Path):
    rows = rows_of(done / "rows.jsonl")
    inits = {"pad", "ridge", "effect", "distil", "scratch", "ridge head alone", "effect head alone"}
    found = {(r["init"], r["budget"], r["seed"]) for r in rows}
    assert found == {(i, b, s) for i in inits for b in (0, 2) for s in (0, 1)} | {
        (init, 3, s) for init in ("native", "source") for s in (0, 1)
    }
    assert all(len(r["predicted"]) == len(r["labels"]) == 40 for r in rows)


def test_the_table_says_what_the_rows_say(done: Path):
    rows = rows_of(done / "rows.jsonl")
    with (done / "o" / "quality.csv").open() as file:
        table = {(r["init"], int(r["budget"])): r for r in csv.DictReader(file)}
    for (init, budget), row in table.items():
        own = [r["balanced_accuracy"] for r in rows if (r["init"], r["budget"]) == (init, budget)]
        assert float(row["balanced_accuracy"]) == pytest.approx(np.mean(own), abs=1e-4)
    one = table["effect", 0]
    gap = float(one["balanced_accuracy"]) - float(table["pad", 0]["balanced_accuracy"])
    assert float(one["vs_pad"]) == pytest.approx(gap, abs=2e-4)
    assert float(one["vs_pad_low"]) <= gap <= float(one["vs_pad_high"])
    own = float(one["balanced_accuracy"]) - float(table["source", 3]["balanced_accuracy"])
    assert float(one["vs_source"]) == pytest.approx(own, abs=2e-4)
    text = (done / "o" / "quality.md").read_text()
    assert "| effect |" in text and "native, 150" not in text


def test_what_is_there_is_not_done_again(done: Path):
    before = (done / "rows.jsonl").read_bytes()
    assert run("run", "--config", done / "config.yaml", "--rows", done / "rows.jsonl") == ""
    assert (done / "rows.jsonl").read_bytes() == before


def test_choosing_has_seeds_strategies_and_sentences_of_its_own(done: Path):
    run("choose", "--config", done / "config.yaml", "--rows", done / "choose.jsonl")
    rows = rows_of(done / "choose.jsonl")
    assert {r["seed"] for r in rows} == {5}
    inits = {r["init"] for r in rows}
    assert {"pad", "native", "scratch", "distil start=effect", "distil start=silent"} <= inits
    assert not {"ridge", "effect", "distil"} & inits
    ordered = in_order("target-train")
    assert {r["labels"] for r in rows} == {"".join(str(e.label) for e in ordered[40:65])}


def test_single_strategies_and_their_settings_can_be_asked_for(done: Path):
    args = ["choose", "--config", done / "config.yaml", "--rows", done / "starts.jsonl"]
    starts = ["distil start=silent", "distil start=effect"]
    run(*args, "--strategies", *starts)
    every, some = rows_of(done / "choose.jsonl"), rows_of(done / "starts.jsonl")
    heads = {"ridge head alone", "effect head alone"}
    assert {r["init"] for r in some} == {"source", "native", "scratch", *starts, *heads}
    predicted = {(r["init"], r["budget"]): r["predicted"] for r in every}
    assert {(r["init"], r["budget"]): r["predicted"] for r in some}.items() <= predicted.items()
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args), "--strategies", "distill"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.startswith("error: unknown strategy 'distill'; known: distil start=effect")


def test_no_port_and_no_training_sees_the_sentences_that_choose(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from port_work import Data

    facts = {"dataset": "rotten-tomatoes", "test": 40, "validation": 30}
    plain, choosing = Data(facts, 40), Data({**facts, "choose": 25}, 40)
    chosen = {e.text for e in choosing.test}
    assert len(chosen) == 25 and not chosen & {e.text for e in plain.test}
    for used in (choosing.target, choosing.source, choosing.validation):
        assert not chosen & {e.text for e in used}
    assert choosing.unlabelled == plain.unlabelled and not chosen & set(choosing.unlabelled)
    assert len(choosing.target) == len(plain.target) - 25


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def in_order(part: str) -> list[Any]:
    found = load_dataset("rotten-tomatoes").split(part)
    return sorted(found, key=lambda e: (hash_unit(e.text), e.text))
