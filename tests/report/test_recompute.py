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
RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def report() -> Report:
    return build(read_export(RESULTS / "quick" / "export.csv"), draws=40)


@pytest.mark.parametrize(
    ("study", "methods_by_budget", "pairs_too"), [("quick", 8, 16), ("mini", 12, 144)]
)
def test_five_figures_from_twenty_lines_of_pandas(
    study: str, methods_by_budget: int, pairs_too: int, tmp_path: Path
) -> None:
    export = RESULTS / study / "export.csv"
    write_tables(build(read_export(export), draws=2), tmp_path)
    told = {name: pd.read_csv(tmp_path / f"explored-{name}.csv") for name in
            ("curves", "effects", "heat", "saved")}  # fmt: skip
    told = {name: t[(t["metric"] == "balanced_accuracy") & (t["data"] == "all")]
            for name, t in told.items()}  # fmt: skip

    frame = pd.read_csv(export).query("metric == 'balanced_accuracy'")
    grid = frame[frame["kind"] == "grid"]
    # 1 learning curves
    curves = grid.groupby(["method", "init", "budget"])["value"].mean()
    # 2 differences, pairs pooled
    wide = grid.pivot_table(
        "value", ["method", "source", "target", "data", "seed", "budget"], "init"
    )
    gain = wide["ported"] - wide["scratch"]
    effects = gain.groupby(["method", "budget"]).mean()
    # 3 recovery
    ported = wide["ported"].groupby(["method", "source", "target", "budget"]).mean()
    home = frame[frame["kind"].isin(["native", "source"]) & (frame["data"] == "same")]
    native = home.groupby(["method", "target"])["value"].mean()
    top = native.reindex(ported.index.droplevel(["source", "budget"])).to_numpy()
    recovery = (ported - 0.5) / (top - 0.5)
    # 4 differences of every host pair
    pairs = gain.groupby(["method", "source", "target", "budget"]).mean()
    # 5 steps saved: where scratch's line reaches the score of ported modules after b steps, minus b
    saved = {}
    for (method, init, budget), goal in curves.items():
        line = curves[method, "scratch"]
        late = line[line >= goal].index.min()
        if init == "ported" and late > 0 and (line[:late].iloc[:-1] < goal).all():
            early = line[:late].index[-2]
            share = (goal - line[early]) / (line[late] - line[early])
            saved[method, budget] = early + share * (late - early) - budget

    pooled = {name: t[t["pair"] == "all"] for name, t in told.items() if name != "heat"}
    for line in pooled["curves"].itertuples():
        assert line.mean == pytest.approx(curves[line.method, line.init, line.budget])
    own = pooled["effects"].query("control == 'scratch' and method != 'all'")
    assert len(own) == len(effects) == methods_by_budget
    for line in own.itertuples():
        assert line.mean == pytest.approx(effects[line.method, line.budget])
    defined = told["heat"].dropna(subset="recovery")
    assert len(defined) >= 8
    for line in defined.itertuples():
        at = (line.method, line.source, line.target, line.budget)
        assert line.recovery == pytest.approx(recovery[at])
    own = told["effects"].query("control == 'scratch' and method != 'all' and pair != 'all'")
    assert len(own) == len(pairs) == pairs_too
    for line in own.itertuples():
        source, target = line.pair.split(" → ")
        assert line.mean == pytest.approx(pairs[line.method, source, target, line.budget])
    steps = pooled["saved"].set_index(["method", "budget"])["saved"]
    inside = {at: found for at, found in saved.items() if at in steps.index}
    assert len(inside) >= 2
    for at, found in inside.items():
        assert steps[at] == pytest.approx(found)


def test_an_export_says_what_it_cannot_say(report: Report) -> None:
    text = html.render(report)
    assert "hold the test sentences fixed" in text.replace("\nand hold", " and hold")
    assert not report.evidence.complete
    lines = report.tables["differences"]
    assert not lines["resampled"].str.contains("sentence").any()
    assert report.evidence.constants["balanced_accuracy"] == 0.5
    assert report.evidence.sizes["minilm-large"] == report.evidence.sizes["minilm-large-tuned"]
