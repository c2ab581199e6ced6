"""The figures of the page: what each shows, by which filters its rows are chosen, how it is drawn.

A figure is one small chart (see :mod:`draw`) that is repeated for every value of ``split``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from peftport.report.evidence import INITS
from peftport.report.explore import ALL
from peftport.report.figures import draw
from peftport.report.figures.style import configured

FILTERS = ("metric", "method", "pair", "data", "budget")


@dataclass(frozen=True)
class Panel:
    """A figure.

    Attributes:
        name: its anchor on the page.
        table: which of the report's explored tables it draws.
        title, caption: what it shows, in words.
        split: the column by whose values the chart is repeated.
        draw: makes one chart of a table's rows (and of single runs).
        columns: columns of the data table beneath it.
        follows: the FILTERS that choose its rows; by the others it has a row or a panel each.
        how: anchor of how its numbers are computed.
        inits, kinds: which runs stand behind it.
        runs: whether single runs are drawn too.
        fixed: column and value that all its rows have.
    """

    name: str
    table: str
    title: str
    caption: str
    split: str
    draw: Callable[[Any, Any], alt.LayerChart]
    columns: tuple[str, ...]
    follows: tuple[str, ...]
    how: str
    inits: tuple[str, ...] = INITS
    kinds: tuple[str, ...] = ("grid",)
    runs: bool = False
    fixed: tuple[tuple[str, str], ...] = ()


NUMBERS = ("mean", "low", "high", "runs", "trainings")
PANELS = (
    Panel(
        "curves", "curves", "Scores by steps on the target",
        "Lines are means, bands 95% intervals, every short tick is one run; the dashed line is the "
        "floor (the constant prediction, or the host alone where hosts answer with a word).",
        "method", draw.curves, ("method", "init", "budget", *NUMBERS),
        ("metric", "method", "pair", "data"), "how-score", runs=True,
    ),
    Panel(
        "effects", "effects", "Ported minus each control",
        "Runs matched by method, hosts, data and seed, with 95% intervals. Right of the dashed "
        "line porting is better. Hover for the share of pairs that are ahead, and for Hedges' g.",
        "budget", draw.effects, ("control", "method", "budget", *NUMBERS, "ahead", "g"),
        ("metric", "method", "pair", "data"), "how-difference",
    ),
    Panel(
        "pairs", "effects", "The same, one row a host pair",
        "Few seeds stand behind a row, so its interval is wide: look for patterns, "
        "not for winners.",
        "method", draw.pairs, ("control", "method", "pair", *NUMBERS, "ahead", "g"),
        ("metric", "method", "data", "budget"), "how-difference",
    ),
    Panel(
        "heat", "heat", "Recovery by source and target",
        "(ported − floor) / (native − floor): 0 is the floor, 1 a module trained on the target for "
        "as many steps as the source module. A dash: undefined, because native is not above the "
        "floor for certain.",
        "method", draw.heat,
        ("method", "source", "target", "budget", "recovery", "low", "high", "ported", "native",
         "floor", "note"),
        ("metric", "method", "data", "budget"), "how-recovery",
        inits=("ported", "native", "source"), kinds=("grid", "native", "source"),
    ),
    Panel(
        "directions", "directions", "Which way porting goes",
        "Ported minus scratch, by direction, with 95% intervals: from raw to further trained hosts "
        "(told by their names) against the way back; to a larger host against to a smaller one.",
        "question", draw.directions, ("question", "direction", "method", *NUMBERS),
        ("metric", "method", "data", "budget"), "how-direction", inits=("ported", "scratch"),
        fixed=(("control", "scratch"),),
    ),
    Panel(
        "saved", "saved", "Steps saved",
        "How many steps from scratch reach the score that ported modules have after so many "
        "steps, minus these, with 95% intervals. A triangle: scratch does not get there within the "
        "study's steps.",
        "budget", draw.saved, ("method", "budget", "saved_text", "interval_text", "runs"),
        ("metric", "method", "pair", "data"), "how-saved", inits=("ported", "scratch"),
    ),
)  # fmt: skip


def shown(tables: Mapping[str, pd.DataFrame]) -> list[Panel]:
    """Figures that have something to show, in the order of the page."""
    return [panel for panel in PANELS if len(tables[panel.table])]


def compiled(panel: Panel) -> dict[str, Any]:
    """The Vega specification of one chart, its data sets ``table`` and ``runs`` empty."""
    spec = configured(panel.draw(alt.NamedData("table"), alt.NamedData("runs")))
    spec["datasets"] = {"table": [], "runs": []}
    vega: dict[str, Any] = vl_convert.vegalite_to_vega(spec)
    return vega


def chosen(panel: Panel, table: pd.DataFrame, filters: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of a figure under filters (the page does the same in the browser).

    A filter that a figure does not follow is ``all`` where the figure has no column of it, and
    leaves single values where it has.
    """
    mask = pd.Series(True, index=table.index)
    for column, value in panel.fixed:
        mask &= table[column] == value
    for name in FILTERS:
        if name not in table.columns:
            continue
        if name in panel.follows:
            keep_all = name == "method" and filters[name] == ALL
            mask &= True if keep_all else table[name] == filters[name]
        elif name == "pair" and (table["pair"] != ALL).any() and "pair" in panel.columns:
            mask &= table["pair"] != ALL
    if panel.split == "method":
        mask &= table["method"] != ALL
    if panel.name == "directions":
        mask &= table["direction"].isin(draw.WAYS)
    return table[mask]


def static(panel: Panel, rows: pd.DataFrame, runs: pd.DataFrame | None = None) -> alt.ConcatChart:
    """All charts of a figure side by side, for a file."""
    charts = []
    for value, own in rows.groupby(panel.split, sort=True):
        single = runs[runs[panel.split] == value] if runs is not None else own.iloc[:0]
        title = f"{value} steps" if panel.split == "budget" else str(value)
        charts.append(panel.draw(own, single).properties(title=title))
    shared = {draw.SHARED[panel.name]: "shared"} if panel.name in draw.SHARED else {}
    return alt.concat(*charts, columns=2).resolve_scale(
        color="independent", shape="independent", **shared
    )
