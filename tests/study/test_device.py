"""A study in another dtype and on another device: recorded, part of the key, kept on resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftport.study.store import Store
from peftport.testing.pico import pico_t5
from peftport.train.sizing import MOST, extrapolated

STUDY = """
name: pico-words
hosts: [one, two]
pairs: [[one, two]]
task: {template: "sentiment: {text}", verbalisers: [negative, positive]}
data: {target: reviews.csv, test: 40}
methods: {lora: {r: 2}, prefix: {}, bottleneck: {}, compacter: {reduction: 4}}
source: {steps: 4, batch: 8, seeds: [0]}
target: {budgets: [0, 4], batch: 8}
seeds: [1]
strategy: {same-shape: ridge, texts: 32}
extras: {native: {seeds: [1]}}
rates:
  provenance: none
  table: {lora: {any: {any: {lr: 1e-3}}}, prefix: {any: {any: {lr: 1e-2}}},
          bottleneck: {any: {any: {lr: 1e-3}}}, compacter: {any: {any: {lr: 1e-3}}}}
"""


@pytest.fixture(scope="module")
def study(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    pico_t5(folder / "one", 0)
    pico_t5(folder / "two", 1)
    (folder / "reviews.csv").write_bytes((pico / "reviews.csv").read_bytes())
    (folder / "words.yaml").write_text(STUDY)
    return folder / "words.yaml"


def scores(folder: Path) -> Any:
    with Store.read(folder) as store:
        frame = store.frame()
        keys = set(store.states())
    frame = frame[frame["metric"] == "auc"].set_index(["method", "init", "target", "budget"])
    return frame["value"].sort_index(), keys


def test_bfloat16_has_keys_of_its_own_and_is_kept(
    study: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    exact, narrow = tmp_path / "exact", tmp_path / "narrow"
    assert cli("run", study, "--store", exact, "--bank", 8, "-q").code == 0
    first = cli("run", study, "--store", narrow, "--bank", 8, "--dtype", "bfloat16",
                "--limit", 4, "-q")  # fmt: skip
    assert first.code == 0, first.err
    assert cli("run", study, "--store", narrow, "-q").code == 0  # the dtype is the store's
    with Store.read(narrow) as store:
        assert store.environment["dtype"] == "bfloat16"
        assert store.environment["device"] == "cpu"
        assert store.status()["missing"] == store.status()["failed"] == 0
        key = next(iter(store.states()))
        assert store.ingredients(key)["dtype"] == "bfloat16"
    (one, mine), (two, others) = scores(exact), scores(narrow)
    assert not mine & others
    assert (one - two).abs().mean() < 0.03
    assert (one - two).abs().max() > 0
    other = cli("run", study, "--store", narrow, "--dtype", "float32", "-q")
    assert (other.code, "made with --dtype bfloat16" in other.err) == (2, True)


def test_float32_on_a_cpu_keeps_its_keys(study: Path, tmp_path: Path, cli: Any) -> None:
    assert cli("run", study, "--store", tmp_path / "s", "--limit", 1, "-q").code == 0
    with Store.read(tmp_path / "s") as store:
        facts = store.ingredients(next(iter(store.states())))
        assert store.environment["device"] == "cpu"
    assert "dtype" not in facts
    assert facts["numerics"] == 2


def test_no_cuda_is_one_line(
    study: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answer = cli("run", study, "--store", tmp_path / "s", "--device", "cuda")
    assert answer.code == 2
    assert answer.err.strip().endswith("device 'cuda' is not to be had here; use 'cpu' or 'auto'")
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_study_on_cuda_is_the_cpus(
    study: Path, tmp_path: Path, cli: Callable[..., Any], dtype: str
) -> None:
    assert cli("run", study, "--store", tmp_path / "cpu", "--bank", 8, "-q").code == 0
    for name in ("one", "two"):
        done = cli("run", study, "--store", tmp_path / name, "--device", "cuda", "--dtype", dtype,
                   "-q")  # fmt: skip
        assert done.code == 0, done.err
    with Store.read(tmp_path / "one") as store:
        assert store.environment["device"] == "cuda"
        assert 1 <= store.environment["bank"] <= MOST
    here, one, two = (scores(tmp_path / name)[0] for name in ("cpu", "one", "two"))
    assert one.equals(two)
    assert (here - one).abs().mean() < (0.002 if dtype == "float32" else 0.03)


@pytest.mark.parametrize(("memory", "expected"), [(10_000, 8), (100, 1), (10**9, MOST), (2_000, 1)])
def test_the_bank_that_fits_follows_from_two_sizes(memory: int, expected: int) -> None:
    """A bank of K takes 500 + 1000 K."""
    assert extrapolated(memory, lambda size: 500 + 1000 * size) == expected
