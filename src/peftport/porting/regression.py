"""Reduced-rank ridge regression on moments: the best map of a given rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peftport.porting.maps import STRENGTHS, Affine, Moments, residual, ridge

#: how much larger than the least a held-out error may be
SLACK = 1.01


@dataclass(frozen=True)
class LowRank:
    """x -> (x @ read) @ write + bias.

    Attributes:
        read: [d_x, r]; write: [r, d_y] with orthonormal rows; bias: [d_y]; all float64.
        strength: of the ridge, relative to the mean variance of x.
        held_out: residual on held-out points (:func:`peftport.porting.maps.residual`).
    """

    read: Tensor
    write: Tensor
    bias: Tensor
    strength: float
    held_out: float


def reduced_rank(
    train: Moments,
    held: Moments,
    rank: int,
    *,
    intercept: bool = True,
    strengths: Sequence[float] = STRENGTHS,
) -> LowRank:
    """The map of at most this rank that minimises |x M + c - y|^2 + lambda |M|^2.

    With W the ridge solution and G the Gram matrix of x, the minimiser is W V V^T where V holds the
    leading eigenvectors of W^T (G + lambda) W. The strength is the largest whose error on held-out
    points, at this rank, is within 1 % of the least: a smaller one leans on directions in which x
    hardly varies, with weights so large that no training can start from them.

    Source: Izenman 1975, J. Multivariate Analysis 5; with a ridge, Mukherjee and Zhu 2011.

    Args:
        train, held: moments of pairs (x, y).
        rank: r; cut to what the shapes allow.
        intercept: fit c; otherwise the map goes through the origin.
    """
    maps = [(s, _project(train, s, rank, intercept)) for s in strengths]
    errors = [residual(held, _affine(train, *made, intercept)) for _, made in maps]
    best = gentlest(errors, strengths)
    both = train + held
    read, write = _project(both, strengths[best], rank, intercept)
    bias = _affine(both, read, write, intercept).bias
    return LowRank(read, write, bias, strengths[best], errors[best])


def gentlest(errors: Sequence[float], strengths: Sequence[float]) -> int:
    """Index of the largest strength whose error is near the least."""
    good = [i for i, error in enumerate(errors) if error <= SLACK * min(errors)]
    return max(good, key=lambda i: strengths[i])


def _project(
    moments: Moments, strength: float, rank: int, intercept: bool
) -> tuple[Tensor, Tensor]:
    """(read [d_x, r], write [r, d_y])"""
    full = ridge(moments, strength, intercept=intercept).weight  # [d_x, d_y]
    cross = moments.xy / moments.n
    if intercept:
        cross = cross - torch.outer(moments.x / moments.n, moments.y / moments.n)
    explained = full.T @ cross  # W^T (G + lambda) W, [d_y, d_y]
    _, vectors = torch.linalg.eigh((explained + explained.T) / 2)  # ascending
    kept = vectors[:, -min(rank, *full.shape) :].flip(1)  # [d_y, r]
    return full @ kept, kept.T


def _affine(moments: Moments, read: Tensor, write: Tensor, intercept: bool) -> Affine:
    weight = read @ write
    n = moments.n
    bias = moments.y / n - moments.x / n @ weight
    return Affine(weight, bias if intercept else torch.zeros_like(bias))
