"""AdapterHub's options and ours: what can be said in both, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from peftport.errors import InputError
from peftport.formats import keys
from peftport.hosts.spec import HostSpec
from peftport.kinds import is_number
from peftport.methods.base import MethodConfig
from peftport.methods.bottleneck import ACTIVATIONS, BottleneckConfig
from peftport.methods.compacter import CompacterConfig
from peftport.methods.prefix import PrefixConfig

VERSION = "adapters.1.3.0"  # the release whose layout this is

# Every option of a bottleneck with the value that we write. Those in _FREE do not change what a
# trained adapter computes; those in _OURS are part of our config; all others must be as written.
_BOTTLENECK: dict[str, Any] = {
    "adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0,
    "factorized_phm_W": True, "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform", "init_weights": "bert",
    "init_weights_seed": None, "inv_adapter": None, "inv_adapter_reduction_factor": None,
    "is_parallel": False, "learn_phm": True, "leave_out": [], "ln_after": False,
    "ln_before": False, "mh_adapter": False, "non_linearity": "relu",
    "original_ln_after": True, "original_ln_before": False, "output_adapter": False,
    "phm_bias": True, "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001,
    "phm_layer": False, "phm_rank": 1, "reduction_factor": 16, "residual_before_ln": True,
    "scaling": 1.0, "shared_W_phm": False, "shared_phm_rule": True, "stochastic_depth": 0.0,
    "use_gating": False,
}  # fmt: skip
_PREFIX: dict[str, Any] = {
    "architecture": "prefix_tuning", "bottleneck_size": 512, "cross_prefix": True, "dropout": 0.0,
    "encoder_prefix": True, "flat": True, "init_weights_seed": None, "leave_out": [],
    "non_linearity": "tanh", "prefix_length": 30, "shared_gating": True, "use_gating": False,
}  # fmt: skip
_FREE = {
    "adapter_residual_before_ln", "dropout", "hypercomplex_nonlinearity", "init_weights",
    "init_weights_seed", "inv_adapter_reduction_factor", "learn_phm", "phm_c_init",
    "phm_init_range", "shared_gating", "stochastic_depth", "architecture",
}  # fmt: skip
_OURS = {
    "cross_adapter", "mh_adapter", "output_adapter", "non_linearity", "original_ln_before",
    "phm_dim", "phm_layer", "reduction_factor", "bottleneck_size", "cross_prefix",
    "encoder_prefix", "flat", "prefix_length",
}  # fmt: skip
_PHM = {"factorized_phm_W", "factorized_phm_rule", "phm_bias", "phm_rank", "shared_W_phm",
        "shared_phm_rule"}  # fmt: skip
_BLOCKS = {"self_attn": "mh_adapter", "cross_attn": "cross_adapter", "ff": "output_adapter"}


def positions(spec: HostSpec) -> str | None:
    """How AdapterHub places a prefix on this family (see methods/prefix.py); None where that was
    not compared with ours, and its prefixes are neither written nor read."""
    if keys.family_for(spec).stacks == ("decoder",):
        return None
    return "shifted" if spec.family == "t5" else "none"


def self_prefix(family: str) -> str:
    """AdapterHub's name of the last stack's self-attention prefix."""
    return "self" if family == "distilbert" else "self_prefix"


def model_class(spec: HostSpec) -> str:
    """transformers' class of the task model."""
    from transformers.models.auto import modeling_auto

    table = {
        ("encoder",): modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        ("encoder", "decoder"): modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        ("decoder",): modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }[keys.family_for(spec).stacks]
    return str(table[keys.model_type(spec)])


def labels(classes: int) -> list[str]:
    return [f"LABEL_{i}" for i in range(classes)]


def to_library(config: MethodConfig, spec: HostSpec) -> dict[str, Any]:
    """AdapterHub's full config of one of ours."""
    if isinstance(config, PrefixConfig):
        return _PREFIX | {
            "prefix_length": config.length,
            "cross_prefix": "cross_attn" in config.blocks,
            "encoder_prefix": len(spec.layers) == 1 or next(iter(spec.layers)) in config.stacks,
        }
    assert isinstance(config, BottleneckConfig)
    facts = _BOTTLENECK | {option: block in config.blocks for block, option in _BLOCKS.items()}
    facts |= {
        "reduction_factor": config.reduction,
        "non_linearity": config.activation,
        "original_ln_before": config.norm_first,
    }
    if isinstance(config, CompacterConfig):
        facts |= {"phm_layer": True, "phm_dim": config.n}
    return facts


def _refuse_others(options: Mapping[str, Any], known: Mapping[str, Any], skip: set[str]) -> None:
    for option, value in sorted(options.items()):
        if option in _FREE | _OURS | skip:
            continue
        if option not in known and value not in (None, False, [], {}):
            raise InputError(f"AdapterHub option {option} = {value!r} is not known")
        if option in known and value != known[option]:
            raise InputError(
                f"AdapterHub option {option} = {value!r} is not supported; expected "
                f"{known[option]!r}"
            )


