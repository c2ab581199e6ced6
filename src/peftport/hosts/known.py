"""What is known of hosts on the Hub without asking it: enough to plan a study offline.

Configurations are those of the repositories' config.json, as far as shapes follow from them. The
revisions are those that public code and model listings name; a run reads the Hub's own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from peftport.hosts.families.base import family_of
from peftport.hosts.spec import HostSpec


@dataclass(frozen=True)
class Known:
    """A host by its configuration.

    Attributes:
        config: what its config.json says.
        parameters: weights, tied ones once.
    """

    config: Mapping[str, Any]
    parameters: int

    @cached_property
    def spec(self) -> HostSpec:
        """Its spec without digests: those need the files."""
        from transformers import AutoConfig

        config = AutoConfig.for_model(**self.config)
        return family_of(str(self.config["model_type"])).describe(config)

    @property
    def download_bytes(self) -> int:
        """Float32 weights; tokenizer and configuration are a few megabytes more."""
        return 4 * self.parameters


def _t5(d_model: int, d_ff: int, layers: int, heads: int) -> dict[str, Any]:
    """T5 v1.1 and Flan-T5 are alike in all that decides a shape."""
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "d_model": d_model,
        "d_kv": 64,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "vocab_size": 32128,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


_BASE = Known(_t5(768, 2048, 12, 12), 247_577_856)
_LARGE = Known(_t5(1024, 2816, 24, 16), 783_150_080)
KNOWN: Mapping[str, Known] = {
    "google/t5-v1_1-base": _BASE,
    "google/t5-v1_1-large": _LARGE,
    "google/flan-t5-base": _BASE,
    "google/flan-t5-large": _LARGE,
}


def known(ref: str) -> Known | None:
    """What is known of a Hub id, whatever its revision."""
    return KNOWN.get(ref.partition("@")[0])


def planned_spec(ref: str) -> HostSpec | None:
    """A spec that stands for the host in a plan: its name takes the place of the fingerprint, so
    that two hosts of one shape stay two."""
    found = known(ref)
    if found is None:
        return None
    return replace(found.spec, fingerprint=f"planned {ref}", tokenizer=f"planned {ref}")
