"""Attention over packed texts: one small dense product for every group of equal length.

Scores are softmax(scale * q k^T + bias), as transformers computes them; the backward pass is
written out, since torch's own keeps more copies than texts this short can pay for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftport.hosts.packed.dense import attend
from peftport.hosts.packed.device import batched
from peftport.hosts.packed.layout import Group, KeyMask, PositionBias


def self_attention(
    qkv: Tensor,
    groups: Sequence[Group],
    heads: int,
    scale: float,
    *,
    prefix: tuple[Tensor, Tensor] | None = None,
    bias: PositionBias | None = None,
    mask: KeyMask | None = None,
) -> Tensor:
    """Every token attends to the tokens of its own text.

    Args:
        qkv: queries, keys and values side by side  [N, 3 * H * d].
        groups: the texts.
        heads: H.
        scale: factor of the scores.
        prefix: learned keys and values  [K, l, H * d] that stand before each text's own.
        bias: added to the scores; of all keys, the prefix included.
        mask: which tokens are padding.

    Returns:
        [N, H * d]
    """
    if batched(qkv.device):
        return attend(qkv, None, prefix, groups[0].length, 0, heads, scale, bias, mask)
    key, value = prefix if prefix is not None else (None, None)
    return _Attention.apply(
        qkv, None, key, value, [(g, g.start, g.length, g.start) for g in groups], heads, scale, bias
    )


def cross_attention(
    q: Tensor,
    kv: Tensor,
    groups: Sequence[Group],
    queries: int,
    heads: int,
    scale: float,
    *,
    prefix: tuple[Tensor, Tensor] | None = None,
    bias: PositionBias | None = None,
    mask: KeyMask | None = None,
) -> Tensor:
    """``queries`` rows a text attend to the text's tokens.

    Args:
        q: [S * queries, H * d], text after text.
        kv: keys and values side by side  [N, 2 * H * d].

    Returns:
        [S * queries, H * d]
    """
    if batched(q.device):
        return attend(q, kv, prefix, groups[0].length, queries, heads, scale, bias, mask)
    key, value = prefix if prefix is not None else (None, None)
    parts = [(g, g.text * queries, queries, g.start) for g in groups]
    return _Attention.apply(q, kv, key, value, parts, heads, scale, bias)


class _Attention(torch.autograd.Function):
    """The one function behind both. Saved for every group: q (scaled), k, v, probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        kv: Tensor | None,
        prefix_key: Tensor | None,
        prefix_value: Tensor | None,
        parts: list[tuple[Group, int, int, int]],
        heads: int,
        scale: float,
        bias: PositionBias | None,
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        inner = q.shape[1] // 3 if kv is None else q.shape[1]
        d = inner // heads
        out = q.new_empty(len(q), inner)
        kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for g, q_start, n_q, kv_start in parts:
            query, key, value = _split(q, kv, g, q_start, n_q, kv_start, heads, d)
            query.mul_(scale)
            if prefix_key is not None and prefix_value is not None:
                key = _before(prefix_key[g.slot], key, g.size, heads)
                value = _before(prefix_value[g.slot], value, g.size, heads)
            scores = torch.bmm(query, key.transpose(1, 2))  # [G H, Q, T]
            added = bias(n_q, key.shape[1]) if bias is not None else None
            if added is not None:
                scores.view(g.size, heads, n_q, -1).add_(added)
            probs = torch.softmax(scores, -1)
            mixed = torch.bmm(probs, value)  # [G H, Q, d]
            rows = out[q_start : q_start + g.size * n_q].view(g.size, n_q, heads, d)
            rows.copy_(mixed.view(g.size, heads, n_q, d).transpose(1, 2))
            if keep:
                kept.append((query, key, value, probs))
        ctx.kept, ctx.parts, ctx.heads, ctx.scale = kept, parts, heads, scale
        ctx.like = (q.shape, None if kv is None else kv.shape)
        ctx.prefix = None if prefix_key is None else prefix_key.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad, heads = grads[0], ctx.heads
        q_shape, kv_shape = ctx.like
        grad_q = grad.new_empty(q_shape)
        grad_kv = None if kv_shape is None else grad.new_empty(kv_shape)
        grad_key = grad_value = None
        before = 0
        if ctx.prefix is not None:
            grad_key, grad_value = grad.new_zeros(ctx.prefix), grad.new_zeros(ctx.prefix)
            before = ctx.prefix[1]
        d = grad.shape[1] // heads
        for (g, q_start, n_q, kv_start), (query, key, value, probs) in zip(
            ctx.parts, ctx.kept, strict=True
        ):
            b, tokens = g.size * heads, g.length
            rows = grad[q_start : q_start + g.size * n_q].view(g.size, n_q, heads, d)
            above = rows.transpose(1, 2).reshape(b, n_q, d)
            fused = kv_shape is None
            made = grad.new_empty(3, b, tokens, d) if fused and not before else None
            d_value = torch.bmm(probs.transpose(1, 2), above, out=None if made is None else made[2])
            d_probs = torch.bmm(above, value.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_probs, probs, -1, probs.dtype)
            d_key = torch.bmm(
                d_scores.transpose(1, 2), query, out=None if made is None else made[1]
            )
            d_query = torch.bmm(d_scores, key, out=None if made is None else made[0])
            d_query.mul_(ctx.scale)
            if made is not None:
                target = grad_q[q_start : q_start + g.size * tokens]
                target.view(g.size, tokens, 3, heads, d).copy_(
                    made.view(3, g.size, heads, tokens, d).permute(1, 3, 0, 2, 4)
                )
                continue
            if grad_key is not None and grad_value is not None:
                for total, part in ((grad_key, d_key), (grad_value, d_value)):
                    own = part[:, :before].view(g.size, heads, before, d).sum(0)  # [H, l, d]
                    total[g.slot] += own.transpose(0, 1).reshape(before, heads * d)
                d_key, d_value = d_key[:, before:], d_value[:, before:]
            if fused:
                target = grad_q[q_start : q_start + g.size * tokens]
                target = target.view(g.size, tokens, 3, heads, d)
                for at, part in enumerate((d_query, d_key, d_value)):
                    target[:, :, at].copy_(_rows(part, g.size, heads))
            else:
                grad_q[q_start : q_start + g.size * n_q].view(g.size, n_q, heads, d).copy_(
                    _rows(d_query, g.size, heads)
                )
                assert grad_kv is not None
                target = grad_kv[kv_start : kv_start + g.size * tokens]
                target = target.view(g.size, tokens, 2, heads, d)
                target[:, :, 0].copy_(_rows(d_key, g.size, heads))
                target[:, :, 1].copy_(_rows(d_value, g.size, heads))
        return grad_q, grad_kv, grad_key, grad_value, None, None, None, None


