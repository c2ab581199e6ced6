"""Claims 1 and 2: ported modules against one control."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from peftport.report.claims.base import (
    ALL,
    UNKNOWN,
    Claim,
    Finding,
    beside,
    better,
    conditions,
    many,
    once,
    pair_column,
    steps,
    together,
)  # fmt: skip
from peftport.report.evidence import METRIC_NAMES, Evidence, sentence_count
from peftport.report.resample import Resampled, holm
from peftport.report.stats import Paired, paired

WORDS = {
    "scratch": "modules trained from scratch",
    "sampled": "modules sampled from the ported module's parameter distribution",
}
#: with more host pairs than this the sentences stay with the pooled answer
SPELLED_PAIRS = 4


def beats(evidence: Evidence, scores: Resampled, control: str) -> Claim:
    """Is ported better than ``control`` at every budget that decides?

    Lines: everything pooled, every method, every method on every pair, at every budget. The claim's
    answer is the pooled line's at the deciding budgets; p is Holm-adjusted over the pooled line and
    the methods at these budgets.
    """
    lines: list[Finding] = []
    for budget in evidence.budgets:
        pairs = paired(evidence, scores, control, budget)
        for method, hosts, mask in _groups(evidence, pairs):
            lines.append(_line(evidence, scores, control, budget, method, hosts, pairs.where(mask)))
    deciding = evidence.claim_budgets
    lines = _with_holm(lines, deciding)
    pooled = [f for f in lines if f.budget in deciding and f.method == ALL]
    return Claim(
        name=f"ported > {control}",
        question=f"Do ported modules beat {WORDS[control]}?",
        answer=together([line.answer for line in pooled]) if len(deciding) > 1 else UNKNOWN,
        sentences=(
            *_sentences(evidence, scores.metric, pooled),
            *_by_method(evidence, [f for f in lines if f.budget in deciding]),
        ),
        findings=tuple(lines),
    )


def _groups(evidence: Evidence, pairs: Paired) -> Iterator[tuple[str, str, np.ndarray]]:
    method, hosts = pairs.units["method"].to_numpy(object), pair_column(pairs)
    yield ALL, ALL, np.ones(len(pairs), dtype=bool)
    for name in evidence.methods:
        yield name, ALL, method == name
    for name in evidence.methods:
        for pair in sorted(set(hosts)):
            yield name, pair, (method == name) & (hosts == pair)


def _line(
    evidence: Evidence, scores: Resampled, control: str, budget: int, method: str, hosts: str,
    pairs: Paired,
) -> Finding:  # fmt: skip
    compared, why = f"ported − {control}", "no finished pair of runs"
    line = Finding(compared, method, hosts, budget, UNKNOWN, why)
    if not len(pairs):
        return line
    interval = pairs.mean(scores)
    answer, why = better(interval, control)
    others = beside(evidence, scores.metric, budget, method, hosts)
    return replace(line, answer=answer, why=why, interval=interval, beside=others)


def _with_holm(lines: list[Finding], budgets: Sequence[int]) -> list[Finding]:
    family = {
        i: f.interval.p
        for i, f in enumerate(lines)
        if f.interval and f.pair == ALL and f.budget in budgets
    }
    adjusted = dict(zip(family, holm(list(family.values())), strict=True))
    return [
        replace(line, p_holm=adjusted[i]) if i in adjusted else line for i, line in enumerate(lines)
    ]


def _sentences(evidence: Evidence, metric: str, lines: Sequence[Finding]) -> list[str]:
    """The pooled difference at each deciding budget, then exactly what was compared."""
    told, compared = [], {}
    for line in lines:
        i = line.interval
        if i is None:
            told.append(f"At {steps(line.budget)}: {line.why}.")
            continue
        told.append(f"At {steps(line.budget)}: {line.compared} is {i}; {line.why}.")
        compared[line.budget] = (
            f"{METRIC_NAMES[metric]} of {many(i.runs, 'pair')} of runs, matched by method, hosts, "
            f"data and seed, {many(i.trainings, 'distinct training')}, {many(i.seeds, 'seed')}, "
            f"{sentence_count(evidence)}{conditions(evidence, i)}"
        )
    return [*told, *once(compared, "Compared: ")]


def _by_method(evidence: Evidence, lines: Sequence[Finding]) -> Iterator[str]:
    """Which methods say yes at every deciding budget: pooled, then on each pair."""
    hosts = sorted({line.pair for line in lines} - {ALL})
    for pair in [ALL, *(hosts if 1 < len(hosts) <= SPELLED_PAIRS else [])]:
        told: dict[str, list[str]] = {"yes": [], "no": [], UNKNOWN: []}
        for method in evidence.methods:
            own = [f for f in lines if f.method == method and f.pair == pair]
            reasons = "; ".join(f"{f.budget} steps: {f.why}" for f in own if f.answer != "yes")
            verdict = together([f.answer for f in own])
            told[verdict].append(f"{method} ({reasons})" if reasons else method)
        parts = [f"{answer} for {', '.join(names)}" for answer, names in told.items() if names]
        yield f"{'Pairs pooled' if pair == ALL else pair}: {'; '.join(parts)}."
