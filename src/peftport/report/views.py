"""Tables for people: few columns, budgets side by side, an interval in one cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from peftport.report.build import Report
from peftport.report.claims import ALL, Claim, Finding
from peftport.report.evidence import ABLATIONS, METRIC_NAMES, Evidence, pair_name
from peftport.report.tables import PLACE, RUN, aligned, number

#: columns of numbers that stand beside every claim
BESIDE = ("ported", "scratch", "sampled", *ABLATIONS, "floor")


@dataclass(frozen=True)
class View:
    """A table as text: ``numeric`` counts the columns, from the right, that hold numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: int = 0

    def __bool__(self) -> bool:
        return bool(self.rows)

    def text(self) -> str:
        return aligned(self.header, self.rows)


def cell(point: float, low: float, high: float) -> str:
    """``0.765 [0.741, 0.789]``"""
    return "" if np.isnan(point) else f"{point:.3f} [{low:.3f}, {high:.3f}]"


def score_view(report: Report, name: str, metric: str | None = None) -> View:
    """Scores by group and init, one column a budget; with several metrics see ``metric``."""
    table, metric = report.tables[name], metric or report.metric
    keys = [k for k in (*PLACE, "init") if k in table.columns]
    header, rows = _shown(report.evidence, keys), []
    for group, own in table.groupby(keys, sort=False):
        cells = {
            int(r["budget"]): cell(r[metric], r[f"{metric}_low"], r[f"{metric}_high"])
            for r in own.to_dict("records")
        }
        counts = own["runs"].unique()
        rows.append((
            *_place(report.evidence, dict(zip(keys, group, strict=True))),
            *(cells.get(budget, "") for budget in report.evidence.budgets),
            " to ".join(str(n) for n in sorted({counts.min(), counts.max()})),
            _one_class(own),
        ))  # fmt: skip
    steps = [f"{budget} steps" for budget in report.evidence.budgets]
    return View((*header, *steps, "runs", "one class"), tuple(rows), len(steps) + 2)


def _one_class(group: pd.DataFrame) -> str:
    flat = group["one_class"].sum(skipna=False)
    return "unknown" if np.isnan(flat) else f"{flat:.0f} of {group['runs'].sum()}"


def _shown(evidence: Evidence, keys: Sequence[str]) -> list[str]:
    """Headers of a place: hosts in one column, the data setting only where there are several."""
    names = {"source": "hosts"}
    several = evidence.grid["data"].nunique() > 1
    return [names.get(key, key) for key in keys if key != "target" and (key != "data" or several)]


def _place(evidence: Evidence, group: dict[str, object]) -> list[str]:
    several = evidence.grid["data"].nunique() > 1
    cells = []
    for key, value in group.items():
        if key == "source":
            cells.append(pair_name(str(value), str(group["target"])))
        elif key != "target" and (key != "data" or several):
            cells.append(str(value))
    return cells


def p_cell(p: float) -> str:
    """``<0.001``, ``0.051``"""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def signed(point: float, low: float, high: float) -> str:
    """``+0.075 [+0.044, +0.121]``"""
    if np.isnan(point):
        return ""
    ends = "" if np.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
    return f"{point:+.3f}{ends}"


def answer_view(report: Report) -> View:
    """The four answers, each with the pooled difference at the budgets that decide."""
    budgets, rows = report.evidence.claim_budgets, []
    for claim in report.claims:
        pooled = {f.budget: f for f in claim.findings if f.method == ALL}
        intervals = [pooled[b].interval if b in pooled else None for b in budgets]
        compared = next(iter(pooled.values())).compared if pooled else ""
        trainings = max((i.trainings for i in intervals if i), default=0)
        cells = ("" if i is None else str(i) for i in intervals)
        p = report.family.get(claim.name)
        told = "" if p is None else p_cell(p)
        rows.append((claim.name, claim.answer, compared, *cells, told, str(trainings)))
    steps = [f"{budget} steps" for budget in budgets]
    header = ("claim", "answer", "difference", *steps, "p of the family", "distinct trainings")
    return View(header, tuple(rows), len(steps) + 2)


def claim_view(report: Report, claim: Claim) -> View:
    """The lines behind a claim at the budgets that decide, with what stands beside them."""
    budgets = report.evidence.claim_budgets
    lines = [f for f in claim.findings if f.budget in budgets and (f.interval or f.beside)]
    used = [name for name in BESIDE if any(name in f.beside for f in lines)]
    rows = [(*_scope(f), *_result(f), *(number(f.beside.get(n)) for n in used)) for f in lines]
    header = ("steps", "what", "hosts", "difference [95%]", "Holm p", "answer", *used)
    return View(header, tuple(rows), len(used))


