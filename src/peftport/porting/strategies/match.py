"""Match: every coordinate goes to the one of the other host that correlates with it most."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from peftport.porting.fitted import Fitted, FittedMaps, FittedStrategy
from peftport.porting.maps import Affine, Moments
from peftport.porting.strategies.base import strategies


class MatchMaps(FittedMaps):
    """x -> x P with at most one 1 in every row and column of P."""

    name = "match"

    def fit(self, train: Moments, held: Moments, *, intercept: bool) -> Fitted:
        pearson = correlations(train + held)  # [d_x, d_y]
        if pearson.shape[0] > pearson.shape[1]:  # the same pairs in both directions, ties too
            columns, rows = linear_sum_assignment(pearson.T.numpy(), maximize=True)
        else:
            rows, columns = linear_sum_assignment(pearson.numpy(), maximize=True)
        weight = torch.zeros_like(pearson)
        weight[rows, columns] = 1.0
        mean = float(pearson[rows, columns].mean())
        return Affine(weight, weight.new_zeros(weight.shape[1])), {"mean_correlation": mean}


def correlations(moments: Moments) -> Tensor:
    """Pearson correlation of every coordinate of x with every one of y, [d_x, d_y]; 0 where one of
    them never varies."""
    n = moments.n
    x, y = moments.x / n, moments.y / n
    cross = moments.xy / n - torch.outer(x, y)
    ours, theirs = _deviation(moments), _deviation(moments.swapped())
    return cross * ours[:, None] * theirs[None, :]


def _deviation(moments: Moments) -> Tensor:
    """1 / standard deviation of x by coordinate, [d_x]; 0 for a constant."""
    square = moments.xx.diagonal() / moments.n
    variance = square - (moments.x / moments.n).square()
    varies = variance > 1e-12 * square.clamp(min=1e-300)
    return torch.where(varies, variance.clamp(min=1e-300).rsqrt(), torch.zeros_like(variance))


@strategies.register("match")
class Match(FittedStrategy):
    """Neuron matching: C_ij = Pearson(h_s_i, h_t_j) on unlabelled texts, the one-to-one assignment
    with the largest sum (Hungarian), and the module's rows and columns copied along it: down[:, j]
    is down[:, i], up[j] is up[i]. Coordinates of a wider target that get no partner stay at zero,
    those of a wider source are dropped. Nothing is scaled and no mean is moved.

    Source: Klimaszewski et al. 2024, arXiv 2403.18804.
    """

    name = "match"
    reference_url = "https://arxiv.org/abs/2403.18804"
    maps_class = MatchMaps
