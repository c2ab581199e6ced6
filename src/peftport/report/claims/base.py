"""What a claim and its findings are, and the words in which they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from peftport.report.evidence import ABLATIONS, Evidence, pair_name
from peftport.report.resample import FACTORS, MIN_LEVELS, Interval
from peftport.report.stats import Paired

Answer = Literal["yes", "no", "not enough data"]
UNKNOWN: Answer = "not enough data"
ALL = "all"


@dataclass(frozen=True)
class Finding:
    """One comparison at one budget.

    Attributes:
        compared: what minus what.
        method, pair: what it is about; ``all`` where it pools.
        answer, why: the answer of this line and its reason.
        interval: the difference; None where nothing could be computed.
        p_holm: p adjusted over the family that the claim names.
        beside: mean scores shown next to it: ported, controls, ablations, floor.
    """

    compared: str
    method: str
    pair: str
    budget: int
    answer: Answer
    why: str
    interval: Interval | None = None
    p_holm: float | None = None
    beside: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One of the four claims: its question, its answer, and the sentences that state exactly what
    was compared; ``findings`` holds every line behind it, the pooled ones first."""

    name: str
    question: str
    answer: Answer
    sentences: tuple[str, ...]
    findings: tuple[Finding, ...]


def better(interval: Interval, control: str) -> tuple[Answer, str]:
    """Answer to "is the difference above 0?" and why."""
    if interval.seeds < MIN_LEVELS:
        return UNKNOWN, few(interval.seeds, "seed")
    if interval.above():
        return "yes", "the interval is above 0"
    if interval.below():
        return "no", f"the interval is below 0: {control} is better"
    return "no", "not shown: the interval includes 0"


def together(answers: Sequence[Answer]) -> Answer:
    """Yes only when every budget says yes."""
    if not answers or UNKNOWN in answers:
        return UNKNOWN
    return "yes" if set(answers) == {"yes"} else "no"


def some(answers: Sequence[Answer]) -> Answer:
    """Yes when a budget says yes; its p is adjusted for the number of budgets."""
    return "yes" if "yes" in answers else "no" if "no" in answers else UNKNOWN


def beside(
    evidence: Evidence, metric: str, budget: int, method: str = ALL, pair: str = ALL
) -> dict[str, float]:
    """Mean score of every init, ablation and floor for one method (or all) and pair (or all)."""
    cells = evidence.at(budget)
    if method != ALL:
        cells = cells[cells["method"].isin([method, ""])]
    if pair != ALL:
        named = zip(cells["source"], cells["target"], strict=True)
        cells = cells[[pair_name(source, target) == pair for source, target in named]]
    means = cells.groupby("init")[metric].mean()
    order = ("ported", "scratch", "sampled", *ABLATIONS)
    found = {init: float(means[init]) for init in order if init in means.index}
    floors = [evidence.floor(target, metric)[1] for target in sorted(cells["target"].unique())]
    return {**found, "floor": float(np.mean(floors))} if floors else found


def pair_column(pairs: Paired) -> np.ndarray:
    """Host pair of every unit, as text ``[U]``."""
    units = pairs.units
    names = [pair_name(s, t) for s, t in zip(units["source"], units["target"], strict=True)]
    return np.array(names, dtype=object)


def conditions(evidence: Evidence, interval: Interval) -> str:
    """What the interval holds fixed, as a clause."""
    fixed = [
        many(interval.levels[factor], FACTORS[factor][:-1])
        for factor in FACTORS
        if factor not in interval.resampled
    ]
    if evidence.one_source:
        fixed.append("one source module per method and source host")
    return f"; conditional on {', '.join(fixed)}" if fixed else ""


def once(told: Mapping[int, str], start: str) -> list[str]:
    """One sentence where all budgets say the same, else one a budget."""
    if len(set(told.values())) == 1:
        return [f"{start}{next(iter(told.values()))}."]
    return [f"{start}at {steps(budget)} {text}." for budget, text in told.items()]


def steps(budget: int) -> str:
    """``0 steps (zero-shot)``"""
    return f"{budget} steps" + (" (zero-shot)" if budget == 0 else "")


def many(count: int, word: str) -> str:
    """``1 seed``, ``3 seeds``"""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def few(count: int, word: str) -> str:
    return f"{many(count, word)}, at least {MIN_LEVELS} needed"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
