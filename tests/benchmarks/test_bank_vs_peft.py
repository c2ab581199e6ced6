"""benchmarks/bank_vs_peft.py runs, and its sides do the same work. No test looks at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
METHODS = {"lora": True, "prefix": True, "bottleneck": False, "compacter": False}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module("bank_vs_peft")


@pytest.mark.parametrize("order", ["shuffled", "bucketed"])
def test_quick_writes_every_key_and_all_sides_end_at_the_same_loss(
    benchmark: Any, order: str, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "out.json"
    growth = [] if order == "shuffled" else ["--no-growth"]
    assert benchmark.main(["--quick", "--order", order, "--json", str(file), *growth]) == 0
    found = json.loads(file.read_text())
    for method, in_peft in METHODS.items():
        [(host, own)] = found[method].items()
        assert host == "pico"
        sides = {"reference", "loop", "trainer"} if in_peft else {"reference"}
        assert {f"ratio_{side}" for side in sides} <= set(own)
        assert {"peak_share", "ratio_eval_16", "ratio_eval_64", "final_loss"} <= set(own)
        assert set(own["tokens_per_s"]) == sides | {"bank"}
        assert set(own["loss_gap"]) == sides
        assert own["loss_moved"] > 1e-3
        assert max(own["loss_gap"].values()) < 1e-3 * own["loss_moved"]
        assert own["score_gap"] < 1e-4
        assert 0 < own["padding"] < 1
    assert {"processor", "cores", "threads", "peak_gflops", "kernel"} <= set(found["machine"])
    assert {"torch", "transformers", "peft", "peftport"} <= set(found["versions"])
    assert found["settings"]["order"] == order
    if growth:
        assert "scaling" not in found
    else:
        assert set(found["scaling"]["ms_by_bank"]) == {"1", "2"}
        assert set(found["scaling"]["seconds_by_runs"]) == {"3", "6"}
        assert found["scaling"]["peak_mib_by_runs"]["6"] > 50


def test_sides_that_read_other_batches_are_noticed(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_bucketed: Callable[[str], Any] = lambda order: nullcontext()  # noqa: E731
    monkeypatch.setattr(benchmark, "batches_in", keep_bucketed)
    assert benchmark.main(["--quick", "--no-growth", "--method", "lora"]) == 1
    assert "DISAGREE" in capsys.readouterr().out


def test_an_unknown_host_gets_one_line_and_code_2(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--host", "minilm-huge", "--no-growth", "--method", "lora"]) == 2
    assert "unknown host 'minilm-huge'" in capsys.readouterr().err


def test_shuffled_batches_use_every_text_equally_often(benchmark: Any) -> None:
    shuffled = import_module("bank_work").shuffled_batches
    batches = shuffled([5] * 10, 4, 5, seed=1)
    assert [len(b) for b in batches] == [4] * 5
    assert sorted(row for batch in batches for row in batch) == sorted([*range(10)] * 2)
    assert shuffled([5] * 10, 4, 3, seed=1) == batches[:3]
    assert shuffled([5] * 10, 4, 5, seed=2) != batches
