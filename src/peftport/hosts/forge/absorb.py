"""Let the kept layers of a Llama take over what the dropped ones wrote, by least squares.

Layer by layer from below: on what the student's layer computes of its own stream, the matrix that
its feed-forward block writes with is refitted, so that the stream it leaves is the one that the
parent's next kept layer reads. No gradient is needed: one pass of parent and student over some
thousand tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from peftport.hosts.forge.text import pad_batch

Rows = Sequence[Sequence[int]]
_BATCH = 32


@torch.no_grad()
def absorb(
    parent: LlamaForCausalLM,
    student: LlamaForCausalLM,
    layers: Sequence[int],
    rows: Rows,
    pad: int,
    ridge: float,
) -> None:
    """Refit ``down_proj`` of every layer of ``student`` in place.

    With h [N, d_ff] what the matrix W reads, y [N, d] the stream that the layer leaves and t the
    parent's: W + dW minimises ||(t - y - dW h) / ||t||||^2 + penalty ||dW||^2.

    Args:
        parent, student: see :func:`~peftport.hosts.forge.sibling.keep_blocks`.
        layers: the parent's layers that the student consists of.
        rows: token ids of texts.
        ridge: the penalty in units of the mean square of h's weighted features.
    """
    ordered = sorted(rows, key=len)
    batches = [pad_batch(ordered[i : i + _BATCH], pad) for i in range(0, len(ordered), _BATCH)]
    streams = [student.model.embed_tokens(ids) for ids, _ in batches]  # each [B, T, d]
    theirs = list(streams)
    ends = [*layers[1:], parent.config.num_hidden_layers]
    at = 0
    for new, end in zip(student.model.layers, ends, strict=True):
        for layer in parent.model.layers[at:end]:
            theirs = [_run(parent, layer, x) for x in theirs]
        at = end
        streams = _refit(student, new, streams, theirs, [m.bool() for _, m in batches], ridge)


def _refit(
    student: LlamaForCausalLM,
    layer: Any,
    streams: Sequence[Tensor],
    targets: Sequence[Tensor],
    real: Sequence[Tensor],
    ridge: float,
) -> list[Tensor]:
    """One layer; returns the streams that it leaves after the refit."""
    matrix = layer.mlp.down_proj
    seen: list[Tensor] = []
    handle = matrix.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        left = [_run(student, layer, x) for x in streams]
    finally:
        handle.remove()
    d_ff, d = matrix.in_features, matrix.out_features
    gram = torch.zeros(d_ff, d_ff, dtype=torch.float64)
    cross = torch.zeros(d, d_ff, dtype=torch.float64)
    for h, y, t, keep in zip(seen, left, targets, real, strict=True):
        h_, miss, size = h[keep], (t - y)[keep], t[keep].norm(dim=1, keepdim=True)
        scaled = h_ / size**2  # [n, d_ff]
        gram += (scaled.T @ h_).double()
        cross += (miss.T @ scaled).double()
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    change = torch.linalg.solve(gram, cross.T).T.to(matrix.weight.dtype)  # [d, d_ff]
    matrix.weight += change
    return [y + h @ change.T for y, h in zip(left, seen, strict=True)]


def _run(model: LlamaForCausalLM, layer: Any, x: Tensor) -> Tensor:
    """One layer over right-padded rows  [B, T, d] -> [B, T, d]; without a mask it is causal, and
    what stands at padded positions is read by nobody."""
    places = torch.arange(x.shape[1])[None]
    found = layer(
        x, attention_mask=None, position_ids=places,
        position_embeddings=model.model.rotary_emb(x, places),
    )  # fmt: skip
    result: Tensor = found[0] if isinstance(found, tuple) else found
    return result
