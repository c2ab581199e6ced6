"""BERT-like encoders: post-norm blocks, absolute positions, a pooler and a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftport.errors import InputError
from peftport.hosts.families.base import (
    Family,
    OutPoint,
    Words,
    families,
    later_positions,
    sites_of,
)
from peftport.hosts.packed.base import Program
from peftport.hosts.packed.bert import PackedBert
from peftport.hosts.spec import HostSpec, Site


class MeanPooler(nn.Module):
    """Mean over the real tokens, in the place of the published pooler.

    The mask reaches it through a pre-hook of the encoder, since transformers passes hidden states
    only.
    """

    mask: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden  [B, T, D] -> [B, D]"""
        if self.mask is None:
            return hidden.mean(dim=1)
        mask = self.mask.to(hidden.dtype)[..., None]  # [B, T, 1]
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


@families.register("bert")
class Bert(Family):
    """BERT (Devlin et al. 2019), MiniLM and their kin."""

    name = "bert"
    model_types = frozenset({"bert"})
    weight_prefix = "bert"
    reference_url = "https://arxiv.org/abs/1810.04805"
    decides_by = "class"
    embedding_path = "embeddings.word_embeddings"
    prefix_positions = "past"
    stacks = ("encoder",)

    #: the config's name for the inner width of the feed-forward
    _d_ff = "intermediate_size"
    _LINEAR = {  # noqa: RUF012
        "self_attn.q": "attention.self.query",
        "self_attn.k": "attention.self.key",
        "self_attn.v": "attention.self.value",
        "self_attn.o": "attention.output.dense",
        "ff.up": "intermediate.dense",
        "ff.down": "output.dense",
    }

    def describe(self, config: Any) -> HostSpec:
        d, heads, d_ff = config.hidden_size, config.num_attention_heads, getattr(config, self._d_ff)
        attention = [("q", d, d), ("k", d, d), ("v", d, d), ("kv", d, d), ("o", d, d)]
        feed_forward = [("up", d, d_ff), ("down", d_ff, d)]
        sites: list[Site] = []
        for layer in range(config.num_hidden_layers):
            sites += sites_of("encoder", layer, "self_attn", [*attention, ("out", d, d)])
            sites += sites_of("encoder", layer, "ff", [*feed_forward, ("out", d, d)])
        return HostSpec(
            family=self.name,
            d_model=d,
            layers={"encoder": config.num_hidden_layers},
            heads=heads,
            d_kv=d // heads,
            d_ff=d_ff,
            vocab_size=config.vocab_size,
            sites=tuple(sites),
        )

    def load(self, path: str, *, labels: int, head: str, dtype: torch.dtype) -> nn.Module:
        from transformers import AutoModelForSequenceClassification

        if head not in ("pooler", "mean"):
            raise InputError(f"head must be 'pooler' or 'mean', got '{head}'")
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=labels, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        if head == "pooler" and any("pooler" in key for key in info["missing_keys"]):
            raise InputError(
                f"host '{path}' has no pooler weights, which the 'pooler' head needs; "
                "use --head mean"
            )
        if head == "mean":
            pooler = MeanPooler()
            base = self.body(model)
            base.pooler = pooler

            def keep_mask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                mask = kwargs.get("attention_mask")
                pooler.mask = mask if mask is not None else (args[1] if len(args) > 1 else None)

            base.register_forward_pre_hook(keep_mask, with_kwargs=True)
        return cast(nn.Module, model.eval())

    def program(
        self, model: nn.Module, spec: HostSpec, *, head: str, words: Words | None
    ) -> Program | None:
        return PackedBert(model, spec, pooled=head == "pooler")

    def module_path(self, spec: HostSpec, site: Site) -> str:
        layer = f"encoder.layer.{site.layer}"
        if site.role == "kv":
            return f"{layer}.attention.self"
        if site.role == "out":
            return f"{layer}.attention.output" if site.block == "self_attn" else f"{layer}.output"
        return f"{layer}.{self._LINEAR[f'{site.block}.{site.role}']}"

    def shift_positions(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], by: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return later_positions(args, kwargs, by)

    def out_point(self, model: nn.Module, spec: HostSpec, site: Site) -> OutPoint:
        parent = self.submodule(model, spec, site)
        return OutPoint(
            value=parent.dropout,
            parent=parent,
            residual_arg=1,
            norm=parent.LayerNorm,
        )

    def head_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        head = getattr(model, "classifier", None)
        if head is None:
            return {}
        return {f"classifier.{name}": p for name, p in head.named_parameters()}

    def head_input(self, model: nn.Module) -> nn.Module | None:
        return getattr(model, "classifier", None)

    def scores(self, model: nn.Module, batch: Mapping[str, Tensor], words: Words | None) -> Tensor:
        return cast(Tensor, model(**batch).logits)

    def loss(
        self, model: nn.Module, batch: Mapping[str, Tensor], labels: Tensor, words: Words | None
    ) -> Tensor:
        return F.cross_entropy(self.scores(model, batch, words), labels)
