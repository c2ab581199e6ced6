"""Five figures of the report, computed again from the exported csv with plain pandas."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from peftport.report import html
from peftport.report.build import Report, build
from peftport.report.exported import read_export
from peftport.report.output import write_tables

ROOT = Path(__file__).parents[2]
EXPORT = ROOT / "docs" / "results" / "quick" / "export.csv"


@pytest.fixture(scope="module")
def report() -> Report:
    return build(read_export(EXPORT), draws=40)


def test_five_figures_from_twenty_lines_of_pandas(report: Report, tmp_path: Path) -> None:
    write_tables(report, tmp_path)
    told = {name: pd.read_csv(tmp_path / f"explored-{name}.csv") for name in
            ("curves", "effects", "heat", "saved")}  # fmt: skip
    told = {name: t[(t["metric"] == "balanced_accuracy") & (t["data"] == "all")]
            for name, t in told.items()}  # fmt: skip

    frame = pd.read_csv(EXPORT).query("metric == 'balanced_accuracy'")
    grid = frame[frame["kind"] == "grid"]
    # 1 learning curves
    curves = grid.groupby(["method", "init", "budget"])["value"].mean()
    # 2 differences, pairs pooled
    wide = grid.pivot_table("value", ["method", "source", "target", "seed", "budget"], "init")
    gain = wide["ported"] - wide["scratch"]
    effects = gain.groupby(["method", "budget"]).mean()
    # 3 recovery
    ported = wide["ported"].groupby(["method", "target", "budget"]).mean()
    home = frame[frame["kind"].isin(["native", "source"]) & (frame["data"] == "same")]
    native = home.groupby(["method", "target"])["value"].mean()
    top = native.reindex(ported.index.droplevel("budget")).to_numpy()
    recovery = (ported - 0.5) / (top - 0.5)
    # 4 differences of every host pair
    pairs = gain.groupby(["method", "source", "target", "budget"]).mean()
    # 5 steps saved: scratch's line from 0 to 10 steps reaches the score of ported at 0 steps
    start, end = (curves.xs((i, b), level=[1, 2]) for i, b in (("scratch", 0), ("scratch", 10)))
    goal = curves.xs(("ported", 0), level=[1, 2])
    saved = (10 * (goal - start) / (end - start)).where(goal > start, 0.0)

    pooled = {name: t[t["pair"] == "all"] for name, t in told.items() if name != "heat"}
    for line in pooled["curves"].itertuples():
        assert line.mean == pytest.approx(curves[line.method, line.init, line.budget])
    own = pooled["effects"].query("control == 'scratch' and method != 'all'")
    assert len(own) == len(effects) == 8
    for line in own.itertuples():
        assert line.mean == pytest.approx(effects[line.method, line.budget])
    defined = told["heat"].dropna(subset="recovery")
    assert len(defined) >= 8
    for line in defined.itertuples():
        at = (line.method, line.target, line.budget)
        assert line.recovery == pytest.approx(recovery[at])
    own = told["effects"].query("control == 'scratch' and method != 'all' and pair != 'all'")
    assert len(own) == len(pairs) == 16
    for line in own.itertuples():
        source, target = line.pair.split(" → ")
        assert line.mean == pytest.approx(pairs[line.method, source, target, line.budget])
    inside = saved[(saved >= 0) & (saved <= 10)]
    assert len(inside) >= 2
    own = pooled["saved"].set_index("method")["saved"]
    for method, steps in inside.items():
        assert own[method] == pytest.approx(steps)


def test_an_export_says_what_it_cannot_say(report: Report) -> None:
    text = html.render(report)
    assert "hold the test sentences fixed" in text.replace("\nand hold", " and hold")
    assert not report.evidence.complete
    lines = report.tables["differences"]
    assert not lines["resampled"].str.contains("sentence").any()
    assert report.evidence.constants["balanced_accuracy"] == 0.5
    assert report.evidence.sizes["minilm-large"] == report.evidence.sizes["minilm-large-tuned"]
