"""How each figure is drawn: one small chart of a table's rows. Data may be a frame or a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from peftport.report.evidence import CONTROLS, INITS
from peftport.report.figures.style import COLOURS, GRID, INK, SHAPES, SIDES, colour, shape

#: the two directions of both questions; the first has the first colour
WAYS = ("raw → tuned", "tuned → raw", "up in size", "down in size")
#: the axis that the charts of one figure have in common
SHARED = {"curves": "y", "effects": "x", "pairs": "x", "directions": "x"}
ROW = 15
WIDTH = 200
# a pair of hosts has a line for each, so that no name is cut
LABEL = alt.Axis(
    labelLimit=190,
    labelExpr="datum.value == 'all' ? 'all methods' : "
    "split(replace(datum.value, ' → ', ' →\\n'), '\\n')",
)


def _tips(**fields: str) -> list[alt.Tooltip]:
    """Title to ``field``, or to ``field|format`` for numbers."""
    tips = []
    for title, given in fields.items():
        field, _, form = given.partition("|")
        kind = {"format": form, "type": "quantitative"} if form else {"type": "nominal"}
        tips.append(alt.Tooltip(field=field, title=title.replace("_", " "), **kind))
    return tips


def curves(table: Any, runs: Any) -> alt.LayerChart:
    """Score by budget and init with interval bands, single runs and the floor."""
    series = colour("init", list(COLOURS), list(COLOURS.values()))
    marks = shape("init", list(SHAPES), list(SHAPES.values()))
    x = alt.X("budget:O", title="steps on the target", axis=alt.Axis(labelAngle=0))

    def y(field: str) -> alt.Y:
        axis = alt.Axis(format=".2f", tickCount=5)
        return alt.Y(f"{field}:Q", title="score", scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart(table).encode(x=x)
    tips = _tips(init="init", method="method", hosts="pair", data="data", steps="budget|d",
                 mean="mean|.3f", low="low|.3f", high="high|.3f", runs="runs|d")  # fmt: skip
    run_tips = _tips(run="key", init="init", method="method", hosts="hosts", data="data",
                     seed="seed|d", steps="budget|d", score="value|.3f")  # fmt: skip
    ticks = alt.Chart(runs).mark_tick(opacity=0.28, thickness=1.2, orient="horizontal")
    return alt.layer(
        ticks.encode(
            x=x, y=y("value"), color=series, tooltip=run_tips,
            xOffset=alt.XOffset("init:N", sort=list(INITS)),
        ),
        base.mark_area(opacity=0.2).encode(y=y("low"), y2="high:Q", color=series),
        base.mark_rule(strokeWidth=2, opacity=0.45).encode(y=y("low"), y2="high:Q", color=series),
        base.mark_line(color=GRID, strokeDash=[4, 3]).encode(y=y("floor")),
        base.mark_line(strokeWidth=2).encode(y=y("mean"), color=series),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            y=y("mean"), color=series, shape=marks, tooltip=tips
        ),
    ).properties(width=WIDTH, height=170)  # fmt: skip


def _forest(
    table: Any, rows: str, series: str, names: Sequence[str], colours: Sequence[str],
    title: str | None, more: Mapping[str, str],
) -> alt.LayerChart:  # fmt: skip
    """Differences with intervals: a row for every value of ``rows``, a mark for each series."""
    y = alt.Y(f"{rows}:N", title=None, axis=LABEL,
              sort=alt.EncodingSortField(field="rank", op="min", order="ascending"))  # fmt: skip

    def x(field: str) -> alt.X:
        axis = alt.Axis(format="+.2f", tickCount=5)
        return alt.X(f"{field}:Q", title="difference in score", axis=axis)

    base = alt.Chart(table).encode(
        y=y, yOffset=alt.YOffset(f"{series}:N", sort=list(names)),
        color=colour(series, names, colours, title),
        tooltip=_tips(**more, difference="mean|+.3f", low="low|+.3f", high="high|+.3f",
                      runs="runs|d"),
    )  # fmt: skip
    marks = shape(series, names, ("square", "triangle-up") * (len(names) // 2), title)
    return alt.layer(
        alt.Chart(table).mark_rule(color=INK, strokeDash=[4, 3]).encode(x=alt.datum(0)),
        base.mark_rule(strokeWidth=2.5).encode(x=x("low"), x2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x("mean"), shape=marks),
    ).properties(width=WIDTH, height=alt.Step(ROW))


def effects(table: Any, runs: Any) -> alt.LayerChart:
    """Ported minus each control, a row a method."""
    return _controls(table, "method")


def pairs(table: Any, runs: Any) -> alt.LayerChart:
    """Ported minus each control, a row a host pair."""
    return _controls(table, "pair")


def _controls(table: Any, rows: str) -> alt.LayerChart:
    colours = [COLOURS[name] for name in CONTROLS]
    tips = {"control": "control", "method": "method", "hosts": "pair", "data": "data",
            "ahead": "ahead|.0%", "Hedges_g": "g|.2f"}  # fmt: skip
    return _forest(table, rows, "control", CONTROLS, colours, "ported minus", tips)


def directions(table: Any, runs: Any) -> alt.LayerChart:
    """Ported minus scratch by direction, a row a method."""
    tips = {"direction": "direction", "method": "method", "data": "data"}
    return _forest(table, "method", "direction", WAYS, SIDES * 2, None, tips)


def heat(table: Any, runs: Any) -> alt.LayerChart:
    """Recovery of every source (rows) and target (columns), in numbers and colours."""
    scale = alt.Scale(scheme="blueorange", domain=[-1, 1], clamp=True, reverse=True)
    legend = alt.Legend(orient="top", title="recovery", gradientLength=150, format=".1f")
    base = alt.Chart(table).encode(
        x=alt.X("target:N", title="target", axis=alt.Axis(labelAngle=-35, labelLimit=120)),
        y=alt.Y("source:N", title="source", axis=alt.Axis(labelLimit=120)),
        tooltip=_tips(source="source", target="target", method="method", data="data",
                      steps="budget|d", recovery="text", low="low|.2f", high="high|.2f",
                      ported="ported|.3f", native="native|.3f", floor="floor|.3f", note="note"),
    )  # fmt: skip
    ink = alt.condition("abs(datum.recovery) > 0.65", alt.value("#ffffff"), alt.value("#111111"))
    return alt.layer(
        base.mark_rect(stroke=GRID, strokeOpacity=0.5, invalid=None).encode(
            color=alt.Color("recovery:Q", scale=scale, legend=legend)
        ),
        base.mark_text(fontSize=11).encode(text="text:N", color=ink),
    ).properties(width=alt.Step(46), height=alt.Step(32))


def saved(table: Any, runs: Any) -> alt.LayerChart:
    """Steps saved, a row a method; what lies beyond the study's steps is drawn at its edge."""

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title="steps saved")

    base = alt.Chart(table).encode(
        y=alt.Y("method:N", title=None, axis=LABEL),
        tooltip=_tips(method="method", hosts="pair", data="data", ported_after="budget|d",
                      saved="saved_text", interval="interval_text"),
    )  # fmt: skip
    edge = alt.Scale(domain=["no", "yes"], range=["circle", "triangle-right"])
    return alt.layer(
        alt.Chart(table).mark_rule(color=INK, strokeDash=[4, 3]).encode(x=alt.datum(0)),
        base.mark_rule(strokeWidth=2.5, color=COLOURS["ported"]).encode(x=x("low"), x2="high:Q"),
        base.mark_point(size=80, opacity=1, filled=True, color=COLOURS["ported"]).encode(
            x=x("saved"), shape=alt.Shape("beyond:N", legend=None, scale=edge)
        ),
    ).properties(width=WIDTH, height=alt.Step(ROW + 9))
