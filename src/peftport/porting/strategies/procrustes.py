"""Procrustes: rotations between the hosts' activations on unlabelled texts."""

from __future__ import annotations

import torch

from peftport.porting.fitted import Fitted, FittedMaps, FittedStrategy
from peftport.porting.maps import Affine, Moments, residual
from peftport.porting.strategies.base import strategies

#: Directions in which activations vary less than this, relative to the most, have no image.
_NEVER = 1e-10


class ProcrustesMaps(FittedMaps):
    """x -> c x Q + b with Q semi-orthogonal."""

    name = "procrustes"

    def fit(self, train: Moments, held: Moments, *, intercept: bool) -> Fitted:
        total = train + held
        affine, scale = procrustes(total, intercept=intercept)
        held_out = residual(held, procrustes(train, intercept=intercept)[0])
        return affine, {"scale": scale, "held_out": held_out}


def procrustes(moments: Moments, *, intercept: bool = True) -> tuple[Affine, float]:
    """The semi-orthogonal Q and the scale c that minimise sum |c x Q + b - y|^2.

    With the cross-covariance C = X^T Y = U S V^T: Q = U V^T and c = tr(S) / tr(Q^T X^T X Q).
    Across widths Q has orthonormal rows or columns, whichever are fewer; among those, U V^T is the
    one that correlates most. Directions that never vary get no image.
    Source: Schoenemann 1966; the scale, Schoenemann & Carroll 1970.

    Args:
        moments: sums over pairs of x [N, d_x] and y [N, d_y].
        intercept: subtract the means and give back b; otherwise the map goes through the origin.

    Returns:
        The map, and c.
    """
    n = moments.n
    gram, cross = moments.xx / n, moments.xy / n
    x, y = moments.x / n, moments.y / n
    if intercept:
        gram, cross = gram - torch.outer(x, x), cross - torch.outer(x, y)
    u, s, vh = torch.linalg.svd(cross, full_matrices=False)
    kept = s > _NEVER * s.max().clamp(min=1e-300)
    q = u[:, kept] @ vh[kept]  # [d_x, d_y]
    spread = float((q * (gram @ q)).sum())
    scale = float(s[kept].sum()) / spread if spread > 0 else 0.0
    weight = scale * q
    return Affine(weight, y - x @ weight if intercept else torch.zeros_like(y)), scale


@strategies.register("procrustes")
class Procrustes(FittedStrategy):
    """As ridge, with maps that only turn and scale: y = c x Q + b, Q^T Q = 1 (or Q Q^T = 1 where
    the result is wider), Q = U V^T from the cross-covariance U S V^T, c by least squares. Far fewer
    degrees of freedom than ridge, so it needs fewer texts; it keeps the proportions of a module's
    directions, which ridge shrinks where the hosts agree little.

    Source: Schoenemann 1966 and Schoenemann & Carroll 1970; between hosts, arXiv 2506.06609.
    """

    name = "procrustes"
    reference_url = "https://arxiv.org/abs/2506.06609"
    maps_class = ProcrustesMaps
