"""GPT-2: learned positions, one fused linear for queries, keys and values."""

from __future__ import annotations

from typing import Any

from peftport.hosts.families.base import families, sites_of
from peftport.hosts.families.decoder import Decoder
from peftport.hosts.spec import HostSpec, Site


@families.register("gpt2")
class Gpt2(Decoder):
    """GPT-2 (Radford et al. 2019) and DistilGPT2.

    The sites q, k and v are thirds of the output columns of ``c_attn``.
    """

    name = "gpt2"
    model_types = frozenset({"gpt2"})
    weight_prefix = "transformer"
    reference_url = (
        "https://cdn.openai.com/better-language-models/"
        "language_models_are_unsupervised_multitask_learners.pdf"
    )
    embedding_path = "wte"
    transposed = True

    _LINEAR = {  # noqa: RUF012
        "self_attn.q": "attn.c_attn",
        "self_attn.k": "attn.c_attn",
        "self_attn.v": "attn.c_attn",
        "self_attn.o": "attn.c_proj",
        "ff.up": "mlp.c_fc",
        "ff.down": "mlp.c_proj",
    }
    _out = {  # noqa: RUF012
        "self_attn": ("attn.resid_dropout", "ln_1"),
        "ff": ("mlp.dropout", "ln_2"),
    }

    def describe(self, config: Any) -> HostSpec:
        d, heads = config.hidden_size, config.num_attention_heads
        d_ff = config.n_inner or 4 * d
        attention = [(role, d, d) for role in ("q", "k", "v", "kv", "o", "out")]
        feed_forward = [("up", d, d_ff), ("down", d_ff, d), ("out", d, d)]
        sites: list[Site] = []
        for layer in range(config.num_hidden_layers):
            sites += sites_of("decoder", layer, "self_attn", attention)
            sites += sites_of("decoder", layer, "ff", feed_forward)
        return HostSpec(
            family=self.name,
            d_model=d,
            layers={"decoder": config.num_hidden_layers},
            heads=heads,
            d_kv=d // heads,
            d_ff=d_ff,
            vocab_size=config.vocab_size,
            sites=tuple(sites),
        )

    def layer_path(self, layer: int) -> str:
        return f"h.{layer}"

    def module_path(self, spec: HostSpec, site: Site) -> str:
        layer = self.layer_path(site.layer)
        if site.role in ("kv", "out"):
            return f"{layer}.attn" if site.block == "self_attn" else f"{layer}.mlp"
        return f"{layer}.{self._LINEAR[f'{site.block}.{site.role}']}"

    def columns(self, spec: HostSpec, site: Site) -> slice | None:
        if site.role not in ("q", "k", "v"):
            return None
        start = ("q", "k", "v").index(site.role) * spec.d_model
        return slice(start, start + spec.d_model)
