"""A linear prediction of recovery, with an interval from hosts that it had not seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from peftport.errors import InputError
from peftport.predicting.features import FEATURES, NEED_TEXTS

#: strength of the ridge penalty on standardised features; fixed, not searched
STRENGTH = 1.0
LEVEL = 0.95
VARIANTS = ("weights", "texts")


@dataclass(frozen=True)
class Point:
    """One measured port.

    Attributes:
        source, target: names of the hosts.
        method: of the module.
        features: as :func:`peftport.predicting.features.measure` gives them.
        recovery: measured, by budget.
    """

    source: str
    target: str
    method: str
    features: Mapping[str, float]
    recovery: Mapping[int, float]


@dataclass(frozen=True)
class Prediction:
    """Recovery at a budget before anything is trained.

    Attributes:
        score: predicted recovery.
        low, high: interval that covers :data:`LEVEL` of ports to hosts that were left out.
    """

    budget: int
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """A fitted model for one set of features.

    Attributes:
        variant: ``weights`` (no text is read) or ``texts``.
        names: features, then ``method:NAME`` indicators.
        mean, scale: of each, over the calibration.
        low, high: range of each over the calibration.
        intercept, weights: by budget.
        error: by budget, the :data:`LEVEL` quantile of the absolute error on hosts left out.
        points, hosts: how many ports and hosts it rests on.
    """

    variant: str
    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    intercept: Mapping[int, float]
    weights: Mapping[int, tuple[float, ...]]
    error: Mapping[int, float]
    points: int
    hosts: int

    def predict(self, method: str, features: Mapping[str, float]) -> list[Prediction]:
        """One prediction for every budget.

        Raises:
            InputError: a method that the calibration does not know.
        """
        x = (_row(self.names, method, features) - np.array(self.mean)) / np.array(self.scale)
        found = []
        for budget, weights in self.weights.items():
            score = self.intercept[budget] + float(x @ np.array(weights))
            error = self.error[budget]
            found.append(Prediction(budget, score, score - error, score + error))
        return found

    def outside(self, features: Mapping[str, float]) -> list[str]:
        """Features beyond what the calibration has seen, by a tenth of its range or more."""
        found = []
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            room = 0.1 * (high - low) + 1e-9
            if name in features and not low - room <= features[name] <= high + room:
                found.append(name)
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        kept: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in facts.items()}
        for name in ("intercept", "weights", "error"):
            kept[name] = {
                int(budget): tuple(v) if isinstance(v, list) else v
                for budget, v in facts[name].items()
            }
        return cls(**kept)


def fit(points: Sequence[Point], variant: str) -> Calibration:
    """Ridge regression of recovery on features and method, and its error on hosts left out.

    Args:
        points: measured ports; all with the same budgets.
        variant: of :data:`VARIANTS`.

    Raises:
        ValueError: fewer than three target hosts, so that none can be left out.
    """
    if len({point.target for point in points}) < 3:
        raise ValueError("a calibration needs ports to at least three hosts")
    names = _names(points, variant)
    x = np.array([_row(names, p.method, p.features) for p in points])
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-9)
    intercept, weights, error = {}, {}, {}
    for budget in points[0].recovery:
        y = np.array([p.recovery[budget] for p in points])
        intercept[budget], found = _ridge((x - mean) / scale, y)
        weights[budget] = tuple(found.tolist())
        left = left_out(points, variant, budget)
        error[budget] = float(np.quantile(np.abs(y - left), LEVEL, method="higher"))
    hosts = {name for p in points for name in (p.source, p.target)}
    return Calibration(
        variant=variant,
        names=names,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        low=tuple(x.min(0).tolist()),
        high=tuple(x.max(0).tolist()),
        intercept=intercept,
        weights=weights,
        error=error,
        points=len(points),
        hosts=len(hosts),
    )


def left_out(points: Sequence[Point], variant: str, budget: int) -> np.ndarray:
    """Predicted recovery of every point by a model that saw no port from or to its target host.

    Returns:
        [len(points)]; the mean of the others where no other port is left to learn from.
    """
    names = _names(points, variant)
    x = np.array([_row(names, p.method, p.features) for p in points])
    y = np.array([p.recovery[budget] for p in points])
    found = np.full(len(points), np.nan)
    for host, own, kept in folds(points):
        assert kept.any(), host
        mean, scale = x[kept].mean(0), np.maximum(x[kept].std(0), 1e-9)
        intercept, weights = _ridge((x[kept] - mean) / scale, y[kept])
        found[own] = intercept + ((x[own] - mean) / scale) @ weights
    return found


def folds(points: Sequence[Point]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """For every target host: its name, which points go to it, which do not touch it."""
    for host in sorted({p.target for p in points}):
        own = np.array([p.target == host for p in points])
        touched = np.array([host in (p.source, p.target) for p in points])
        yield host, own, ~touched


def _names(points: Sequence[Point], variant: str) -> tuple[str, ...]:
    wanted = [n for n in FEATURES if variant == "texts" or n not in NEED_TEXTS]
    return (*wanted, *(f"method:{m}" for m in sorted({p.method for p in points})))


def _row(names: Sequence[str], method: str, features: Mapping[str, float]) -> np.ndarray:
    if f"method:{method}" not in names:
        known = ", ".join(n.partition(":")[2] for n in names if ":" in n)
        raise InputError(f"no prediction was calibrated for method '{method}'; known: {known}")
    return np.array([float(n == f"method:{method}") if ":" in n else features[n] for n in names])


def _ridge(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Intercept and weights; x [N, F] centred, y [N]."""
    gram = x.T @ x + STRENGTH * np.eye(x.shape[1])
    return float(y.mean()), np.linalg.solve(gram, x.T @ (y - y.mean()))