def _split(
    q: Tensor,
    kv: Tensor | None,
    g: Group,
    q_start: int,
    n_q: int,
    kv_start: int,
    heads: int,
    d: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A group's queries [G H, Q, d], keys and values [G H, T, d], contiguous."""
    b, tokens = g.size * heads, g.size * g.length
    if kv is None:
        rows = q[q_start : q_start + tokens].view(g.size, g.length, 3, heads, d)
        made = rows.permute(2, 0, 3, 1, 4).contiguous().view(3, b, g.length, d)
        return made[0], made[1], made[2]
    rows = kv[kv_start : kv_start + tokens].view(g.size, g.length, 2, heads, d)
    made = rows.permute(2, 0, 3, 1, 4).contiguous().view(2, b, g.length, d)
    asked = q[q_start : q_start + g.size * n_q].view(g.size, n_q, heads, d)
    query = asked.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(b, n_q, d)
    return query, made[0], made[1]


def _before(prefix: Tensor, own: Tensor, count: int, heads: int) -> Tensor:
    """prefix [l, H d] before own [G H, T, d] -> [G H, l + T, d]"""
    length = prefix.shape[0]
    split = prefix.view(length, heads, -1).transpose(0, 1)  # [H, l, d]
    return torch.cat([split.repeat(count, 1, 1), own], dim=1)


def _rows(part: Tensor, count: int, heads: int) -> Tensor:
    """[G H, T, d] -> [G, T, H, d]"""
    return part.view(count, heads, part.shape[1], -1).transpose(1, 2)
