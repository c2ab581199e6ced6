"""Intervals: resampling of test sentences, seeds and hosts, and t over their means.

**Weights.** A resampling factor with n >= 3 levels (test sentences, seeds, source hosts, target
hosts) gets random level weights from a Dirichlet distribution with concentration (n - 2) / n
(times n, so that their mean is 1). This is the Bayesian bootstrap with the concentration that
makes the variance of a weighted mean equal s^2 / n, the unbiased estimate; with concentration 1
three levels would give half of it. The weight of a run is the product over its factors, so runs
that share a host, a seed or a training move together. A factor with fewer than three levels is
held fixed, and the interval is conditional on them.

Source: Rubin 1981, The Bayesian bootstrap (Ann. Stat. 9); Owen & Eckles 2012, Bootstrapping data
arrays of arbitrary order (Ann. Appl. Stat. 6), for products of weights over crossed factors.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from peftport.report.evidence import Evidence

DRAWS = 2000
MIN_LEVELS = 3
#: sorted levels of a factor, and the level number of every unit ``[U]``
Coded = tuple[list[Any], np.ndarray]
FACTORS = {"seed": "seeds", "source": "source hosts", "target": "target hosts"}


@dataclass(frozen=True)
class Interval:
    """A mean or a difference of means with its 95% interval.

    Attributes:
        point, low, high: estimate and interval.
        p: two-sided p of "equals 0", the larger of the bootstrap's and the t-tests'.
        runs: runs (or pairs of runs) that were averaged.
        trainings: distinct trainings among them.
        levels: factor to its number of levels.
        resampled: factors whose levels were resampled; the others were held fixed.
        rule: which interval was the wider one and is reported: ``bootstrap`` or ``t over seeds``.
        sentences: whether test sentences were resampled too (they are unknown to an export).
    """

    point: float
    low: float
    high: float
    p: float
    runs: int
    trainings: int
    levels: dict[str, int]
    resampled: tuple[str, ...]
    rule: str
    sentences: bool
    draws: np.ndarray = field(repr=False, compare=False)

    @property
    def seeds(self) -> int:
        return self.levels["seed"]

    def above(self, bound: float = 0.0) -> bool:
        return self.low > bound

    def below(self, bound: float = 0.0) -> bool:
        return self.high < bound

    def __str__(self) -> str:
        return f"{self.point:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def level_weights(rng: np.random.Generator, draws: int, n: int) -> np.ndarray:
    """Random weights of n levels, mean 1 in every draw: ``[B, n]``."""
    weights = rng.gamma((n - 2) / n, size=(draws, n))
    return weights / weights.mean(axis=1, keepdims=True)


def contributions(
    metric: str, logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float, bool]:
    """A metric as means of one number per sentence.

    The metric is ``offset + sum over groups of mean(value in group)``, where the groups are the
    classes (third result True) or all sentences at once. Accuracy and balanced accuracy are exact.
    AUC is exact at equal weights and linear around them: the placements of each sentence among the
    other class, as in DeLong et al. 1988 (Biometrics 44), eq. 3 to 5; ties count one half.

    Args:
        logits: class logits ``[N, C]``; AUC needs C = 2.
        labels: true classes ``[N]``.
    Returns:
        values ``[N]``, offset, whether groups are classes.
    """
    if metric in ("accuracy", "balanced_accuracy"):
        hit = (logits.argmax(axis=1) == labels).astype(float)
        if metric == "accuracy":
            return hit, 0.0, False
        return hit / len(np.unique(labels)), 0.0, True
    margin = logits[:, 1].astype(float) - logits[:, 0]
    positive = labels == 1
    values = np.empty(len(labels))
    for own, other, sign in ((positive, ~positive, 1.0), (~positive, positive, -1.0)):
        rest = np.sort(margin[other])
        below = np.searchsorted(rest, margin[own], side="left")
        upto = np.searchsorted(rest, margin[own], side="right")
        share = (below + upto) / (2.0 * len(rest))
        values[own] = share if sign > 0 else 1.0 - share
    auc = float(values[positive].mean())
    return values, -auc, True


class Resampled:
    """One metric of every training at every budget, under B resamplings of the test sentences.

    Attributes:
        point: the metric itself ``[R]``.
        draws: the metric under each resampling ``[R, B]``: a run's draws lie side by side.
        unlike: trainings whose recomputed metric differs from the stored one by more than 1e-6.
    """

    def __init__(self, evidence: Evidence, metric: str, draws: int = DRAWS, seed: int = 0) -> None:
        self.metric = metric
        self.size = draws
        self._seed = seed
        self._levels: dict[int, np.ndarray] = {}
        self.sentences = len(evidence.labels) > 0
        cells = evidence.cells.dropna(subset=[metric])
        cells = cells.drop_duplicates(["key", "budget"])
        keys, budgets = cells["key"].to_numpy(object), cells["budget"].to_numpy()
        self._rows = {(k, int(b)): i for i, (k, b) in enumerate(zip(keys, budgets, strict=True))}
        self._keys = keys
        self.point = cells[metric].to_numpy(float)
        self.one_class = np.full(len(cells), np.nan)  # unknown without class scores
        self.unlike: list[str] = []
        if not self.sentences:
            self.draws = np.broadcast_to(self.point[:, None], (len(self.point), draws))
            return
        labels = evidence.labels
        values = np.zeros((len(cells), len(labels)), dtype=np.float64)  # [R, N]
        offset = self.point.copy()  # without scores the stored value stands still
        by_class = metric != "accuracy"
        for (key, budget), row in self._rows.items():
            logits = evidence.scores(key, budget)
            if logits is None or (metric == "auc" and logits.shape[1] != 2):
                continue
            values[row], offset[row], by_class = contributions(metric, logits, labels)
            self.one_class[row] = len(np.unique(logits.argmax(axis=1))) == 1
            groups = len(np.unique(labels)) if by_class else 1
            again = offset[row] + self._equal(labels, by_class) @ values[row]
            if groups and abs(again - self.point[row]) > 1e-6:
                self.unlike.append(f"{key} at {budget}")
        self.draws = values @ self._sentence_weights(labels, by_class).T + offset[:, None]  # [R, B]

    @staticmethod
    def _equal(labels: np.ndarray, by_class: bool) -> np.ndarray:
        """Weights ``[N]`` that turn values into the metric: one over the size of the group."""
        if not by_class:
            return np.full(len(labels), 1.0 / len(labels))
        _, group, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return 1.0 / counts[group]

    def _sentence_weights(self, labels: np.ndarray, by_class: bool) -> np.ndarray:
        """Resampled sentence weights ``[B, N]`` that sum to 1 in every group."""
        weights = level_weights(np.random.default_rng(self._seed), self.size, len(labels))
        groups = np.unique(labels) if by_class else [None]
        for group in groups:
            own = slice(None) if group is None else labels == group
            weights[:, own] /= weights[:, own].sum(axis=1, keepdims=True)
        return weights

    def rows(self, cells: pd.DataFrame) -> np.ndarray:
        """Row number of the training and budget behind each cell ``[U]``."""
        found = zip(cells["key"], cells["budget"], strict=True)
        return np.array([self._rows[key, int(budget)] for key, budget in found], dtype=int)

    def unit_weights(self, levels: Mapping[str, Coded]) -> tuple[np.ndarray, tuple[str, ...]]:
        """Product weights of units ``[U, B]`` and the factors that were resampled."""
        weights = np.ones((1, self.size))
        resampled = []
        for factor, (names, codes) in levels.items():
            if len(names) < MIN_LEVELS:
                continue
            resampled.append(factor)
            mark = zlib.crc32(repr((factor, [str(name) for name in names])).encode())
            if mark not in self._levels:
                rng = np.random.default_rng([self._seed, mark])
                self._levels[mark] = np.ascontiguousarray(
                    level_weights(rng, self.size, len(names)).T
                )
            weights = weights * self._levels[mark][codes]
        units = len(next(iter(levels.values()))[1])
        return np.broadcast_to(weights, (units, self.size)), tuple(resampled)

    def mean(
        self,
        units: pd.DataFrame | Mapping[str, np.ndarray],
        plus: np.ndarray,
        minus: np.ndarray | None = None,
        first: np.ndarray | None = None,
    ) -> Interval:
        """Mean over units of ``metric[plus] - metric[minus]``, or the difference of two such means.

        Args:
            units: the columns of FACTORS, one value a run ``[U]``.
            plus, minus: row numbers ``[U]``; without ``minus`` the metric itself is averaged.
            first: True where a unit belongs to the first group ``[U]``; then the result is the
                mean of the first group minus the mean of the others.
        """
        point = self.point[plus] - (0.0 if minus is None else self.point[minus])  # [U]
        drawn = self.draws[plus]  # [U, B]
        if minus is not None:
            drawn = drawn - self.draws[minus]
        levels = coded(units)
        weights, resampled = self.unit_weights(levels)
        draws = _contrast(drawn, weights, first)
        estimate = float(_contrast(point[:, None], np.ones((len(point), 1)), first)[0])
        low, high = _ends(draws)
        tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
        candidates = [(low, high, "bootstrap")]
        p = min(1.0, (2 * tail + 1) / (len(draws) + 1))
        for factor in resampled:
            values = _level_values(point, levels[factor][1], first)
            if len(values) >= MIN_LEVELS:
                spread, p_t = _t_interval(values)
                candidates.append(
                    (estimate - spread, estimate + spread, f"t over {FACTORS[factor]}")
                )
                p = max(p, p_t)
        low, high, rule = max(candidates, key=lambda c: c[1] - c[0])
        used = plus if minus is None else np.concatenate([plus, minus])
        return Interval(
            estimate, low, high, p, len(plus), len(set(self._keys[used])),
            {factor: len(names) for factor, (names, _) in levels.items()}, resampled, rule,
            self.sentences, draws,
        )  # fmt: skip


def coded(units: pd.DataFrame | Mapping[str, np.ndarray]) -> dict[str, Coded]:
    """Each of FACTORS as its sorted levels and the level number of every unit ``[U]``."""
    found = {}
    for factor in FACTORS:
        values = units[factor].tolist()
        levels = sorted(set(values))
        number = {level: at for at, level in enumerate(levels)}
        found[factor] = (levels, np.array([number[value] for value in values], dtype=int))
    return found


def _contrast(values: np.ndarray, weights: np.ndarray, first: np.ndarray | None) -> np.ndarray:
    """Weighted means of values ``[U, B]``, or their difference between two groups: ``[B]``."""
    if first is None:
        return np.asarray(np.einsum("ub,ub->b", values, weights) / weights.sum(axis=0))
    return _contrast(values[first], weights[first], None) - _contrast(
        values[~first], weights[~first], None
    )


def _level_values(values: np.ndarray, levels: np.ndarray, first: np.ndarray | None) -> np.ndarray:
    """Mean (or difference of group means) within each level that has all groups ``[L]``."""
    if first is None:
        return np.asarray(np.bincount(levels, values) / np.bincount(levels))
    sums = [np.bincount(levels, values * own, levels.max() + 1) for own in (first, ~first)]
    counts = [np.bincount(levels, own, levels.max() + 1) for own in (first, ~first)]
    both = (counts[0] > 0) & (counts[1] > 0)
    return np.asarray(sums[0][both] / counts[0][both] - sums[1][both] / counts[1][both])


def _ends(draws: np.ndarray) -> tuple[float, float]:
    """2.5% and 97.5% quantiles, linear between draws, as numpy's and several times faster."""
    ordered = np.sort(draws)
    found = []
    for share in (0.025, 0.975):
        at = share * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        found.append(float(ordered[low] + (at - low) * (ordered[high] - ordered[low])))
    return found[0], found[1]


def _t_interval(values: np.ndarray) -> tuple[float, float]:
    """Half width of the 95% t-interval of a mean of n level means, and its two-sided p.

    half width = t(0.975, n - 1) s / sqrt(n). Source: Student 1908.
    """
    n = len(values)
    error = float(values.std(ddof=1)) / n**0.5
    if error == 0.0:
        return 0.0, 1.0 if values.mean() == 0 else 0.0
    p = 2.0 * float(stdtr(n - 1, -abs(values.mean()) / error))
    return float(stdtrit(n - 1, 0.975)) * error, p


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the given order.

    adjusted(i) = max over j <= i of min(1, (m - j + 1) p(j)), p sorted upwards.
    Source: Holm 1979 (Scand. J. Stat. 6).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    adjusted, highest = [0.0] * len(p), 0.0
    for step, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - step) * float(p[index])))
        adjusted[index] = highest
    return adjusted
