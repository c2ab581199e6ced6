"""RoBERTa and XLM-R: BERT's layers, positions that start after the padding's, no pooler."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftport.hosts.families.base import Words, families
from peftport.hosts.families.bert import Bert
from peftport.hosts.heads import MeanHead, load_classifier
from peftport.hosts.packed.base import Program
from peftport.hosts.packed.roberta import PackedRoberta
from peftport.hosts.spec import HostSpec


@families.register("roberta")
class Roberta(Bert):
    """RoBERTa (Liu et al. 2019).

    ``pooler`` stands for its own head, two layers over <s>: the module carries both, and they fit
    hosts of the same width only. ``mean`` is one linear layer, which also goes to other widths.
    """

    name = "roberta"
    model_types = frozenset({"roberta"})
    weight_prefix = "roberta"
    reference_url = "https://arxiv.org/abs/1907.11692"
    # PEFT hands the head a pooled vector, and RoBERTa's wants all tokens: it cannot run a prefix
    prefix_positions = "none"
    peft_prefix = False
    # published checkpoints hold one from pretraining; the classifier is built without it
    unread_weights = ("pooler.",)

    def load(self, path: str, *, labels: int, head: str, dtype: torch.dtype) -> nn.Module:
        return load_classifier(path, labels=labels, head=head, dtype=dtype)

    def program(
        self, model: nn.Module, spec: HostSpec, *, head: str, words: Words | None
    ) -> Program | None:
        return PackedRoberta(model, spec, own_head=head == "pooler")

    def longest(self, config: Any) -> int:
        """Positions start behind the padding's."""
        return int(config.max_position_embeddings - config.pad_token_id - 1)

    def shift_positions(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], by: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As the model counts with a past of ``by`` tokens: from padding_idx + 1 + by; padding
        keeps padding_idx. Tokens given as embeddings all count as real."""
        if kwargs.get("position_ids") is not None:
            return args, kwargs
        ids = args[0] if args else kwargs.get("input_ids")
        padding = self.body(model).embeddings.padding_idx
        if ids is None:
            real = torch.ones_like(kwargs["inputs_embeds"][..., 0], dtype=torch.long)
        else:
            real = ids.ne(padding).long()  # [B, T]
        kwargs["position_ids"] = (real.cumsum(1) + by) * real + padding
        return args, kwargs

    def head_input(self, model: nn.Module) -> nn.Module | None:
        head: Any = getattr(model, "classifier", None)
        if isinstance(head, MeanHead):
            return head.reads
        return None if head is None else head.dense


@families.register("xlm-roberta")
class XlmRoberta(Roberta):
    """XLM-RoBERTa (Conneau et al. 2020): the same layers under another class, which AdapterHub asks
    for when it loads a head."""

    name = "xlm-roberta"
    model_types = frozenset({"xlm-roberta"})
    reference_url = "https://arxiv.org/abs/1911.02116"
