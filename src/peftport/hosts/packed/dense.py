"""Attention for an accelerator: all texts of a pass, padded to one length, in one fused kernel.

The same as :mod:`peftport.hosts.packed.attention`, which works on one group of texts after another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from peftport.hosts.packed.layout import KeyMask, PositionBias


def attend(
    q: Tensor,
    kv: Tensor | None,
    prefix: tuple[Tensor, Tensor] | None,
    width: int,
    queries: int,
    heads: int,
    scale: float,
    bias: PositionBias | None,
    mask: KeyMask | None,
) -> Tensor:
    """Arguments as :func:`~peftport.hosts.packed.attention.cross_attention`, for texts of ``width``
    tokens; where ``kv`` is None, q holds queries, keys and values side by side and every token
    asks."""
    if kv is None:
        queries = width
        query, key, value = _heads(q, width, 3, heads)  # each [S, H, T, d]
    else:
        (query,) = _heads(q, queries, 1, heads)
        key, value = _heads(kv, width, 2, heads)
    before = 0
    if prefix is not None:
        before = prefix[0].shape[1]
        key, value = (
            torch.cat([_each(own, len(key), heads), part], dim=2)
            for own, part in zip(prefix, (key, value), strict=True)
        )
    added = _added(before, queries, before + width, bias, mask)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=None if added is None else added.to(q.dtype), scale=scale
    )
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)  # [S Q, H d]


def _heads(rows: Tensor, width: int, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[S * T, parts * H * d] -> ``parts`` of [S, H, T, d], none of them copied"""
    split = rows.view(len(rows) // width, width, parts, heads, -1)
    return tuple(split.permute(2, 0, 3, 1, 4).unbind(0))


def _each(prefix: Tensor, texts: int, heads: int) -> Tensor:
    """Every slot's pairs [K, l, H d] for each of its texts  [S, H, l, d]"""
    slots, length, _ = prefix.shape
    split = prefix.view(slots, 1, length, heads, -1).transpose(2, 3)  # [K, 1, H, l, d]
    return split.expand(-1, texts // slots, -1, -1, -1).flatten(0, 1)


def _added(
    before: int, queries: int, keys: int, bias: PositionBias | None, mask: KeyMask | None
) -> Tensor | None:
    """What is added to the scores, broadcast to [S, H, Q, l + T]; made once for all layers."""
    if mask is None:
        return None if bias is None else bias(queries, keys)[None]
    key = (before, queries, None if bias is None else bias.key)
    if key not in mask.made:
        own = F.pad(mask.added, (before, 0))[:, None, None]  # [S, 1, 1, l + T]
        if bias is not None:
            table = bias(queries, keys)[None]
            own = own.to(table.dtype) + table
        mask.made[key] = own
    return mask.made[key]
