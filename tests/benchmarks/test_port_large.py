"""benchmarks/port_large.py runs at a small shape. No test looks at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["--layers", "2", "--width", "64", "--vocabulary", "100", "--directions", "8"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module("port_large")


@pytest.mark.parametrize("strategy", ["subspace", "embedding", "heads"])
def test_small_hosts_are_ported_in_a_process_of_their_own(
    benchmark: Any, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, work = tmp_path / "new" / "out.json", tmp_path / "work"
    work.mkdir()
    if strategy == "heads":  # needs k and o too, which are not written
        with pytest.raises(SystemExit, match=r"no weight 'layers.0.self_attn.k_proj.weight'"):
            benchmark.main([*SMALL, "--strategy", strategy, "--work", str(work)])
    else:
        given = [*SMALL, "--strategy", strategy, "--work", str(work), "--json", str(file)]
        assert benchmark.main(given) == 0
        found = json.loads(file.read_text())
        assert found["sites"] == 4 and found["settings"]["width"] == 64
        assert found["norm_kept"] > 0 and 0 < found["s_per_layer"] < found["port_s"]
        assert 0.1 < found["peak_gb_inspect"] <= found["peak_gb"] < 4
        assert found["target_gb"] < found["source_gb"] < 1e-3
    assert not list(work.iterdir())


def test_a_peak_above_the_limit_is_an_error(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main([*SMALL, "--limit-gb", "0.01", "--work", str(tmp_path)]) == 1
    assert "peak above 0.01 GB" in capsys.readouterr().err
