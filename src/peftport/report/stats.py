"""The report's numbers: means, paired differences, recovery, and a test over groups.

The estimand is the mean difference of a metric between ported modules and a control (scratch,
sampled), paired by method, source, target, data and seed. Intervals are :mod:`resample`'s.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from peftport.report.evidence import PAIR, Evidence
from peftport.report.resample import Interval, Resampled

#: at most this many permutations are enumerated; above, as many are drawn
PERMUTATIONS = 20_000


@dataclass(frozen=True)
class Paired:
    """Ported runs with their control: ``units`` are identified by PAIR ``[U]``; ``plus`` and
    ``minus`` are the row numbers of the two trainings ``[U]``."""

    units: pd.DataFrame
    plus: np.ndarray
    minus: np.ndarray

    def __len__(self) -> int:
        return len(self.units)

    def where(self, mask: np.ndarray) -> Paired:
        return Paired(self.units[mask].reset_index(drop=True), self.plus[mask], self.minus[mask])

    def values(self, scores: Resampled) -> np.ndarray:
        """Difference of each unit ``[U]``."""
        return np.asarray(scores.point[self.plus] - scores.point[self.minus])

    def mean(self, scores: Resampled, first: np.ndarray | None = None) -> Interval:
        """Mean difference; with ``first``, the mean of those units minus the mean of the rest."""
        return scores.mean(self.units, self.plus, self.minus, first)


def paired(evidence: Evidence, scores: Resampled, control: str, budget: int) -> Paired:
    """Every ported run with the control run of the same method, source, target, data and seed.

    A pair enters only when both runs are finished.
    """
    cells = evidence.grid.dropna(subset=[scores.metric])
    cells = cells[cells["budget"] == budget]
    sides = [cells[cells["init"] == init] for init in ("ported", control)]
    both = sides[0].merge(sides[1], on=PAIR, suffixes=("", "_control"))
    other = pd.DataFrame({"key": both["key_control"], "budget": budget})
    return Paired(both[PAIR], scores.rows(both), scores.rows(other))


def mean_of(scores: Resampled, cells: pd.DataFrame) -> Interval | None:
    """Mean of the metric over runs at one budget, with its interval; None without runs."""
    cells = cells[cells[scores.metric].notna()]
    if cells.empty:
        return None
    return scores.mean(cells, scores.rows(cells))


@dataclass(frozen=True)
class Recovery:
    """How much of the way from the floor to a natively trained module a ported one keeps.

    ``ratio`` is None where it is undefined, and ``why`` says so; the points are always there.
    """

    ported: Interval
    native: Interval
    floor: float
    ratio: Interval | None
    why: str


def recovery(
    scores: Resampled, ported: pd.DataFrame, native: pd.DataFrame, floor: float
) -> Recovery | None:
    """(ported - floor) / (native - floor), a ratio of means.

    Numerator and denominator are resampled together: the same sentences, seeds and hosts in every
    draw. Undefined unless native - floor exceeds its own 95% interval (the lower end is above 0).

    Returns:
        None where there is no ported or no native module.
    """
    top, bottom = mean_of(scores, ported), mean_of(scores, native)
    if top is None or bottom is None:
        return None
    return share(top, bottom, floor)


def share(top: Interval, bottom: Interval, floor: float) -> Recovery:
    """:func:`recovery` of means that are known: ported and native."""
    if np.isnan(floor):
        return Recovery(top, bottom, floor, None, "undefined: the floor is unknown")
    if not bottom.above(floor):
        why = f"undefined: native {bottom.point:.3f} is not above the floor {floor:.3f} for certain"
        return Recovery(top, bottom, floor, None, why)
    draws = (top.draws - floor) / (bottom.draws - floor)
    low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    ratio = Interval(
        (top.point - floor) / (bottom.point - floor), low, high, float("nan"),
        top.runs + bottom.runs, top.trainings + bottom.trainings, top.levels, top.resampled,
        "bootstrap", top.sentences, draws,
    )  # fmt: skip
    return Recovery(top, bottom, floor, ratio, "")


@dataclass(frozen=True)
class Omnibus:
    """Result of a permutation test over groups.

    Attributes:
        p: p value; None where even the most extreme labelling could not reach the level.
        means: mean over the units of every group.
        blocks: number of blocks (seeds).
        labellings: labellings that were counted.
        exact: whether these were all.
    """

    p: float | None
    means: dict[str, float]
    blocks: int
    labellings: int
    exact: bool


def permutation_test(
    values: np.ndarray, groups: np.ndarray, blocks: np.ndarray, level: float = 0.05
) -> Omnibus | None:
    """Do groups differ? Group labels are permuted within blocks.

    Values are averaged to a table group x block; the statistic is the variance of the group means;
    under the null the labels within a block are exchangeable. All labellings are enumerated where
    there are at most 20,000, else that many are drawn at random (the observed one is counted).

    Args:
        values, groups, blocks: one number, group and block per unit ``[U]``. Blocks are seeds:
            everything that shares a seed moves together.
        level: the p that must be possible, 0.05 over the number of tests in the family.
    Returns:
        None with fewer than two groups or no complete block.
    Source: Pitman 1938 (Biometrika 29), randomised blocks.
    """
    table = pd.DataFrame({"v": values, "g": groups, "b": blocks})
    table = table.pivot_table(index="g", columns="b", values="v", aggfunc="mean").dropna(axis=1)
    grid = table.to_numpy(float)  # [G, S]
    many, seeds = grid.shape
    if many < 2 or seeds < 1:
        return None
    means = {str(g): float(values[groups == g].mean()) for g in table.index}
    orders = 1
    for size in range(2, many + 1):
        orders *= size
        if orders > PERMUTATIONS:
            break
    # the labels of one block may stay: only labellings relative to it differ
    exact = orders <= PERMUTATIONS and orders ** (seeds - 1) <= PERMUTATIONS
    if exact:
        if level * orders ** (seeds - 1) < 1:
            return Omnibus(None, means, seeds, orders ** (seeds - 1), True)
        shuffles = [grid[list(order)] for order in itertools.permutations(range(many))]
        totals = grid[:, :1][None]  # [L, G, 1] sums over the blocks so far
        for seed in range(1, seeds):
            column = np.stack([shuffle[:, seed : seed + 1] for shuffle in shuffles])  # [O, G, 1]
            totals = (totals[:, None] + column[None]).reshape(-1, many, 1)
        spread = totals[..., 0].var(axis=1)
    else:
        rng = np.random.default_rng(0)
        drawn = rng.permuted(np.broadcast_to(grid, (PERMUTATIONS, many, seeds)), axis=1)
        spread = np.concatenate([[grid.sum(axis=1).var()], drawn.sum(axis=2).var(axis=1)])
    observed = grid.sum(axis=1).var()
    p = float((spread >= observed * (1 - 1e-9)).mean())
    return Omnibus(p, means, seeds, len(spread), exact)
