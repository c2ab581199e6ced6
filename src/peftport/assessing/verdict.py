"""What an adapter is worth on its new host, as one of a few answers. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from peftport.assessing.statistics import Curves, Interval, Resampled
from peftport.errors import InputError
from peftport.report.resample import holm

WORKS = "works"
AFTER = "works after"
AHEAD = "ahead of scratch"
NO_BETTER = "no better than scratch"
WORSE = "worse than scratch"
UNKNOWN = "can't tell"
#: in the order in which they are asked
ANSWERS = (WORKS, AFTER, AHEAD, NO_BETTER, WORSE, UNKNOWN)
CONTROLS = ("scratch", "sampled")


@dataclass(frozen=True)
class Thresholds:
    """Where the answers begin.

    Attributes:
        accept: recovery that counts as working; its interval must lie above.
        margin: lead over scratch, in points of the score, that is worth having.
        level: of the tests against the controls, after Holm's correction over the budgets.
    """

    accept: float = 0.9
    margin: float = 0.05
    level: float = 0.05

    def __post_init__(self) -> None:
        for name, low, high in (("accept", 0, 10), ("margin", 0, 10), ("level", 0, 1)):
            if not low < getattr(self, name) < high:
                raise InputError(f"{name} must lie in {low}..{high}, got {getattr(self, name)}")

    def __str__(self) -> str:
        return (
            f"works: recovery's interval above {self.accept:g}; ahead or worse: Holm's p below "
            f"{self.level:g}; no better: any lead surely below {self.margin:g}"
        )


@dataclass(frozen=True)
class Compared:
    """A ported module minus a control at one budget; ``holm`` is p corrected over the budgets."""

    difference: Interval
    holm: float

    def ahead(self, level: float) -> bool:
        return self.difference.low > 0 and self.holm < level

    def behind(self, level: float) -> bool:
        return self.difference.high < 0 and self.holm < level


@dataclass(frozen=True)
class Row:
    """One budget: mean score of every init, recovery, and the comparison with every control."""

    budget: int
    scores: Mapping[str, Interval]
    recovery: Interval | None
    against: Mapping[str, Compared]


@dataclass(frozen=True)
class Judgement:
    """The answer and what it rests on.

    Attributes:
        answer: one of :data:`ANSWERS`.
        steps: the budget that it is about; None where it is about all.
        why: one sentence.
        rows: one a budget, ascending.
        native, floor: score of natively trained modules and of the host alone.
        saved: steps saved to reach scratch's final score; None where it is not reached.
        failed: trainings that diverged, by init.
        thresholds: what was asked for.
    """

    answer: str
    steps: int | None
    why: str
    rows: tuple[Row, ...]
    native: Interval | None
    floor: float
    saved: Interval | None
    failed: Mapping[str, int]
    thresholds: Thresholds

    @property
    def short(self) -> str:
        """``works after 30 steps``"""
        if self.answer == AFTER:
            return f"works after {self.steps} steps"
        if self.answer == UNKNOWN:
            return "can't tell with this much data"
        return "works as it is" if self.answer == WORKS else self.answer

    def at(self, budget: int) -> Row:
        return next(row for row in self.rows if row.budget == budget)

    def accepted(self, budget: int) -> bool:
        """Whether recovery is above the threshold beyond its interval at a budget."""
        recovery = self.at(budget).recovery
        return recovery is not None and recovery.low > self.thresholds.accept

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "short": self.short}


def judge(curves: Curves, thresholds: Thresholds | None = None, *, seed: int = 0) -> Judgement:
    """Answer, in this order: works as it is; works after N steps; ahead of scratch, but short of
    working; no better than scratch; worse than scratch; can't tell.

    ``works after`` and ``ahead`` ask for a lead over both controls: a module that noise of its own
    distribution equals carries nothing, however well noise trains.

    Args:
        curves: what was measured.
        thresholds: where the answers begin.
        seed: of the resampling.
    """
    wanted = thresholds or Thresholds()
    drawn = Resampled(curves, seed=seed)
    rows = _rows(curves, drawn)
    answer, steps, why = _answer(rows, wanted, curves.native is not None)
    failed = {
        init: int(np.isnan(by[max(by)]).any(axis=1).sum()) for init, by in curves.values.items()
    }
    if curves.native is not None:
        failed["native"] = int(np.isnan(curves.native).any(axis=1).sum())
    return Judgement(
        answer,
        steps,
        why,
        rows,
        None if curves.native is None else drawn.mean(curves.native),
        float(drawn.score(curves.floor)),
        drawn.saved_steps(),
        {init: count for init, count in failed.items() if count},
        wanted,
    )


def _rows(curves: Curves, drawn: Resampled) -> tuple[Row, ...]:
    ported, budgets = curves.values["ported"], curves.budgets
    against: dict[str, list[Compared]] = {}
    for control in CONTROLS:
        found = [drawn.mean(ported[b] - curves.values[control][b]) for b in budgets]
        corrected = holm([interval.p for interval in found])
        against[control] = [Compared(i, p) for i, p in zip(found, corrected, strict=True)]
    return tuple(
        Row(
            budget,
            {init: drawn.mean(by[budget]) for init, by in curves.values.items()},
            drawn.recovery(ported[budget]),
            {control: found[at] for control, found in against.items()},
        )
        for at, budget in enumerate(budgets)
    )


def _answer(rows: tuple[Row, ...], wanted: Thresholds, native: bool) -> tuple[str, int | None, str]:
    accept, level = wanted.accept, wanted.level
    for row in rows:
        enough = row.recovery is not None and row.recovery.low > accept
        lead = all(row.against[control].ahead(level) for control in CONTROLS)
        if enough and row.budget == 0:
            return WORKS, 0, f"recovery {row.recovery} is above {accept:g} without a step"
        if enough and lead:
            why = f"recovery {row.recovery} is above {accept:g}, and it is ahead of both controls"
            return AFTER, row.budget, why
    ahead = [row for row in rows if all(row.against[c].ahead(level) for c in CONTROLS)]
    scratch = {row.budget: row.against["scratch"] for row in rows}
    if ahead:
        where = ", ".join(str(row.budget) for row in ahead)
        short = "no recovery is known without native modules"
        if native:
            short = f"recovery is not surely above {accept:g} where it is ahead"
        why = f"by {scratch[ahead[0].budget].difference}, and ahead of sampled, at {where} steps"
        return AHEAD, ahead[0].budget, f"{why}; {short}"
    behind = [budget for budget, found in scratch.items() if found.behind(level)]
    if not behind and all(f.difference.high < wanted.margin for f in scratch.values()):
        return (
            NO_BETTER,
            None,
            f"a lead over scratch of {wanted.margin:g} is excluded at any budget",
        )
    if behind:
        where = ", ".join(map(str, behind))
        return (
            WORSE,
            behind[0],
            f"by {scratch[behind[0]].difference} at {where} steps",
        )
    leads = "; ".join(f"{found.difference} at {budget}" for budget, found in scratch.items())
    return (
        UNKNOWN,
        None,
        f"ported minus scratch: {leads} steps; more seeds or test texts would tell",
    )