def bottleneck(options: Mapping[str, Any], spec: HostSpec) -> BottleneckConfig:
    """Our config of a bottleneck or compacter. Raises InputError naming what we lack."""
    kind = options.get("architecture")
    if kind is not None:
        raise InputError(
            f"AdapterHub architecture '{kind}' is not supported; supported: bottleneck, compacter, "
            "prefix_tuning (lora is read from PEFT's folders)"
        )
    compacter = bool(options.get("phm_layer"))
    norm_first = bool(options.get("original_ln_before", False))
    skip = set() if compacter else set(_PHM)
    if not norm_first and options.get("residual_before_ln") is False:
        skip.add("residual_before_ln")  # the same thing without the norm
    _refuse_others(options, _BOTTLENECK, skip)
    reduction, activation = options.get("reduction_factor"), options.get("non_linearity")
    if not is_number(reduction):
        raise InputError(
            f"AdapterHub option reduction_factor = {reduction!r} is not supported; expected one "
            "number for all layers"
        )
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(
            f"AdapterHub option non_linearity = {activation!r} is not supported; known: "
            f"{', '.join(sorted(ACTIVATIONS))}"
        )
    on_host = {site.block for site in spec.sites}
    blocks = tuple(b for b, option in _BLOCKS.items() if options.get(option) and b in on_host)
    if compacter:
        n = options.get("phm_dim", 4)
        return CompacterConfig(reduction, activation, blocks, norm_first, n)
    return BottleneckConfig(reduction, activation, blocks, norm_first)


def prefix(options: Mapping[str, Any], spec: HostSpec) -> PrefixConfig:
    """Our config of a prefix. Raises InputError naming what we lack."""
    flat = bool(options.get("flat", False))
    _refuse_others(options, _PREFIX, {"non_linearity"} if flat else set())
    hidden = None if flat else options.get("bottleneck_size")
    first, *more = spec.layers
    stacks = tuple(PrefixConfig().stacks)
    if more and not options.get("encoder_prefix", True):
        stacks = tuple(s for s in spec.layers if s != first)
    blocks = tuple(PrefixConfig().blocks)
    if not options.get("cross_prefix", True):
        blocks = ("self_attn",)
    where = positions(spec)
    if where is None:
        raise InputError(
            f"AdapterHub's prefix on {spec.family} is not supported; PEFT's prefix on it is"
        )
    return PrefixConfig(options["prefix_length"], where, stacks, blocks, hidden)


def guess_prefix_host(
    groups: Mapping[str, Mapping[str, Tensor]], length: int, facts: Mapping[str, Any], family: str
) -> HostSpec:
    """The shape of a prefix's host from its tensors: a one-stack host has heads x d_kv = d_model;
    elsewhere a flat tensor does not say how it splits into layers."""
    d = facts.get("hidden_size")
    probe = keys.describe({"family": family, "layers": {"encoder": 1, "decoder": 1}}, gated=False)
    if not isinstance(d, int) or d < 1 or len(probe.layers) > 1:
        raise InputError(
            f"this folder does not say how many layers and heads its {family} host has; give the "
            "host's spec (peftport.inspect_host)"
        )
    own = groups.get(self_prefix(family), {})
    rows = own.get("control_trans.2.bias")
    size = rows.numel() if rows is not None else sum(t.numel() for t in own.values()) // length
    layers = max(1, size // (2 * d))
    return keys.describe(
        {"family": family, "layers": {"encoder": layers}, "d_model": d, "heads": 1, "d_kv": d},
        gated=False,
    )


def static_head(
    head: Mapping[str, Tensor], facts: Mapping[str, Any], spec: HostSpec
) -> dict[str, Tensor]:
    """A head under the names of ``...ForSequenceClassification``.

    A head of an AutoAdapterModel is the same one if it is a single linear layer on the pooler.
    """
    flexible = {k: m for k in head if (m := re.fullmatch(r"heads\.[^.]+\.(\d+)\.(\w+)", k))}
    if not flexible:
        given, ours = facts.get("model_class", model_class(spec)), model_class(spec)
        if given != ours:
            raise InputError(f"this is the head of a {given}; expected that of a {ours}")
        return dict(head)
    config = facts.get("config") or {}
    ok = config.get("head_type") == "classification" and config.get("layers") == 1
    if not ok or not config.get("use_pooler") or len({m[1] for m in flexible.values()}) != 1:
        raise InputError(
            "this head is not one linear layer on the pooler (head_type classification, layers 1, "
            "use_pooler); other heads are not supported"
        )
    if spec.family != "bert":
        raise InputError(
            f"a head of an AutoAdapterModel on {spec.family} has no counterpart in "
            f"{model_class(spec)}; save it from that class"
        )
    return {f"classifier.{m[2]}": head[k] for k, m in flexible.items()}
