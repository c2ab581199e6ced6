"""Two studies side by side: what was run differently, and which differences are beyond noise.

Runs are matched by everything that identifies them. Where both studies measured the same test
sentences these are resampled together, so that their luck cancels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from peftport.errors import InputError
from peftport.report.claims import Claim, all_claims
from peftport.report.evidence import CONTROLS, INITS, METRIC_NAMES, PAIR, Evidence
from peftport.report.explore import ALL
from peftport.report.html import template
from peftport.report.resample import MIN_LEVELS, Interval, Resampled, holm
from peftport.report.terminal import records
from peftport.report.views import View, p_cell, signed

SIDES = ("A", "B")
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two studies, A and B.

    Attributes:
        names: their names.
        metric: what everything is measured by.
        settings: facts that differ, as label, A's and B's.
        coverage: runs of both, of A alone and of B alone, and how many numbers are equal.
        claims: both studies' claims, in the paper's order.
        changes: B minus A, one line a comparison; ``answer`` says which are beyond noise.
        notes: what limits the comparison.
    """

    names: tuple[str, str]
    metric: str
    settings: list[tuple[str, str, str]]
    coverage: list[tuple[str, str]]
    claims: tuple[list[Claim], list[Claim]]
    changes: pd.DataFrame
    notes: list[str]


def compare(first: Evidence, second: Evidence, draws: int) -> Comparison:
    """Compare two studies by the first metric that both have.

    Raises:
        InputError: one has no finished run, or they share no metric or no run.
    """
    for evidence in (first, second):
        if evidence.grid.empty:
            raise InputError(
                f"study '{evidence.name}' has no finished run to compare; run it first"
            )
    metric = next((m for m in first.metrics if m in second.metrics), None)
    if metric is None:
        raise InputError(f"'{first.name}' and '{second.name}' have no metric in common")
    notes: list[str] = []
    other, renamed = _one_method(first, second)
    if renamed:
        notes.append(renamed)
    both = _joined(first, other, notes)
    scores = Resampled(both, metric, draws)
    cells = both.cells[both.cells[metric].notna()]
    matched = _matched(cells, metric)
    if matched.empty:
        raise InputError(
            f"'{first.name}' and '{second.name}' have no run in common (method, hosts, data, seed, "
            "init, budget); nothing can be compared"
        )
    return Comparison(
        names=(first.name, second.name),
        metric=metric,
        settings=_settings(first, second),
        coverage=_coverage(cells, matched, metric),
        claims=(
            all_claims(first, Resampled(first, metric, draws)),
            all_claims(second, Resampled(second, metric, draws)),
        ),
        changes=_changes(scores, matched),
        notes=notes,
    )


def _one_method(first: Evidence, second: Evidence) -> tuple[Evidence, str]:
    """B with A's method name where each has one and they differ: then methods are what differs."""
    if len(first.methods) != 1 or len(second.methods) != 1 or first.methods == second.methods:
        return second, ""
    one, two = first.methods[0], second.methods[0]
    cells = second.cells.assign(method=second.cells["method"].replace(two, one))
    return replace(second, cells=cells), f"{two} in B is compared with {one} in A"


def _joined(first: Evidence, second: Evidence, notes: list[str]) -> Evidence:
    """Both studies' cells, their trainings kept apart by a mark before the key."""
    parts = [
        evidence.cells.assign(key=[f"{side}:{key}" for key in evidence.cells["key"]], side=side)
        for side, evidence in zip(SIDES, (first, second), strict=True)
    ]
    same = np.array_equal(first.labels, second.labels) and len(first.labels) > 0
    if not same:
        notes.append(
            "the two do not have the same test sentences (or one is an export): sentences are held "
            "fixed, and intervals are over hosts and seeds"
        )

    def scores(key: str, budget: int) -> np.ndarray | None:
        side, _, own = key.partition(":")
        return (first if side == "A" else second).scores(own, budget)

    return replace(
        first,
        cells=pd.concat(parts, ignore_index=True),
        scores=scores if same else lambda key, budget: None,
        labels=first.labels if same else np.array([], dtype=np.int64),
    )


