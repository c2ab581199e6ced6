"""Fewer layers of a BERT at its own width: the cut whose basis is the identity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import BertConfig, BertModel

from peftport.hosts.forge.cut import Cut, Rows
from peftport.hosts.forge.text import pad_batch


def keep_layers(parent: BertModel, layers: Sequence[int], rows: Rows, pad: int) -> Cut:
    """A student with the embeddings, the pooler and some layers of ``parent``, all unchanged.

    Args:
        parent: a BertModel with pooler, in eval mode.
        layers: which layers, ascending.
        rows: token ids of sentences, for the variance of pooled outputs.
    Raises:
        ValueError: a layer that the parent does not have.
    """
    if not all(0 <= i < len(parent.encoder.layer) for i in layers):
        raise ValueError(f"layers must lie in 0..{len(parent.encoder.layer) - 1}, got {layers}")
    config = BertConfig(**{**parent.config.to_dict(), "num_hidden_layers": len(layers)})
    student = BertModel(config).eval()
    student.embeddings.load_state_dict(parent.embeddings.state_dict())
    for new, i in zip(student.encoder.layer, layers, strict=True):
        new.load_state_dict(parent.encoder.layer[i].state_dict())
    student.pooler.load_state_dict(parent.pooler.state_dict())
    width = config.hidden_size
    return Cut(
        student, torch.eye(width), torch.arange(width), pooled_variance(parent, rows, pad), 1.0
    )


@torch.no_grad()
def pooled_variance(model: BertModel, rows: Rows, pad: int) -> float:
    """Variance of a model's pooled outputs over sentences, mean over the units."""
    order = sorted(rows, key=len)
    found = []
    for start in range(0, len(order), 64):
        ids, mask = pad_batch(order[start : start + 64], pad)
        found.append(model(input_ids=ids, attention_mask=mask).pooler_output)
    return float(torch.cat(found).var(0, unbiased=False).mean())
