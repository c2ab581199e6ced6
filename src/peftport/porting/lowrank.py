"""Singular value decompositions of large matrices and of products of two factors."""

from __future__ import annotations

import torch
from torch import Tensor

#: Sides up to which a matrix is decomposed exactly.
EXACT = 768
_EXTRA, _ROUNDS = 16, 2
#: Singular values below this, relative to the largest, belong to no direction of the matrix.
_NOTHING = 1e-6


def leading(weight: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets of a weight, with canonical signs.

    Exact where a side is small; otherwise a randomised range finder with power iterations (Halko,
    Martinsson & Tropp 2011, alg. 4.4 and 5.1, arXiv 0909.4061) from a fixed seed. The sign of a
    pair is such that the entry of u with the largest magnitude is positive.

    Args:
        weight: [d_out, d_in].
        count: triplets wanted; fewer come back where the rank is smaller.

    Returns:
        u [d_out, k], s [k], v [d_in, k].
    """
    if min(weight.shape) <= max(EXACT, count):
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        rng = torch.Generator().manual_seed(0)
        start = torch.randn(weight.shape[1], count + _EXTRA, generator=rng, dtype=weight.dtype)
        q = torch.linalg.qr(weight @ start)[0]  # [d_out, k + extra]
        for _ in range(_ROUNDS):
            q = torch.linalg.qr(weight.T @ q)[0]
            q = torch.linalg.qr(weight @ q)[0]
        u, s, vh = torch.linalg.svd(q.T @ weight, full_matrices=False)
        u = q @ u
    k = min(count, int((s > _NOTHING * s.max()).sum()))
    u, s, v = u[:, :k], s[:k], vh[:k].T
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))  # [1, k]
    signs = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    return u * signs, s, v * signs


def truncated(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The product B A at another rank, balanced, without forming it.

    QR of B and of A^T leaves an r x r core, whose singular value decomposition is the product's.

    Args:
        b, a: [d_out, r], [r, d_in].
        rank: wanted; zeros fill up what the product does not have.

    Returns:
        B' [d_out, rank] = U sqrt(S), A' [rank, d_in] = sqrt(S) V^T, and the relative error in the
        Frobenius norm.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s[:rank].sqrt()
    made_b, made_a = b.new_zeros(len(b), rank), a.new_zeros(rank, a.shape[1])
    made_b[:, : len(root)] = q_b @ (u[:, :rank] * root)
    made_a[: len(root)] = (q_a @ (vh[:rank].T * root)).T
    whole = float(s.square().sum())
    lost = float(s[rank:].square().sum())
    return made_b, made_a, (lost / whole) ** 0.5 if whole > 0 else 0.0
