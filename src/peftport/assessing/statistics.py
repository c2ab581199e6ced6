"""Intervals of what a few seeds scored on one set of test texts. numpy only.

A score is a mean over texts: of hits within every class (balanced accuracy), or of the negative
loss of every token. Texts and seeds are resampled together by the report's Bayesian bootstrap
(:mod:`peftport.report.resample`), and the wider of it and Student's t over the seeds is used: the
bootstrap knows both kinds of variation but trusts few seeds too much, t knows seeds alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import stats

from peftport.report.resample import MIN_LEVELS, level_weights

DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval and the two-sided p of "equals 0"."""

    point: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.point:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Curves:
    """What all inits scored, text by text.

    Attributes:
        values: init (``ported``, ``sampled``, ``scratch``) and budget to the value of every seed
            and text  [S, N]; NaN in the whole row of a seed whose training failed.
        native: values of native modules  [S, N]; None where there are none.
        floor: values of the host alone, or of a constant prediction  [N].
        strata: class of every text  [N]; all 0 where a score is one mean over all texts.
        sizes: weight of every text within its stratum  [N], e.g. its tokens.
    """

    values: Mapping[str, Mapping[int, np.ndarray]]
    native: np.ndarray | None
    floor: np.ndarray
    strata: np.ndarray
    sizes: np.ndarray

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        return tuple(sorted(self.values["ported"]))

    @property
    def seeds(self) -> int:
        return len(self.values["ported"][self.budgets[0]])


@dataclass
class Resampled:
    """Curves under B resamplings of texts and seeds.

    Args:
        curves: what was scored.
        draws: B.
        seed: of the resampling.
    """

    curves: Curves
    draws: int = DRAWS
    seed: int = 0
    _weights: np.ndarray = field(init=False, repr=False)
    _drawn: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        count = len(self.curves.strata)
        rng = np.random.default_rng(self.seed)
        drawn = np.ones((self.draws, count))
        if count >= MIN_LEVELS:
            drawn = level_weights(rng, self.draws, count)
        self._drawn = self._normal(drawn)  # [B, N]
        self._weights = self._normal(np.ones((1, count)))[0]  # [N]

    def _normal(self, weights: np.ndarray) -> np.ndarray:
        """Weights [B, N] that turn values into the score: the mean over strata of means."""
        weights = weights * self.curves.sizes
        levels = np.unique(self.curves.strata)
        for level in levels:
            own = self.curves.strata == level
            weights[:, own] /= len(levels) * weights[:, own].sum(axis=1, keepdims=True)
        return weights

    def score(self, values: np.ndarray) -> np.ndarray:
        """Score of every seed  [..., N] -> [...]."""
        return np.asarray(values @ self._weights)

    def mean(self, values: np.ndarray) -> Interval:
        """Mean over the seeds that have values  [S, N] of a score or of a difference."""
        rows = values[~np.isnan(values).any(axis=1)]
        if not len(rows):
            return Interval(float("nan"), float("-inf"), float("inf"), 1.0)
        return self._wider(self.score(rows), self._mean_draws(rows))

    def recovery(self, ported: np.ndarray) -> Interval | None:
        """(ported - floor) / (native - floor), a ratio of means; numerator and denominator are
        resampled together. None unless native - floor is above 0 beyond its interval."""
        curves = self.curves
        if curves.native is None:
            return None
        both = ~np.isnan(ported).any(axis=1) & ~np.isnan(curves.native).any(axis=1)
        top, bottom = ported[both] - curves.floor, curves.native[both] - curves.floor  # [S, N]
        if not both.any() or not self.mean(bottom).low > 0:
            return None
        over, under = self.score(top), self.score(bottom)  # [S]
        ratio = over.mean() / under.mean()
        # linear around the means: what a seed adds to the ratio
        levels = ratio + (over - ratio * under) / under.mean()
        return self._wider(levels, self._mean_draws(top) / self._mean_draws(bottom), ratio)

    def _mean_draws(self, rows: np.ndarray) -> np.ndarray:
        """Weighted means of rows  [S, N] -> [B]; as many seeds always get the same weights."""
        scores = self._drawn @ rows.T  # [B, S]
        if len(rows) < MIN_LEVELS:
            return np.asarray(scores.mean(axis=1))
        rng = np.random.default_rng([self.seed, len(rows)])
        return np.asarray((scores * level_weights(rng, self.draws, len(rows))).mean(axis=1))

    @staticmethod
    def _wider(levels: np.ndarray, draws: np.ndarray, point: float | None = None) -> Interval:
        """The wider of the bootstrap's interval and t's over the seeds; the larger p."""
        point = float(levels.mean()) if point is None else point
        low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
        tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
        p = min(1.0, (2 * tail + 1) / (len(draws) + 1))
        if len(levels) >= MIN_LEVELS:
            error = float(levels.std(ddof=1)) / len(levels) ** 0.5
            half = float(stats.t.ppf(0.975, len(levels) - 1)) * error
            if 2 * half > high - low:
                low, high = point - half, point + half
            if error > 0:
                p = max(p, 2 * float(stats.t.sf(abs(point) / error, len(levels) - 1)))
        return Interval(point, low, high, p)

    def saved_steps(self) -> Interval | None:
        """Steps that a ported module needs less than scratch to reach scratch's final score, by
        straight lines between the budgets. None where it does not get there within them."""
        budgets = np.array(self.curves.budgets, dtype=float)
        inits = {
            init: [by[b][~np.isnan(by[b]).any(axis=1)] for b in self.curves.budgets]
            for init, by in self.curves.values.items()
            if init in ("ported", "scratch")
        }
        if not all(len(rows) for by in inits.values() for rows in by):
            return None
        means = {i: np.array([self.score(r).mean() for r in by]) for i, by in inits.items()}
        point = budgets[-1] - _reached(budgets, means["ported"], means["scratch"][-1])
        if np.isnan(point):
            return None
        lines = np.stack([self._mean_draws(rows) for rows in inits["ported"]], axis=1)  # [B, G]
        goals = self._mean_draws(inits["scratch"][-1])  # [B]
        saved = np.array(
            [budgets[-1] - _reached(budgets, y, g) for y, g in zip(lines, goals, strict=True)]
        )
        # a draw that does not get there saves nothing
        low, high = (float(q) for q in np.quantile(np.nan_to_num(saved), [0.025, 0.975]))
        return Interval(float(point), low, high, float("nan"))


def _reached(budgets: np.ndarray, scores: np.ndarray, goal: float) -> float:
    """Where a line through (budget, score) first reaches a goal; NaN where it never does."""
    for at, score in enumerate(scores):
        if score >= goal:
            if at == 0:
                return float(budgets[0])
            before, step = scores[at - 1], budgets[at] - budgets[at - 1]
            return float(budgets[at - 1] + step * (goal - before) / (score - before))
    return float("nan")
