"""Affine maps between the coordinates of two hosts, fitted on paired activations.

Row vectors throughout: a point x of one space becomes x @ weight + bias in the other. Three kinds
of parameters need three kinds of maps:

- what a module *reads* (a down-projection): target coordinates -> source coordinates, with an
  intercept where the layer has a bias that can take it up, through the origin where it has none;
- what it *adds* to an activation (an up-projection): source -> target, the linear part of the
  affine fit only, since (x + e) -> (x + e) @ weight + bias moves an addition e by e @ weight;
- points (a prefix's keys and values): source -> target, intercept included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Ridge strengths to choose from, relative to the mean variance of the predictors.
STRENGTHS: tuple[float, ...] = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0)
#: Paired positions that are kept as they are, to measure the size of effects.
SAMPLE = 512


@dataclass(frozen=True)
class Affine:
    """x -> x @ weight + bias.

    Attributes:
        weight: [d_from, d_to], float64.
        bias: [d_to], float64; zeros for a map through the origin.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., d_from] -> [..., d_to]"""
        return x.to(self.weight.dtype) @ self.weight + self.bias


class Moments:
    """Sums over paired points x [N, d_x] and y [N, d_y], in float64: all that a ridge fit needs.

    Attributes:
        n: number of pairs so far.
        x, y: sums, [d_x] and [d_y].
        xx, yy, xy: sums of outer products, [d_x, d_x], [d_y, d_y], [d_x, d_y].
    """

    def __init__(self, d_x: int, d_y: int) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        self.n = 0
        self.x, self.y = zeros(d_x), zeros(d_y)
        self.xx, self.yy, self.xy = zeros(d_x, d_x), zeros(d_y, d_y), zeros(d_x, d_y)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x [N, d_x], y [N, d_y]"""
        x, y = x.to(torch.float64), y.to(torch.float64)
        self.n += x.shape[0]
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.yy += y.T @ y
        self.xy += x.T @ y

    def __add__(self, other: Moments) -> Moments:
        total = Moments(self.x.shape[0], self.y.shape[0])
        total.n = self.n + other.n
        for name in ("x", "y", "xx", "yy", "xy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def swapped(self) -> Moments:
        """The same pairs with x and y exchanged."""
        other = Moments(self.y.shape[0], self.x.shape[0])
        other.n = self.n
        other.x, other.y, other.xx, other.yy, other.xy = self.y, self.x, self.yy, self.xx, self.xy.T
        return other

    @property
    def covariance(self) -> Tensor:
        """Of x, [d_x, d_x]."""
        mean = self.x / self.n
        return self.xx / self.n - torch.outer(mean, mean)


def split(x: Tensor, y: Tensor, held: Tensor) -> tuple[Moments, Moments]:
    """Moments of the pairs to fit on, and of those that are held out; held [N] bool."""
    made = []
    for rows in (~held, held):
        made.append(Moments(x.shape[1], y.shape[1]))
        made[-1].add(x[rows], y[rows])
    return made[0], made[1]


def ridge(moments: Moments, strength: float, *, intercept: bool = True) -> Affine:
    """The map x -> y that minimises |x M + c - y|^2 + lambda |M|^2 per pair.

    With an intercept the fit is on centred moments, so that the means take no part in the penalty
    and the linear part is what a difference of two points needs.

    Args:
        moments: sums over the pairs.
        strength: lambda divided by the mean diagonal of x's Gram matrix.
        intercept: fit c; otherwise the map goes through the origin.
    """
    n = moments.n
    gram, cross = moments.xx / n, moments.xy / n  # [d_x, d_x], [d_x, d_y]
    x, y = moments.x / n, moments.y / n
    if intercept:
        gram, cross = gram - torch.outer(x, x), cross - torch.outer(x, y)
    level = float(gram.diagonal().mean())
    if level <= 1e-12 * float(moments.xx.diagonal().mean() / n + 1e-300):
        weight = torch.zeros_like(cross)  # x never varies: nothing to learn but the mean
    else:
        damped = gram + strength * level * torch.eye(len(gram), dtype=gram.dtype)
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(damped))
    return Affine(weight, y - x @ weight if intercept else torch.zeros_like(y))


def residual(moments: Moments, affine: Affine) -> float:
    """Mean squared error of a map on the pairs, relative to y's variance about its mean (about
    zero for a map through the origin would flatter it): 0 is perfect, 1 no better than the mean.
    """
    n, w, b = moments.n, affine.weight, affine.bias
    predicted = (w * (moments.xx @ w)).sum() / n + 2 * (moments.x @ w @ b) / n + b @ b
    crossed = (w * moments.xy).sum() / n + (b @ moments.y) / n
    own = moments.yy.diagonal().sum() / n
    variance = own - (moments.y / n) @ (moments.y / n)
    error = predicted - 2 * crossed + own
    return float(error.clamp(min=0) / variance.clamp(min=1e-12 * float(own) + 1e-300))


def fit(
    train: Moments,
    held: Moments,
    *,
    intercept: bool = True,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Affine, float, float]:
    """Ridge at the strength that predicts held-out texts best, then on all texts.

    Labels play no part: the criterion is the reconstruction of the other host's activations.

    Returns:
        The map, its strength, and the held-out residual at that strength.
    """
    errors = [residual(held, ridge(train, s, intercept=intercept)) for s in strengths]
    best = min(range(len(strengths)), key=lambda i: errors[i])
    return ridge(train + held, strengths[best], intercept=intercept), strengths[best], errors[best]
