"""The report as one HTML file: no script, no request, opens from disk."""

from __future__ import annotations

from functools import cache

import jinja2
from markupsafe import Markup

from peftport.report import terminal, views
from peftport.report.build import Report
from peftport.report.claims import Claim
from peftport.report.evidence import METRIC_NAMES, visible
from peftport.report.figures import to_svg

#: with more host pairs than this, tables by place start closed
OPEN_PAIRS = 3


def render(report: Report) -> str:
    """The whole page. Everything but our own figures is escaped by the template."""
    pairs = report.evidence.grid[["source", "target"]].drop_duplicates()
    return _template().render(
        r=report,
        evidence=report.evidence,
        metric=METRIC_NAMES[report.metric],
        status=terminal.status(report),
        answers={claim.name: _short(claim) for claim in report.claims},
        claim_views={c.name: views.claim_view(report, c) for c in report.claims},
        figures={name: Markup(svg) for name, svg in svgs(report).items()},
        views=views,
        opened=len(pairs) <= OPEN_PAIRS,
        metric_names=METRIC_NAMES,
    )


def svgs(report: Report, ink: str = "currentColor") -> dict[str, str]:
    """Every figure as SVG, by name."""
    return {name: to_svg(chart, label(report, name), ink) for name, chart in report.figures.items()}


def label(report: Report, name: str) -> str:
    """What a figure shows, in one sentence."""
    metric = METRIC_NAMES[report.metric]
    if name == "differences":
        return f"Difference in {metric} between ported modules and each control, by method."
    method = name.removeprefix("curves-")
    return f"{method}: {metric} by steps on the target, for ported, sampled and scratch modules."


def _short(claim: Claim) -> str:
    return claim.answer.replace(" ", "-")


def _shown(value: object) -> object:
    """Text with its control and direction marks spelled out; the template escapes it."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("peftport.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
