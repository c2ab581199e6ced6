"""Llama and models of its layout: rotary positions, gated feed-forward, shared keys and values."""

from __future__ import annotations

from typing import Any

from peftport.hosts.families.base import families, sites_of
from peftport.hosts.families.decoder import Decoder
from peftport.hosts.spec import HostSpec, Site


@families.register("llama")
class Llama(Decoder):
    """Llama (Touvron et al. 2023), SmolLM2, Mistral, Qwen 2 and 3, SmolLM3.

    ``heads`` queries share ``kv_heads`` keys and values, and a head's width need not be
    d_model / heads. Biases (Qwen 2) and norms on queries and keys (Qwen 3) belong to the host.
    """

    name = "llama"
    model_types = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
    weight_prefix = "model"
    reference_url = "https://arxiv.org/abs/2302.13971"
    embedding_path = "embed_tokens"

    _out = {  # noqa: RUF012
        "self_attn": ("self_attn.o_proj", "input_layernorm"),
        "ff": ("mlp.down_proj", "post_attention_layernorm"),
    }

    def describe(self, config: Any) -> HostSpec:
        d, heads, d_ff = config.hidden_size, config.num_attention_heads, config.intermediate_size
        kv_heads = config.num_key_value_heads or heads
        d_kv = getattr(config, "head_dim", None) or d // heads
        inner, shared = heads * d_kv, kv_heads * d_kv
        attention = [("q", d, inner), ("k", d, shared), ("v", d, shared), ("kv", shared, shared)]
        attention += [("o", inner, d), ("out", d, d)]
        feed_forward = [("up", d, d_ff), ("gate", d, d_ff), ("down", d_ff, d), ("out", d, d)]
        sites: list[Site] = []
        for layer in range(config.num_hidden_layers):
            sites += sites_of("decoder", layer, "self_attn", attention)
            sites += sites_of("decoder", layer, "ff", feed_forward)
        return HostSpec(
            family=self.name,
            d_model=d,
            layers={"decoder": config.num_hidden_layers},
            heads=heads,
            d_kv=d_kv,
            d_ff=d_ff,
            vocab_size=config.vocab_size,
            sites=tuple(sites),
            kv_heads=kv_heads,
        )

    def layer_path(self, layer: int) -> str:
        return f"layers.{layer}"

    def module_path(self, spec: HostSpec, site: Site) -> str:
        block = "self_attn" if site.block == "self_attn" else "mlp"
        path = f"{self.layer_path(site.layer)}.{block}"
        return path if site.role in ("kv", "out") else f"{path}.{site.role}_proj"