def _matched(cells: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Runs that both have, one line a run and budget, with both keys and values."""
    at = ["kind", *PAIR, "init", "budget"]
    sides = [cells[cells["side"] == side][[*at, "key", metric]] for side in SIDES]
    return sides[0].merge(sides[1], on=at, suffixes=("_a", "_b"))


def _settings(first: Evidence, second: Evidence) -> list[tuple[str, str, str]]:
    one, two = dict(first.facts), dict(second.facts)
    names = list(dict.fromkeys([*one, *two]))
    return [(n, one.get(n, ""), two.get(n, "")) for n in names if one.get(n) != two.get(n)]


def _coverage(cells: pd.DataFrame, matched: pd.DataFrame, metric: str) -> list[tuple[str, str]]:
    counts = {side: int((cells["side"] == side).sum()) for side in SIDES}
    gap = (matched[f"{metric}_b"] - matched[f"{metric}_a"]).abs()
    return [
        ("measured in both", f"{len(matched):,}"),
        *((f"in {side} alone", f"{counts[side] - len(matched):,}") for side in SIDES),
        ("equal in both", f"{int((gap == 0).sum()):,}"),
        ("largest difference of one", f"{gap.max():.4f}"),
    ]


def _changes(scores: Resampled, matched: pd.DataFrame) -> pd.DataFrame:
    """B minus A: scores of every init, and the advantage over each control, by method and budget.

    p is Holm's over all lines with enough seeds.
    """
    lines = list(_lines(scores, matched))
    known = [line for line in lines if line["seeds"] >= MIN_LEVELS]
    for line, p in zip(known, holm([line["p"] for line in known]), strict=True):
        beyond = line["low"] > 0 or line["high"] < 0
        line["p_holm"] = p
        line["answer"] = "no" if not beyond else "yes" if p < LEVEL else "by its interval only"
    return pd.DataFrame(lines)


def _lines(scores: Resampled, matched: pd.DataFrame) -> Iterator[dict[str, Any]]:
    grid = matched[(matched["kind"] == "grid") & matched["init"].isin(INITS)].reset_index(drop=True)
    for side in ("a", "b"):
        grid[side] = scores.rows(grid.assign(key=grid[f"key_{side}"]))
    methods = sorted(set(grid["method"]))
    wanted = [ALL, *(methods if len(methods) > 1 else [])]
    for method, budget in itertools.product(wanted, sorted(set(grid["budget"]))):
        own = grid[grid["budget"] == budget]
        own = own if method == ALL else own[own["method"] == method]
        at = {"method": method, "budget": int(budget)}
        for init in INITS:
            runs = own[own["init"] == init]
            if len(runs):
                i = scores.mean(runs, runs["b"].to_numpy(), runs["a"].to_numpy())
                yield {"what": init, **at, **_numbers(i, 1)}
        for control in CONTROLS:
            pairs = own[own["init"] == "ported"].merge(
                own[own["init"] == control], on=PAIR, suffixes=("", "_control")
            )
            if len(pairs):
                # (b - b_control) - (a - a_control) is twice the mean of these two rows a pair
                units = pd.concat([pairs, pairs], ignore_index=True)
                plus = np.concatenate([pairs["b"], pairs["a_control"]])
                minus = np.concatenate([pairs["a"], pairs["b_control"]])
                yield {"what": f"ported − {control}", **at,
                       **_numbers(scores.mean(units, plus, minus), 2)}  # fmt: skip


def _numbers(i: Interval, scale: int) -> dict[str, Any]:
    return {"change": scale * i.point, "low": scale * i.low, "high": scale * i.high, "p": i.p,
            "seeds": i.seeds, "runs": i.runs // scale, "p_holm": float("nan"),
            "answer": "not enough data"}  # fmt: skip


# --- for people ------------------------------------------------------------------------------


def claim_view(found: Comparison) -> View:
    """Both studies' answers to the four claims, with the pooled difference that decided first."""
    rows = []
    for one, two in zip(*found.claims, strict=True):
        rows.append((one.name, one.answer, _pooled(one), two.answer, _pooled(two),
                     "" if one.answer == two.answer else "differs"))  # fmt: skip
    return View(("claim", "A", "A's difference", "B", "B's difference", ""), tuple(rows))


def _pooled(claim: Claim) -> str:
    lines = [f for f in claim.findings if f.method == ALL and f.pair == ALL and f.interval]
    return "; ".join(f"{f.budget} steps {f.interval}" for f in lines)


def change_view(found: Comparison) -> View:
    """Every change, B minus A, and whether it is beyond noise."""
    rows = [
        (r["what"], "all methods" if r["method"] == ALL else r["method"], str(r["budget"]),
         signed(r["change"], r["low"], r["high"]),
         "" if np.isnan(r["p_holm"]) else p_cell(r["p_holm"]), str(r["runs"]), r["answer"])
        for r in found.changes.to_dict("records")
    ]  # fmt: skip
    header = ("what", "method", "steps", "B − A [95%]", "Holm p", "runs", "beyond noise")
    return View(header, tuple(rows))


def verdict(found: Comparison) -> str:
    """One sentence: how many of the changes are beyond noise."""
    answers = found.changes["answer"]
    known = int((answers != "not enough data").sum())
    yes, some = int((answers == "yes").sum()), int((answers == "by its interval only").sum())
    if not known:
        return f"Fewer than {MIN_LEVELS} seeds in common: nothing can be said beyond noise."
    return (
        f"{yes} of {known} comparisons differ beyond noise after Holm's adjustment, "
        f"{some} more by their own interval only."
    )


def text(found: Comparison) -> str:
    """The comparison for a terminal."""
    parts = [f"A {found.names[0]} against B {found.names[1]}, by {METRIC_NAMES[found.metric]}"]
    parts += [f"{name}: {value}" for name, value in found.coverage]
    parts += [f"note: {note}" for note in found.notes]
    if found.settings:
        parts += ["", "what was run differently"]
        parts += [f"  {name}\n    A {one}\n    B {two}" for name, one, two in found.settings]
    parts += ["", claim_view(found).text(), "", change_view(found).text(), "", verdict(found)]
    return "\n".join(parts)


def data(found: Comparison) -> dict[str, Any]:
    """The comparison for ``--json``."""
    return {
        "a": found.names[0],
        "b": found.names[1],
        "metric": found.metric,
        "verdict": verdict(found),
        "settings": [dict(zip(("name", "a", "b"), s, strict=True)) for s in found.settings],
        "coverage": dict(found.coverage),
        "notes": found.notes,
        "claims": [
            {"claim": one.name, "a": one.answer, "b": two.answer}
            for one, two in zip(*found.claims, strict=True)
        ],
        "changes": records(found.changes),
    }


def page(found: Comparison) -> str:
    """The comparison as one HTML file without any script."""
    return template("compare.html.j2").render(
        found=found,
        metric=METRIC_NAMES[found.metric],
        verdict=verdict(found),
        claims=claim_view(found),
        changes=change_view(found),
    )
