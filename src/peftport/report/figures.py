"""Figures in one grammar (Vega-Altair), rendered to static SVG that needs no script.

Text is drawn in ``currentColor`` and every series has a shape as well as a colour, so one SVG
serves light and dark pages and readers who see colours differently.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

import altair as alt
import pandas as pd
import vl_convert

from peftport.report.claims import ALL, Claim
from peftport.report.evidence import INITS, METRIC_NAMES, Evidence, pair_name

#: Okabe & Ito's blue, vermillion and bluish green; the page lightens them in the dark
COLOURS = {"ported": "#0072b2", "sampled": "#d55e00", "scratch": "#009e73"}
SHAPES = {"ported": "circle", "sampled": "triangle-up", "scratch": "square"}
GRID = "#808080"
INK = "currentColor"
PANEL = (128, 104)
_SVG = "http://www.w3.org/2000/svg"
ET.register_namespace("", _SVG)
_ALLOWED = {"svg", "g", "path", "text", "tspan", "line", "rect", "circle", "defs", "clipPath"}


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
    colour, shape = _colour(), _shape()
    base = alt.Chart().encode(x=x)
    layers = [
        base.mark_area(opacity=0.18).encode(
            y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour
        ),
        base.mark_line(strokeDash=[4, 3], color=GRID).encode(y=alt.Y("floor:Q", scale=scale)),
        base.mark_line(strokeWidth=1.8).encode(y=y, color=colour),
        base.mark_point(filled=True, size=42, opacity=1).encode(y=y, color=colour, shape=shape),
    ]
    if data["budget"].nunique() == 1:
        layers[0] = base.mark_rule(strokeWidth=2).encode(
            y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour
        )
    columns = 1 if data["panel"].nunique() <= 3 else 2
    width = PANEL[0] * 2 + 20 if columns == 1 else PANEL[0]
    header = alt.Header(
        title=None, labelColor=INK, labelFontSize=10, labelLimit=width + 20, labelLineHeight=12,
        labelExpr=r"split(datum.value, '\n')",
    )  # fmt: skip
    chart = alt.layer(*layers).properties(width=width, height=PANEL[1])
    return chart.facet(alt.Facet("panel:N", header=header), data=data, columns=columns)


def _colour() -> alt.Color:
    scale = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    return alt.Color("init:N", scale=scale, sort=list(INITS), legend=_legend())


def _shape() -> alt.Shape:
    scale = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    return alt.Shape("init:N", scale=scale, sort=list(INITS), legend=_legend())


def _legend() -> alt.Legend:
    return alt.Legend(orient="top", title=None, symbolOpacity=1, symbolSize=70)


def differences(claims: Sequence[Claim], budgets: Sequence[int], metric: str) -> alt.Chart | None:
    """Ported minus each control, per method and pooled, at the budgets that decide."""
    lines = [
        {
            "control": f.compared.removeprefix("ported − "), "method": f.method,
            "panel": f"{f.budget} steps", "mean": f.interval.point, "low": f.interval.low,
            "high": f.interval.high,
        }
        for claim in claims[:2]
        for f in claim.findings
        if f.interval is not None and f.pair == ALL and f.budget in budgets
    ]  # fmt: skip
    if not lines:
        return None
    data = pd.DataFrame(lines)
    data["method"] = ["all methods" if m == ALL else m for m in data["method"]]
    order = ["all methods", *sorted(set(data["method"]) - {"all methods"})]
    scale = alt.Scale(domain=["scratch", "sampled"], range=[COLOURS["scratch"], COLOURS["sampled"]])
    shapes = alt.Scale(domain=["scratch", "sampled"], range=["square", "triangle-up"])
    legend = alt.Legend(orient="top", title="ported minus", symbolOpacity=1, symbolSize=70)
    y = alt.Y("method:N", sort=order, title=None, axis=alt.Axis(labelLimit=110))
    offset = alt.YOffset("control:N", sort=["scratch", "sampled"])
    colour = alt.Color("control:N", scale=scale, legend=legend)
    base = alt.Chart().encode(y=y, yOffset=offset, color=colour)
    title = f"difference in {METRIC_NAMES[metric]}"
    x = alt.X("mean:Q", title=title, axis=alt.Axis(format="+.2f", tickCount=5))
    zero = alt.Chart().mark_rule(color=INK, strokeDash=[4, 3]).encode(x=alt.datum(0))
    layers = alt.layer(
        zero,
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        base.mark_point(filled=True, size=50, opacity=1).encode(
            x=x, shape=alt.Shape("control:N", scale=shapes, legend=legend)
        ),
    ).properties(width=PANEL[0] * 2, height=alt.Step(13))
    order_panels = [f"{budget} steps" for budget in budgets]
    header = alt.Header(title=None, labelColor=INK, labelFontSize=11)
    facet = alt.Facet("panel:N", header=header, sort=order_panels)
    return layers.facet(facet, data=data, columns=1)


def _styled(chart: alt.Chart, ink: str) -> str:
    grey = {"gridColor": GRID, "gridOpacity": 0.25, "domainColor": GRID, "tickColor": GRID}
    text = {"labelColor": ink, "titleColor": ink, "titleFontWeight": "normal"}
    # fonts differ between machines: leave room where text may be wider than it was measured
    room = {"left": 14, "right": 14, "top": 4, "bottom": 4}
    styled = (
        chart.configure(background="transparent", font="system-ui, sans-serif", padding=room)
        .configure_axis(**grey, **text, labelFontSize=10, titleFontSize=10, titlePadding=9)
        .configure_legend(**{**text, "labelFontSize": 11})
        .configure_view(stroke=None)
    )
    return str(styled.to_json()).replace(f'"{INK}"', f'"{ink}"')


def to_svg(chart: alt.Chart, label: str, ink: str = INK) -> str:
    """The chart as one inline ``<svg>`` with a description for screen readers.

    The result is parsed and written again: only drawing elements are kept, no link, no script and
    no handler, whatever a name contains.
    """
    root = ET.fromstring(vl_convert.vegalite_to_svg(_styled(chart, ink)))
    _strip(root)
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")


def to_png(svg: str, scale: float = 2.0) -> bytes:
    """A picture on white of an SVG made with a plain ink colour."""
    root = ET.fromstring(svg)
    paper = ET.Element(f"{{{_SVG}}}rect", width="100%", height="100%", fill="#ffffff")
    root.insert(0, paper)
    return bytes(vl_convert.svg_to_png(ET.tostring(root, encoding="unicode"), scale=scale))


def _strip(element: ET.Element) -> None:
    for child in list(element):
        if child.tag.removeprefix(f"{{{_SVG}}}") not in _ALLOWED:
            element.remove(child)
            continue
        _strip(child)
    for name in list(element.attrib):
        # aria labels of single marks repeat every number; the data table has them
        if name.startswith(("on", "aria-", "{", "role", "pointer-", "class")) or "href" in name:
            del element.attrib[name]
