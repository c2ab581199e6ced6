"""Claims 3 and 4: does the advantage of porting over scratch depend on the method, on the hosts?"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np

from peftport.report.claims.base import (
    ALL,
    UNKNOWN,
    Claim,
    Finding,
    beside,
    better,
    conditions,
    few,
    many,
    once,
    p_text,
    pair_column,
    some,
    steps,
)  # fmt: skip
from peftport.report.evidence import METRIC_NAMES, Evidence
from peftport.report.resample import MIN_LEVELS, Interval, Resampled, holm
from peftport.report.stats import Omnibus, Paired, paired, permutation_test

LEVEL = 0.05
#: with more host pairs than this their means are left to the table
SPELLED_PAIRS = 4


def methods_differ(evidence: Evidence, scores: Resampled) -> Claim:
    """Claim 3. Methods are permuted within seeds; p is Holm-adjusted over the budgets.

    Yes at a budget when adjusted p < 0.05 and the 95% interval of the largest difference between
    two methods excludes 0. Only blocks (hosts, data, seed) that have every method count.
    """
    tests: dict[int, Omnibus] = {}
    lines: list[Finding] = []
    for budget in evidence.claim_budgets:
        pairs = _complete(paired(evidence, scores, "scratch", budget), len(evidence.methods))
        seeds = pairs.units["seed"].to_numpy()
        if len(set(seeds)) < MIN_LEVELS or len(evidence.methods) < 2:
            continue
        method = pairs.units["method"].to_numpy(object)
        level = LEVEL / len(evidence.claim_budgets)
        test = permutation_test(pairs.values(scores), method, seeds, level)
        if test is not None:
            tests[budget] = test
            lines += _between_methods(scores, budget, pairs, test.means)
    lines = _holm_lines(lines)
    known = {budget: test.p for budget, test in tests.items() if test.p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    heads = []
    for budget in evidence.claim_budgets:
        own = [line for line in lines if line.budget == budget]
        heads.append(_head(evidence, scores, budget, tests.get(budget), adjusted.get(budget), own))
    return _claim(
        evidence,
        scores.metric,
        "methods differ",
        "Does the advantage of porting over scratch differ between methods?",
        heads,
        lines,
    )


def _between_methods(
    scores: Resampled, budget: int, pairs: Paired, means: dict[str, float]
) -> list[Finding]:
    """Every two methods, the better one first, the largest difference first."""
    ranked = sorted(means, key=lambda name: -means[name])
    method = pairs.units["method"].to_numpy(object)
    lines = []
    for one, two in itertools.combinations(ranked, 2):
        both = pairs.where(np.isin(method, [one, two]))
        interval = both.mean(scores, first=both.units["method"].to_numpy(object) == one)
        answer, why = better(interval, two)
        name = f"advantage of {one} minus that of {two}"
        lines.append(Finding(name, f"{one}, {two}", ALL, budget, answer, why, interval))
    return sorted(lines, key=lambda line: -line.interval.point if line.interval else 0.0)


def _head(
    evidence: Evidence, scores: Resampled, budget: int, test: Omnibus | None, p: float | None,
    lines: list[Finding],
) -> Finding:  # fmt: skip
    head = Finding("largest difference between methods", ALL, ALL, budget, UNKNOWN, "")
    head = replace(head, beside=beside(evidence, scores.metric, budget))
    if test is None or not lines or lines[0].interval is None:
        return replace(head, why=f"at least 2 methods with {MIN_LEVELS} common seeds are needed")
    largest = lines[0].interval
    means = ", ".join(f"{name} {value:+.3f}" for name, value in test.means.items())
    told = f"mean advantage over scratch: {means}; {lines[0].compared} {largest}"
    head = replace(head, interval=largest)
    if p is None:
        told += f"; {test.blocks} seeds of {len(test.means)} methods cannot reach p = {LEVEL}"
        return replace(head, why=f"{told} at every budget")
    how = "all" if test.exact else "random"
    told += (
        f"; methods permuted within {test.blocks} seeds ({test.labellings:,} labellings, {how}): "
        f"Holm-adjusted {p_text(p)}"
    )
    yes = p < LEVEL and largest.above()
    if p < LEVEL and not yes:
        told += "; no, because the interval of the largest difference includes 0"
    return replace(head, answer="yes" if yes else "no", why=told, p_holm=p)


@dataclass
class _Hosts:
    """What one budget says about hosts: ``tests`` by name with their p."""

    notes: list[str] = field(default_factory=list)
    contrast: Interval | None = None
    tests: dict[str, float] = field(default_factory=dict)


def hosts_matter(evidence: Evidence, scores: Resampled) -> Claim:
    """Claim 4. Two tests a budget, all Holm-adjusted together: same-size against other-size pairs
    (three of each needed), and host pairs permuted within seeds (three needed)."""
    found = {budget: _hosts(evidence, scores, budget) for budget in evidence.claim_budgets}
    family = {(b, name): p for b, part in found.items() for name, p in part.tests.items()}
    adjusted = dict(zip(family, holm(list(family.values())), strict=True))
    heads = []
    for budget, part in found.items():
        own = {name: adjusted[budget, name] for name in part.tests}
        notes = [*part.notes, *(f"{name}: Holm-adjusted {p_text(p)}" for name, p in own.items())]
        yes = any(p < LEVEL for p in own.values())
        heads.append(
            Finding(
                "same-size − other-size pairs", ALL, ALL, budget,
                UNKNOWN if not own else "yes" if yes else "no", "; ".join(notes),
                part.contrast, min(own.values(), default=None),
                beside(evidence, scores.metric, budget),
            )
        )  # fmt: skip
    return _claim(
        evidence,
        scores.metric,
        "host difference matters",
        "Does the advantage of porting over scratch depend on which two hosts it is between?",
        heads,
        [],
    )


def _hosts(evidence: Evidence, scores: Resampled, budget: int) -> _Hosts:
    part = _Hosts()
    pairs = paired(evidence, scores, "scratch", budget)
    hosts, seeds = pair_column(pairs), pairs.units["seed"].to_numpy()
    names, values = sorted(set(hosts)), pairs.values(scores)
    if 0 < len(names) <= SPELLED_PAIRS:
        means = ", ".join(f"{name} {values[hosts == name].mean():+.3f}" for name in names)
        part.notes.append(f"mean advantage over scratch: {means}")
    if len(set(seeds)) < MIN_LEVELS:
        part.notes.append(few(len(set(seeds)), "seed"))
        return part
    same = _same_size(evidence, pairs)
    if same.any() and (~same).any():
        part.contrast = pairs.mean(scores, first=same)
        sides = (len(set(hosts[same])), len(set(hosts[~same])))
        part.notes.append(
            f"same-size pairs ({sides[0]}) minus other-size pairs ({sides[1]}) {part.contrast}"
        )
        if min(sides) >= MIN_LEVELS:
            part.tests["size"] = part.contrast.p
    if len(names) < MIN_LEVELS:
        part.notes.append(f"{few(len(names), 'host pair')} to say more than how these differ")
        return part
    test = permutation_test(values, hosts, seeds, LEVEL / (2 * len(evidence.claim_budgets)))
    if test is not None and test.p is not None:
        part.tests["host pairs permuted within seeds"] = test.p
    return part


def _same_size(evidence: Evidence, pairs: Paired) -> np.ndarray:
    """Whether both hosts of a unit have one size ``[U]``; nothing is where a size is unknown."""
    sizes = evidence.sizes
    units = list(zip(pairs.units["source"], pairs.units["target"], strict=True))
    if any(host not in sizes for unit in units for host in unit):
        return np.zeros(len(units), dtype=bool)
    return np.array([sizes[source] == sizes[target] for source, target in units], dtype=bool)


def _complete(pairs: Paired, methods: int) -> Paired:
    """Only units whose source, target, data and seed have every method."""
    if not len(pairs):
        return pairs
    blocks = pairs.units.groupby(["source", "target", "data", "seed"])["method"]
    return pairs.where(blocks.transform("nunique").to_numpy() == methods)


def _holm_lines(lines: list[Finding]) -> list[Finding]:
    adjusted = holm([line.interval.p for line in lines if line.interval])
    return [replace(line, p_holm=p) for line, p in zip(lines, adjusted, strict=True)]


def _claim(
    evidence: Evidence, metric: str, name: str, question: str, heads: list[Finding],
    lines: list[Finding],
) -> Claim:  # fmt: skip
    told = [f"At {steps(head.budget)}: {head.why}." for head in heads]
    compared = {
        head.budget: (
            f"{METRIC_NAMES[metric]} of ported minus scratch, "
            f"{many(head.interval.runs, 'pair')} of runs, "
            f"{many(head.interval.trainings, 'distinct training')}, "
            f"{many(head.interval.seeds, 'seed')}{conditions(evidence, head.interval)}"
        )
        for head in heads
        if head.interval is not None
    }
    sentences = (*told, *once(compared, "Interval: ")) if told else ("No finished runs.",)
    answer = some([head.answer for head in heads])
    return Claim(name, question, answer, sentences, (*heads, *lines))