def _scope(f: Finding) -> tuple[str, str, str]:
    what = f.method if f.compared.startswith("ported") else f.compared
    return str(f.budget), "all methods" if what == ALL else what, f.pair


def _result(f: Finding) -> tuple[str, str, str]:
    p = "" if f.p_holm is None else p_cell(f.p_holm)
    return "" if f.interval is None else str(f.interval), p, f.answer


def difference_view(report: Report) -> View:
    """Ported minus each control by metric and budget, pairs pooled."""
    table = report.tables["differences"]
    table = table[(table["pair"] == ALL) & table["compared"].str.startswith("ported")]
    keys, rows = ["metric", "compared", "method"], []
    for group, own in table.groupby(keys, sort=False):
        at = {
            int(r["budget"]): signed(r["difference"], r["low"], r["high"])
            for r in own.to_dict("records")
            if not np.isnan(r["difference"])
        }
        metric, compared, method = group
        rows.append((METRIC_NAMES[metric], compared, "all methods" if method == ALL else method,
                     *(at.get(budget, "") for budget in report.evidence.budgets)))  # fmt: skip
    steps = [f"{budget} steps" for budget in report.evidence.budgets]
    return View(("metric", "compared", "method", *steps), tuple(rows), len(steps))


def opinion_view(report: Report) -> View:
    """Pooled differences by bootstrap, mixed model and exact test, with effect sizes."""
    rows = [
        (f"ported − {r['control']}", str(r["budget"]),
         signed(r["bootstrap"], r["low"], r["high"]),
         signed(r["mixed"], r["mixed_low"], r["mixed_high"]),
         f"{p_cell(r['exact_p'])} (least possible {p_cell(r['least_p'])})",
         f"{r['ahead']:.0%}", number(r["g"]), r["note"])
        for r in report.tables["opinions"].to_dict("records")
    ]  # fmt: skip
    header = ("difference", "steps", "bootstrap", "mixed model", "exact p over seeds", "ahead",
              "Hedges' g", "note on the model")  # fmt: skip
    return View(header, tuple(rows))


def cost_view(report: Report) -> View:
    table = report.tables["costs"]
    if table.empty:
        return View((), ())
    timed = table["seconds_each"].notna().any()
    columns = ["trainings", "parameters", *(["seconds_each", "minutes"] if timed else [])]
    rows = [
        (r["kind"], r["method"], r["init"], f"{r['trainings']:,}", r["parameters"],
         *(f"{r[c]:.1f}" for c in columns[2:]))
        for r in table.to_dict("records")
    ]  # fmt: skip
    heads = ("kind", "method", "init", *(c.replace("_", " ") for c in columns))
    return View(heads, tuple(rows), len(columns))


def ablation_view(report: Report) -> View:
    columns = ["budget", "seeds", "ported", *ABLATIONS, "sampled", "scratch", "floor"]
    return _plain(report, "ablations", columns)


def recovery_view(report: Report) -> View:
    table = report.tables["recovery"].copy()
    if table.empty:
        return View((), ())
    defined = table["note"] == ""
    table["recovery"] = [
        cell(r.recovery, r.low, r.high) if fine else "undefined"
        for fine, r in zip(defined, table.itertuples(), strict=True)
    ]
    columns = ["budget", "ported", "native", "floor", "probe", "recovery"]
    return _plain(report, "recovery", columns, table)


def _plain(
    report: Report, name: str, columns: Sequence[str], table: pd.DataFrame | None = None
) -> View:
    table = report.tables[name] if table is None else table
    if table.empty:
        return View((), ())
    rows = [
        (*_place(report.evidence, {k: r[k] for k in PLACE}), *(number(r[c]) for c in columns))
        for r in table.to_dict("records")
    ]
    header = (*_shown(report.evidence, PLACE), *("steps" if c == "budget" else c for c in columns))
    return View(header, tuple(rows), len(columns))


def source_view(report: Report) -> View:
    table = report.tables["sources"]
    if table.empty:
        return View((), ())
    metrics = report.evidence.metrics
    rows = [
        (r["kind"], r["method"], r["host"], r["data"], str(r["steps"]), str(r["trainings"]),
         *(cell(r[m], r[f"{m}_low"], r[f"{m}_high"]) for m in metrics))
        for r in table.to_dict("records")
    ]  # fmt: skip
    header = ("module", "method", "host", "data", "steps", "trainings")
    return View((*header, *(METRIC_NAMES[m] for m in metrics)), tuple(rows), len(metrics) + 2)


def run_view(table: pd.DataFrame, more: Sequence[str] = ()) -> View:
    """Runs by what identifies them: missing or failed ones."""
    if table.empty:
        return View((), ())
    columns = [c for c in (*RUN, *more) if c in table.columns]
    rows = tuple(tuple(str(v) for v in row) for row in table[columns].itertuples(index=False))
    return View(tuple(columns), rows)
