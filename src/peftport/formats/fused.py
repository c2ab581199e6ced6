"""LoRA on a linear that several sites share (GPT-2's c_attn holds q, k and v).

PEFT gives such a linear one pair, A [R, d_in] and B [width, R], where each site has a pair of its
own. Sites that share A are one pair of the same rank (*shared*: how PEFT trains it). Sites with
different A become one pair of rank n r (*blocks*): their A below each other, their B on the
diagonal of blocks, so that the product is the same update; alpha grows with the rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
#: which output columns of the linear belong to which role
Columns = Mapping[str, slice]


def shares(parts: Mapping[str, Pair], columns: Columns) -> bool:
    """Whether all sites of a linear are there with one A."""
    first = next(iter(parts.values()))[0]
    return set(parts) == set(columns) and all(torch.equal(a, first) for a, _ in parts.values())


def join(parts: Mapping[str, Pair], columns: Columns, shared: bool) -> Pair:
    """One pair for the whole linear.

    Args:
        parts: role -> (A [r, d_in], B [d_out, r]).
        columns: of every role of the linear.
        shared: all parts have one A.

    Returns:
        A [R, d_in], B [width, R] with R = r if shared, else r times the number of parts.
    """
    a, b = next(iter(parts.values()))
    r, width = b.shape[1], max(own.stop for own in columns.values())
    if not shared:
        a = torch.cat([own for own, _ in parts.values()])
    joined = b.new_zeros(width, len(a))
    for i, (role, (_, own)) in enumerate(parts.items()):
        start = 0 if shared else i * r
        joined[columns[role], start : start + r] = own
    return a, joined


def layout(
    pairs: Sequence[Pair], columns: Columns, known: tuple[int, Sequence[str]] | None
) -> tuple[str, ...] | None:
    """Roles whose blocks all of some pairs are made of, in order; None: one A is shared by all.

    Args:
        pairs: (A, B) of one linear in every layer.
        columns: of every role of the linear.
        known: rank and roles that a module is known to have (B may be all zero, and then nothing
            else tells); None: read them off the zeros of B.
    """
    rank = pairs[0][0].shape[0]
    if known is not None:
        r, roles = known[0], tuple(role for role in columns if role in known[1])
        if roles and rank == r * len(roles) and _blocks(pairs, columns, roles):
            return roles
        return None
    if not any(b.any() for _, b in pairs):
        return None
    for count in range(1, len(columns) + 1):
        for roles in combinations(columns, count):
            if rank % count == 0 and _blocks(pairs, columns, roles):
                return roles
    return None


def _blocks(pairs: Sequence[Pair], columns: Columns, roles: Sequence[str]) -> bool:
    """Whether every B is zero off the diagonal of these roles' blocks."""
    for _, b in pairs:
        r = b.shape[1] // len(roles)
        rest = b.clone()
        for i, role in enumerate(roles):
            rest[columns[role], i * r : (i + 1) * r] = 0
        if rest.any():
            return False
    return True


def split(pair: Pair, columns: Columns, roles: Sequence[str] | None) -> dict[str, Pair]:
    """The pair of every role; ``roles`` as :func:`layout` says."""
    a, b = pair
    if roles is None:
        return {role: (a.clone(), b[own].clone()) for role, own in columns.items()}
    r = len(a) // len(roles)
    rows = [slice(i * r, (i + 1) * r) for i in range(len(roles))]
    return {
        role: (a[own].clone(), b[columns[role], own].clone())
        for role, own in zip(roles, rows, strict=True)
    }
