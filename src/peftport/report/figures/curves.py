"""Learning curves of one method with a panel for every host pair: for papers and appendices."""

from __future__ import annotations

import altair as alt
import pandas as pd

from peftport.report.evidence import METRIC_NAMES, Evidence, pair_name
from peftport.report.figures.style import COLOURS, GRID, INK, SHAPES, colour, shape

PANEL = (128, 104)


def learning_curves(evidence: Evidence, table: pd.DataFrame, metric: str) -> dict[str, alt.Chart]:
    """Score by budget and init, one chart a method, one panel a host pair (and data setting).

    Args:
        table: :func:`~peftport.report.tables.score_table` by PLACE.
    Returns:
        method to chart; bands are 95% intervals, the dashed line is the floor.
    """
    data = table.copy()
    data["panel"] = [
        _panel(row.source, row.target, row.data, data["data"].nunique() > 1)
        for row in data.itertuples()
    ]
    data["floor"] = [evidence.floor(target, metric)[1] for target in data["target"]]
    data = data.rename(columns={metric: "mean", f"{metric}_low": "low", f"{metric}_high": "high"})
    low = float(data[["low", "floor"]].min().min())
    high = float(data[["high", "floor"]].max().max())
    columns = ["panel", "init", "budget", "mean", "low", "high", "floor"]
    return {
        str(method): _curves(own[columns], (low, high), metric)
        for method, own in data.groupby("method", sort=True)
    }


def _panel(source: str, target: str, data: str, many: bool) -> str:
    """Two lines, so that long host names fit."""
    return pair_name(source, f"\n{target}") + (f" ({data} data)" if many else "")


def _curves(data: pd.DataFrame, domain: tuple[float, float], metric: str) -> alt.Chart:
    x = alt.X("budget:O", title="steps on the target", axis=alt.Axis(labelAngle=0))
    scale = alt.Scale(domain=[round(domain[0] - 0.01, 2), round(domain[1] + 0.01, 2)], zero=False)
    axis = alt.Axis(format=".2f", tickCount=5)
    y = alt.Y("mean:Q", title=METRIC_NAMES[metric], scale=scale, axis=axis)
    series = colour("init", list(COLOURS), list(COLOURS.values()))
    marks = shape("init", list(SHAPES), list(SHAPES.values()))
    base = alt.Chart().encode(x=x)
    layers = [
        base.mark_area(opacity=0.18).encode(
            y=alt.Y("low:Q", scale=scale), y2="high:Q", color=series
        ),
        base.mark_line(strokeDash=[4, 3], color=GRID).encode(y=alt.Y("floor:Q", scale=scale)),
        base.mark_line(strokeWidth=1.8).encode(y=y, color=series),
        base.mark_point(filled=True, size=42, opacity=1).encode(y=y, color=series, shape=marks),
    ]
    if data["budget"].nunique() == 1:
        layers[0] = base.mark_rule(strokeWidth=2).encode(
            y=alt.Y("low:Q", scale=scale), y2="high:Q", color=series
        )
    columns = 1 if data["panel"].nunique() <= 3 else 2
    width = PANEL[0] * 2 + 20 if columns == 1 else PANEL[0]
    header = alt.Header(
        title=None, labelColor=INK, labelFontSize=10, labelLimit=width + 20, labelLineHeight=12,
        labelExpr=r"split(datum.value, '\n')",
    )  # fmt: skip
    chart = alt.layer(*layers).properties(width=width, height=PANEL[1])
    return chart.facet(alt.Facet("panel:N", header=header), data=data, columns=columns)
