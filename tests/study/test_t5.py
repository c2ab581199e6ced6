"""The same commands on a host that answers with a word, trained until something can be ported."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from peftport.cli.main import run
from peftport.study.store import Store
from peftport.testing.pico import pico_reviews, pico_t5

STUDY = """
name: pico-t5
hosts: [a, a-tuned, deep]
pairs: [[a, a-tuned], [a, deep]]
task: {template: "sentiment: {text}", verbalisers: [negative, positive]}
data: {target: reviews.csv, test: 80}
methods: {lora: {}}
source: {steps: 60, batch: 16, seeds: [0]}
target: {budgets: [0, 3], batch: 16}
seeds: [1]
strategy: {texts: 32}
extras: {native: {seeds: [0]}, ablations: {seeds: [1]}}
rates: {provenance: none, table: {lora: {any: {any: {lr: 1e-2}}}}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    pico_t5(folder / "a", 0)
    pico_t5(folder / "a-tuned", 0)
    pico_t5(folder / "deep", 1, layers=3)
    file = folder / "a-tuned" / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    weights = safetensors.torch.load_file(file)
    for tensor in weights.values():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor += 0.05 * tensor.std(correction=0) * noise
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    with (folder / "reviews.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("text", "label"), *pico_reviews(800)])
    (folder / "t5.yaml").write_text(STUDY)
    command = ["study", "run", str(folder / "t5.yaml"), "--store", str(folder / "s"), "-q"]
    assert run(command) == 0
    return folder / "s"


@pytest.fixture(scope="module")
def scores(store: Path) -> pd.Series:
    """Balanced accuracy by (kind, target, init, budget)."""
    with Store.read(store) as opened:
        frame = opened.frame()
    frame = frame[frame["metric"] == "balanced_accuracy"]
    return frame.set_index(["kind", "target", "init", "budget"])["value"].sort_index()


def test_the_floor_is_the_host_alone(store: Path, scores: pd.Series) -> None:
    with Store.read(store) as opened:
        rows = opened.rows()
    floors = rows[rows["kind"] == "floor"]
    assert sorted(floors["target"]) == ["a-tuned", "deep"]
    assert set(floors["parameters"]) == {0}
    assert scores["floor", "a-tuned", "host", 0] < 0.7


def test_a_module_beats_its_host_and_keeps_it_where_it_is_ported(scores: pd.Series) -> None:
    assert scores["source", "a", "native", 60] > 0.85
    assert scores["native", "a-tuned", "native", 60] > 0.85
    ported = scores["grid", "a-tuned", "ported", 0]
    assert ported > scores["grid", "a-tuned", "scratch", 0] + 0.2
    assert ported > scores["grid", "a-tuned", "sampled", 0] + 0.1
    # at budget 0 a fresh lora does nothing at all
    assert scores["grid", "a-tuned", "scratch", 0] == scores["floor", "a-tuned", "host", 0]


def test_there_is_no_head_to_ablate(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.read(store) as opened:
        rows = opened.rows()
    assert not (rows["kind"] == "ablation").any()
    assert rows["head_lr"].isna().all()
    folder = store.parent
    assert run(["study", "run", str(folder / "t5.yaml"), "--dry-run"]) == 0
    assert "answers with a word and has no head" in capsys.readouterr().out


def test_a_module_of_the_study_is_a_peft_folder(store: Path, tmp_path: Path) -> None:
    with Store.read(store) as opened:
        rows = opened.rows()
    key = rows[(rows["init"] == "ported") & (rows["target"] == "deep")]["key"].iloc[0]
    assert run(["study", "module", str(store), key, "-o", str(tmp_path / "m"), "-q"]) == 0
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["peft_type"] == "LORA"
