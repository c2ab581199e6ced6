"""The benchmarks for a GPU run on a CPU too, and their sides do the same work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = "--shape small --device cpu --steps 4 --rounds 1 --tokens 12 --batch 4 --lr 1e-2".split()


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module("gpu_bank_vs_peft")


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_all_sides_end_at_the_same_loss(
    benchmark: Any, dtype: str, gap: float, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "out.json"
    methods = ["--method", "lora", "--method", "prefix"]
    given = [*SMALL, *methods, "--banks", "1,2", "--dtype", dtype, "--json", str(file)]
    assert benchmark.main(given) == 0
    found = json.loads(file.read_text())
    assert {"device", "versions"} <= set(found["about"])
    for own in found["results"]["small"].values():
        sides = {"trainer", "loop", "bank 1", "bank 2"}
        assert set(own["ms_per_step"]) == set(own["loss"]) == sides
        assert set(own["ratio"]["bank 2"]) == {"trainer", "loop"}
        assert own["loss_moved"] > 1e-3
        assert max(own["loss_gap"].values()) < gap * own["loss_moved"]
        assert own["loss"]["trainer"][0] > 0.1  # not so easy that every side ends at nothing


def test_a_side_that_does_other_work_is_noticed(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark.Theirs, "by_loop", lambda self, slot: 1.0)
    given = [*SMALL, "--banks", "1", "--dtype", "float32"]
    monkeypatch.setattr(benchmark.Theirs, "held_loss", lambda self: 1.0)
    assert benchmark.main(given) == 1
    assert "DISAGREE" in capsys.readouterr().out


def test_the_probe_writes_what_a_plan_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    probe = import_module("device_probe")
    file = tmp_path / "device.json"
    given = "--device cpu --dtype float32 --shape small --banks 1 2 --steps 2 --size 64".split()
    assert probe.main([*given, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["kind"] == "cpu"
    assert set(found["matmul_flops"]) == {"float32", "bfloat16"}
    assert [own["bank"] for own in found["banks"]] == [1, 2]
    assert all(own["flop_per_s"] > 0 and own["step_s"] > 0 for own in found["banks"])
