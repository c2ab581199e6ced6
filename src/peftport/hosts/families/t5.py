"""T5, T5 v1.1, Flan-T5 and mT5: pre-norm encoder-decoders that answer with a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftport.errors import InputError
from peftport.hosts.families.base import Family, OutPoint, Words, families, sites_of
from peftport.hosts.packed.base import Program
from peftport.hosts.packed.t5 import PackedT5
from peftport.hosts.spec import HostSpec, Site


@families.register("t5")
class T5(Family):
    """T5 (Raffel et al. 2020). d_kv is independent of d_model / heads.

    Sentiment as sequence prediction: the loss is on the label word, the decision between the
    verbalisers' logits at the first decoder step, and nothing is generated.
    """

    name = "t5"
    model_types = frozenset({"t5", "mt5"})
    weight_prefix = ""
    reference_url = "https://arxiv.org/abs/1910.10683"
    decides_by = "word"
    embedding_path = "shared"
    prefix_positions = "none"
    stacks = ("encoder", "decoder")
    ends_words = True

    _BLOCKS = {  # noqa: RUF012
        ("encoder", "self_attn"): (0, "SelfAttention"),
        ("encoder", "ff"): (1, "DenseReluDense"),
        ("decoder", "self_attn"): (0, "SelfAttention"),
        ("decoder", "cross_attn"): (1, "EncDecAttention"),
        ("decoder", "ff"): (2, "DenseReluDense"),
    }

    def describe(self, config: Any) -> HostSpec:
        d, inner, d_ff = config.d_model, config.num_heads * config.d_kv, config.d_ff
        attention = [("q", d, inner), ("k", d, inner), ("v", d, inner), ("kv", inner, inner)]
        attention += [("o", inner, d), ("out", d, d)]
        gate = [("gate", d, d_ff)] if config.is_gated_act else []
        feed_forward = [("up", d, d_ff), *gate, ("down", d_ff, d), ("out", d, d)]
        layers = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
        sites: list[Site] = []
        for stack, count in layers.items():
            for layer in range(count):
                sites += sites_of(stack, layer, "self_attn", attention)
                if stack == "decoder":
                    sites += sites_of(stack, layer, "cross_attn", attention)
                sites += sites_of(stack, layer, "ff", feed_forward)
        return HostSpec(
            family=self.name,
            d_model=d,
            layers=layers,
            heads=config.num_heads,
            d_kv=config.d_kv,
            d_ff=d_ff,
            vocab_size=config.vocab_size,
            sites=tuple(sites),
        )

    def load(self, path: str, *, labels: int, head: str, dtype: torch.dtype) -> nn.Module:
        from transformers import AutoModelForSeq2SeqLM

        model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=dtype, local_files_only=True)
        if model.config.decoder_start_token_id is None:
            raise InputError(
                f"host '{path}' has no decoder_start_token_id; add it to its config.json (T5: 0)"
            )
        return cast(nn.Module, model.eval())

    def program(
        self, model: nn.Module, spec: HostSpec, *, head: str, words: Words | None
    ) -> Program | None:
        return PackedT5(model, spec, self._need(words))

    def module_path(self, spec: HostSpec, site: Site) -> str:
        index, name = self._BLOCKS[site.stack, site.block]
        layer = f"{site.stack}.block.{site.layer}.layer.{index}"
        if site.role == "out":
            return layer
        if site.role == "kv":
            return f"{layer}.{name}"
        if site.block != "ff":
            return f"{layer}.{name}.{site.role}"
        gated = any(other.role == "gate" for other in spec.sites)
        linear = {"gate": "wi_0", "up": "wi_1" if gated else "wi", "down": "wo"}[site.role]
        return f"{layer}.{name}.{linear}"

    def out_point(self, model: nn.Module, spec: HostSpec, site: Site) -> OutPoint:
        parent = self.submodule(model, spec, site)
        return OutPoint(value=parent.dropout, parent=parent, residual_arg=0, norm=None)

    def head_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {}

    def head_input(self, model: nn.Module) -> nn.Module | None:
        return None

    def scores(self, model: nn.Module, batch: Mapping[str, Tensor], words: Words | None) -> Tensor:
        words = self._need(words)
        rows = batch["input_ids"].shape[0]
        start = torch.full(
            (rows, 1),
            cast(Any, model.config).decoder_start_token_id,
            device=batch["input_ids"].device,
        )
        logits = model(**batch, decoder_input_ids=start, use_cache=False).logits  # [B, 1, V]
        return cast(Tensor, logits[:, 0, list(words.first)])  # [B, C]

    def loss(
        self, model: nn.Module, batch: Mapping[str, Tensor], labels: Tensor, words: Words | None
    ) -> Tensor:
        targets = self._need(words).padded(labels)  # [B, W]
        logits = model(**batch, labels=targets, use_cache=False).logits  # [B, W, V]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)

    def relative_bias(
        self,
        model: nn.Module,
        spec: HostSpec,
        site: Site,
        queries: int,
        prefix: int,
        *,
        shifted: bool = False,
    ) -> Tensor | None:
        if site.block == "cross_attn":
            return None
        first = Site(site.stack, 0, "self_attn", "kv", 0, 0)
        attention = cast(Any, self.submodule(model, spec, first))
        past = 0 if shifted else prefix
        bias = attention.compute_bias(queries, queries + prefix, past_seen_tokens=past)
        return cast(Tensor, bias if shifted else bias[..., :prefix])

    @staticmethod
    def _need(words: Words | None) -> Words:
        if words is None:
            raise InputError("a T5 host decides by label words; give the task's verbalisers")
        return words
