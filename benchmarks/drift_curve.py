"""Recovery against how far the host has moved, from the store of the drift study.

    python benchmarks/drift_curve.py runs/drift -o docs/results/drift

Writes drift.csv, drift.md and drift.svg/png: for every method and budget the recovery of ported
modules with its interval, and the balanced accuracies of ported, sampled, scratch and native
modules, by the target host's relative weight distance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from peftport.hosts.built import read_built
from peftport.report.build import build
from peftport.report.source import read_evidence
from peftport.report.tables import to_markdown

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"]
WIDTH, HEIGHT = 250, 200


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("store", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    evidence = read_evidence(given.store)
    table = curve(build(evidence).tables["recovery"], evidence.cells)
    table.round(4).to_csv(given.output / "drift.csv", index=False)
    text = to_markdown(table)
    (given.output / "drift.md").write_text(text)
    for suffix in ("svg", "png"):
        drawn(table).save(given.output / f"drift.{suffix}", ppi=110)
    return 0


def curve(recovery: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """One line for every method, target and budget, nearest target first."""
    means = (
        cells[cells.kind == "grid"].groupby(["method", "target", "budget", "init"])
        .balanced_accuracy.mean().unstack("init").reset_index()
    )  # fmt: skip
    columns = ["method", "target", "budget", "native", "recovery", "low", "high"]
    table = means.merge(recovery[columns], on=["method", "target", "budget"], how="left")
    table.insert(0, "distance", [distance(name) for name in table.target])
    return table.sort_values(["budget", "method", "distance"], ignore_index=True)


def distance(host: str) -> float:
    """Relative Frobenius distance over the encoder layers, as on the host's card."""
    facts = read_built(host)
    if facts is None:
        raise SystemExit(f"host '{host}' is not built on this machine; run make hosts-drift")
    return float(facts["distance"]["encoder"])


def drawn(table: pd.DataFrame) -> alt.FacetChart:
    """Recovery by distance, a panel for every budget."""
    shown = table.assign(steps=[f"after {b} steps" if b else "as it is" for b in table.budget])
    base = alt.Chart(shown).encode(
        x=alt.X("distance:Q", scale=alt.Scale(type="log"), title="relative weight distance"),
        color=alt.Color(
            "method:N", scale=alt.Scale(range=COLOURS), legend=alt.Legend(symbolOpacity=1)
        ),
    )
    lines = base.mark_line(point=True).encode(y=alt.Y("recovery:Q", title="recovery"))
    bands = base.mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q")
    return (
        alt.layer(bands, lines)
        .properties(width=WIDTH, height=HEIGHT)
        .facet(column=alt.Column("steps:N", title=None, sort=list(dict.fromkeys(shown.steps))))
    )


if __name__ == "__main__":
    sys.exit(main())
