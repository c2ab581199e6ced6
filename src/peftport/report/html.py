"""The report as one HTML file: opens from disk, loads nothing, runs only its own two scripts.

The page's policy names the digests of these scripts; a script that a name smuggled in would not run
even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from peftport.report import dataset, terminal, views
from peftport.report.build import Report
from peftport.report.claims import Claim
from peftport.report.evidence import METRIC_NAMES, sentence_count, visible
from peftport.report.explore import ALL, levels, pair_names
from peftport.report.figures.draw import SHARED, WAYS
from peftport.report.figures.panels import FILTERS, Panel, compiled, shown

#: with more host pairs than this, tables by place start closed
OPEN_PAIRS = 3
LABELS = {
    **METRIC_NAMES,
    "budget": "steps",
    "ahead": "share ahead",
    "g": "Hedges' g",
    "saved_text": "steps saved",
    "interval_text": "95% interval",
    "pair": "hosts",
}
TITLES = {"tuning": "raw and further trained hosts", "size": "small and large hosts"}


def render(report: Report) -> str:
    """The whole page. Everything but our own scripts is escaped by the template."""
    evidence = report.evidence
    pairs = evidence.grid[["source", "target"]].drop_duplicates()
    panels = shown(report.explored)
    return template("report.html.j2").render(
        r=report,
        evidence=evidence,
        metric=METRIC_NAMES[report.metric],
        status=terminal.status(report),
        sentences=sentence_count(evidence),
        answers={claim.name: _short(claim) for claim in report.claims},
        claim_views={c.name: views.claim_view(report, c) for c in report.claims},
        panels=panels,
        options=_options(report),
        views=views,
        opened=len(pairs) <= OPEN_PAIRS,
        metric_names=METRIC_NAMES,
        data=Markup(dataset.script_json(_data(report, panels))),
        scripts=_scripts(),
        policy=f"script-src {' '.join(_digest(script) for script in _scripts())}",
    )


def _options(report: Report) -> dict[str, list[tuple[Any, str]]]:
    """Filter to its values and their names; a filter with one value is not shown."""
    evidence = report.evidence
    grid = evidence.grid
    pooled = {"method": "all methods", "pair": "all pairs, pooled", "data": "all, pooled"}
    found: dict[str, list[tuple[Any, str]]] = {
        "metric": [(m, METRIC_NAMES[m]) for m in evidence.metrics],
        "method": [(ALL, pooled["method"]), *((m, m) for m in evidence.methods)],
        "pair": [(p, pooled["pair"] if p == ALL else p) for p in levels(pair_names(grid).tolist())],
        "data": [(d, pooled["data"] if d == ALL else d) for d in levels(grid["data"].tolist())],
        "budget": [(b, f"{b} steps") for b in evidence.budgets],
    }
    return {name: values for name, values in found.items() if len(values) > 1}


def _data(report: Report, panels: list[Panel]) -> dict[str, Any]:
    evidence = report.evidence
    needed = {panel.table: report.explored[panel.table] for panel in panels}
    return {
        "filters": FILTERS,
        "defaults": {"metric": report.metric, "method": ALL, "pair": ALL, "data": ALL,
                     "budget": evidence.budgets[0]},
        "several_pairs": len(levels(pair_names(evidence.grid).tolist())) > 1,
        "ways": WAYS,
        "metrics": evidence.metrics,
        "labels": LABELS,
        "panels": [
            {"name": p.name, "table": p.table, "title": p.title, "split": p.split,
             "columns": p.columns, "follows": p.follows, "inits": p.inits, "kinds": p.kinds,
             "runs": p.runs, "fixed": p.fixed, "spec": compiled(p),
             "shared": SHARED.get(p.name, ""),
             "titles": TITLES if p.split == "question" else {}}
            for p in panels
        ],
        "tables": dataset.packed(needed),
        "runs": dataset.packed({"runs": dataset.run_table(evidence)})["runs"],
    }  # fmt: skip


@cache
def _scripts() -> tuple[Markup, Markup]:
    """The drawing library and the page's own script."""
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    own = (resources.files("peftport.report") / "templates/report.js").read_text("utf-8")
    for script in (library, own):
        if "</script" in script.lower() or "<!--" in script:
            raise ValueError("a script of the page must not contain the end of its element")
    return Markup(library), Markup(own)


def _digest(script: str) -> str:
    """Source expression of a script for the page's policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _short(claim: Claim) -> str:
    return claim.answer.replace(" ", "-")


def _shown(value: object) -> object:
    """Text with its control and direction marks spelled out; the template escapes it."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def template(name: str) -> jinja2.Template:
    """A page's template; texts are made visible and escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("peftport.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
