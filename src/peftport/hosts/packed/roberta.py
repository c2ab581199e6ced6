"""RoBERTa over packed texts: BERT's layers, later positions, and a head of two layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftport.hosts.packed.base import Acts
from peftport.hosts.packed.bert import PackedBert
from peftport.hosts.packed.layout import Packed
from peftport.hosts.spec import HostSpec


class PackedRoberta(PackedBert):
    """
    Args:
        model: RobertaForSequenceClassification, frozen, in eval mode.
        spec: its spec.
        own_head: two layers over the first token; else one layer over the mean.
    """

    def __init__(self, model: Any, spec: HostSpec, *, own_head: bool) -> None:
        offset = model.base_model.embeddings.padding_idx + 1
        super().__init__(model, spec, pooled=own_head, offset=offset)

    def scores(self, texts: Packed, acts: Acts) -> Tensor:
        if not self._pooled:
            return super().scores(texts, acts)
        x = self.features(texts, acts)  # [S, D]
        x = x.view(len(texts.tokens), -1, x.shape[1])  # [K, B, D]
        for name in ("dense", "out_proj"):
            weight, bias = (acts.head[f"classifier.{name}.{part}"] for part in ("weight", "bias"))
            x = x @ weight.transpose(1, 2) + bias[:, None]
            x = torch.tanh(x) if name == "dense" else x
        return x.flatten(0, 1)
