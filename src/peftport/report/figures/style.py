"""What all figures share: colours, shapes, text, and how they become SVG, PNG and PDF.

Text is drawn in ``currentColor`` and every series has a shape as well as a colour, so one SVG
serves light and dark pages and readers who see colours differently.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

#: Okabe & Ito's blue, vermillion and bluish green; the page lightens them in the dark
COLOURS = {"ported": "#0072b2", "sampled": "#d55e00", "scratch": "#009e73"}
SHAPES = {"ported": "circle", "sampled": "triangle-up", "scratch": "square"}
#: Okabe & Ito's blue and reddish purple: two sides of a question
SIDES = ("#0072b2", "#cc79a7")
GRID = "#808080"
INK = "currentColor"
_SVG = "http://www.w3.org/2000/svg"
ET.register_namespace("", _SVG)
_ALLOWED = {"svg", "g", "path", "text", "tspan", "line", "rect", "circle", "defs", "clipPath"}


def colour(
    field: str, names: Sequence[str], colours: Sequence[str], title: Any = None
) -> alt.Color:
    scale = alt.Scale(domain=list(names), range=list(colours))
    return alt.Color(f"{field}:N", scale=scale, sort=list(names), legend=_legend(title))


def shape(field: str, names: Sequence[str], shapes: Sequence[str], title: Any = None) -> alt.Shape:
    scale = alt.Scale(domain=list(names), range=list(shapes))
    return alt.Shape(f"{field}:N", scale=scale, sort=list(names), legend=_legend(title))


def _legend(title: Any) -> alt.Legend:
    return alt.Legend(orient="top", title=title, symbolOpacity=1, symbolSize=70)


def configured(chart: alt.Chart, ink: str = INK) -> dict[str, Any]:
    """The chart's Vega-Lite specification in the house style."""
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
    spec: dict[str, Any] = json.loads(str(styled.to_json()).replace(f'"{INK}"', f'"{ink}"'))
    return spec


def to_svg(chart: alt.Chart, label: str, ink: str = INK) -> str:
    """The chart as one inline ``<svg>`` with a description for screen readers.

    The result is parsed and written again: only drawing elements are kept, no link, no script and
    no handler, whatever a name contains.
    """
    root = ET.fromstring(vl_convert.vegalite_to_svg(configured(chart, ink)))
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


def to_pdf(svg: str) -> bytes:
    """The same drawing as a PDF of its own size."""
    return bytes(vl_convert.svg_to_pdf(svg))


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
