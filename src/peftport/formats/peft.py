"""PEFT's folder: adapter_config.json and adapter_model.safetensors (PEFT 0.21).

lora: ``base_model.model.<module>.lora_A.weight`` [r, d_in] and ``lora_B.weight`` [d_out, r].
prefix: ``prompt_embeddings`` [l, pairs * 2 * heads * d_kv], keys before values, only for the
self-attention of the last stack, and with positions of a past. On an encoder pair i belongs to
layer i. On an encoder-decoder (two transformer submodules) PEFT doubles the list of pairs, gives
every layer two and drops the second: layer i runs pair 2 i modulo their number. So with as many
pairs as layers, PEFT's default, layers share pairs; with 2 * layers - 1 each has its own, and that
is what is written.
The head is one of ``modules_to_save``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftport.errors import InputError
from peftport.formats import keys
from peftport.formats.files import read_json, read_tensors, write_json, write_tensors
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import Method, MethodConfig, Module, State, methods
from peftport.methods.lora import LoraConfig
from peftport.methods.prefix import PrefixConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ROLES = ("q", "k", "v", "o", "up", "gate", "down")
_HEADS = ["classifier", "score"]  # what PEFT itself lists for SEQ_CLS

# Options that do not change what a trained module computes, or that are read below. Every other
# option must be off.
_READ = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "task_type", "modules_to_save", "megatron_core", "qalora_group_size",
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights",
    "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads",
    "num_transformer_submodules", "encoder_hidden_size", "prefix_projection", "init_weights",
}  # fmt: skip
_OFF: tuple[object, ...] = (None, False, "none", {}, [])


def why_not(module: Module, spec: HostSpec) -> str | None:
    """Why PEFT cannot run this module with equal logits; None where it can."""
    config = module.config
    if isinstance(config, LoraConfig):
        return None
    if not isinstance(config, PrefixConfig):
        return f"PEFT has no {config.method}"
    if config.positions != "past":
        return f"PEFT's prefixes are a past, this one has positions '{config.positions}'"
    given = {(s.stack, s.block) for s in _sites(spec, config)}
    if given != {(_last_stack(spec), "self_attn")}:
        return "PEFT's prefix acts on the self-attention of the last stack only"
    return None


def _sites(spec: HostSpec, config: MethodConfig) -> list[Site]:
    method: Method = methods.get(config.method)()
    return method.sites(spec, config)


def _last_stack(spec: HostSpec) -> str:
    return list(spec.layers)[-1]


# Writing ---------------------------------------------------------------------------------------


def write(folder: Path, module: Module, spec: HostSpec, base_model: str | None) -> None:
    """Write both files. Call :func:`why_not` first."""
    lora = isinstance(module.config, LoraConfig)
    task = "SEQ_2_SEQ_LM" if keys.family_for(spec).decides_by == "word" else "SEQ_CLS"
    facts: dict[str, Any] = {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "task_type": task if module.head or task == "SEQ_2_SEQ_LM" else None,
        "modules_to_save": _HEADS if module.head else None,
        "revision": None,
    }
    prefix = "base_model.model." if lora else "base_model."
    tensors = {f"{prefix}{name}": tensor for name, tensor in module.head.items()}
    if isinstance(module.config, LoraConfig):
        facts |= _lora_config(module.config, spec)
        for site, ab in module.state.items():
            path = keys.full_path(spec, spec.site(site))
            for name, tensor in ab.items():
                tensors[f"base_model.model.{path}.lora_{name}.weight"] = tensor
    else:
        assert isinstance(module.config, PrefixConfig)
        sites = _sites(spec, module.config)
        twice = len(spec.layers) > 1
        count = 2 * len(sites) - 1 if twice else len(sites)
        inner = spec.heads * spec.d_kv
        first = module.state[sites[0].name]["key"]
        table = first.new_zeros(module.config.length, count, 2, inner)
        for i, kv in enumerate(sites):
            own = module.state[kv.name]
            table[:, 2 * i if twice else i] = torch.stack([own["key"], own["value"]], dim=1)
        tensors["prompt_embeddings"] = table.flatten(1)  # [l, pairs * 2 * inner]
        facts |= {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": module.config.length,
            "num_layers": count,
            "num_attention_heads": spec.heads,
            "token_dim": inner,
            "num_transformer_submodules": 2 if twice else 1,
            "encoder_hidden_size": inner,
            "prefix_projection": False,
        }
    write_json(folder / CONFIG, facts)
    write_tensors(folder / WEIGHTS, tensors)


def _lora_config(config: LoraConfig, spec: HostSpec) -> dict[str, Any]:
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    return {
        "peft_type": "LORA",
        "r": config.r,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _targets(spec, config),
        "init_lora_weights": True,
    }


def _targets(spec: HostSpec, config: LoraConfig) -> list[str]:
    """The shortest path endings that match the module's linear layers and no other."""
    wanted = {keys.full_path(spec, s) for s in _sites(spec, config)}
    others = {keys.full_path(spec, s) for s in spec.sites if s.role in _ROLES} - wanted
    others.add(f"{keys.family_for(spec).weight_prefix}.pooler.dense")

    def ends(path: str, ending: str) -> bool:
        return path == ending or path.endswith(f".{ending}")

    endings: list[str] = []
    for path in sorted(wanted):
        if any(ends(path, e) for e in endings):
            continue
        parts = path.split(".")
        tails = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        endings.append(next(t for t in tails if not any(ends(o, t) for o in others)))
    return sorted(endings)


# Reading ---------------------------------------------------------------------------------------


def read(
    folder: Path, spec: HostSpec | None
) -> tuple[HostSpec, MethodConfig, State, dict[str, Tensor], str]:
    """(spec, config, state, head, base model's name) of a folder; the spec is guessed if None."""
    facts = read_json(folder / CONFIG)
    spec, config, state, head = from_tensors(read_tensors(folder / WEIGHTS), facts, spec)
    return spec, config, state, head, str(facts.get("base_model_name_or_path") or "")


def from_tensors(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], spec: HostSpec | None
) -> tuple[HostSpec, MethodConfig, State, dict[str, Tensor]]:
    """(spec, config, state, head) from PEFT's tensors, or from anything of their layout
    (gradients); ``facts`` is its config."""
    kind, tensors = facts.get("peft_type"), dict(tensors)
    if kind not in ("LORA", "PREFIX_TUNING"):
        raise InputError(f"peft_type {kind!r} is not supported; supported: LORA, PREFIX_TUNING")
    for option, value in sorted(facts.items()):
        if option not in _READ and value not in _OFF:
            raise InputError(f"PEFT option {option} = {value!r} is not supported; expected it off")
    read_body = _read_lora if kind == "LORA" else _read_prefix
    spec, config, state = read_body(facts, tensors, spec)
    prefix = "base_model.model." if kind == "LORA" else "base_model."
    saved = tuple(f"{name}." for name in facts.get("modules_to_save") or ())
    head: dict[str, Tensor] = {}
    for key in list(tensors):
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and saved and name.startswith(saved):
            head[name] = tensors.pop(key)
    if tensors:
        raise InputError(f"the weights file has a tensor that is not known: '{min(tensors)}'")
    return spec, config, state, head


def _whole(facts: Mapping[str, Any], name: str) -> int:
    value = facts.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"PEFT option {name} must be a whole number >= 1, got {value!r}")
    return value


def _read_lora(
    facts: Mapping[str, Any], tensors: dict[str, Tensor], spec: HostSpec | None
) -> tuple[HostSpec, LoraConfig, State]:
    init = facts.get("init_lora_weights", True)
    if init not in (True, False, "gaussian", "orthogonal", "eva"):
        raise InputError(
            f"PEFT option init_lora_weights = {init!r} is not supported: it changes the host"
        )
    r, alpha = _whole(facts, "r"), facts.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
        raise InputError(f"PEFT option lora_alpha must be > 0, got {alpha!r}")
    if facts.get("use_rslora"):  # alpha / sqrt(r) = (alpha sqrt(r)) / r
        alpha = alpha * math.sqrt(r)
    found: dict[str, dict[str, Tensor]] = {}
    for key in list(tensors):
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if match:
            found.setdefault(match[1], {})[match[2]] = tensors.pop(key)
    if not found:
        raise InputError("the weights file holds no lora_A and lora_B; is it a LoRA?")
    for path, ab in found.items():
        shapes = {name: tuple(t.shape) for name, t in sorted(ab.items())}
        ok = set(ab) == {"A", "B"} and all(t.dim() == 2 for t in ab.values())
        if not ok or ab["A"].shape[0] != r or ab["B"].shape[1] != r:
            raise InputError(f"'{path}' needs lora_A [{r}, d_in] and lora_B [d_out, {r}]: {shapes}")
    guessed = spec is None
    if spec is None:
        spec = keys.guess(found, _ROLES)
    known = keys.paths(spec, _ROLES)
    strange = sorted(set(found) - set(known))
    if strange:
        raise InputError(f"host family {spec.family} has no linear layer '{strange[0]}'")
    named = {known[path].name: ab for path, ab in found.items()}
    sites = [s for s in spec.sites if s.name in named]
    state = {s.name: {name: named[s.name][name] for name in ("A", "B")} for s in sites}
    if guessed:  # its widths are defaults; the tensors know better
        widths = {
            s: replace(s, d_in=state[s.name]["A"].shape[1], d_out=state[s.name]["B"].shape[0])
            for s in sites
        }
        spec = replace(spec, sites=tuple(widths.get(s, s) for s in spec.sites))
    roles = tuple(r for r in _ROLES if any(s.role == r for s in sites))
    config = LoraConfig(r, float(alpha), roles)
    if {s.name for s in _sites(spec, config)} != set(state):
        blocks = tuple(dict.fromkeys(s.block for s in sites))
        config = LoraConfig(r, float(alpha), roles, blocks)
    missing = [s.name for s in _sites(spec, config) if s.name not in state]
    if missing:
        raise InputError(
            f"this LoRA adapts some layers only: it lacks '{missing[0]}'; peftport needs the same "
            "linear layers in every layer of the host"
        )
    return spec, config, state


def _read_prefix(
    facts: Mapping[str, Any], tensors: dict[str, Tensor], spec: HostSpec | None
) -> tuple[HostSpec, PrefixConfig, State]:
    length, layers = _whole(facts, "num_virtual_tokens"), _whole(facts, "num_layers")
    inner, heads = _whole(facts, "token_dim"), _whole(facts, "num_attention_heads")
    if "prompt_embeddings" not in tensors:
        raise InputError("the weights file holds no prompt_embeddings; is it a prefix?")
    table = tensors.pop("prompt_embeddings")
    if tuple(table.shape) != (length, layers * 2 * inner):
        raise InputError(
            f"prompt_embeddings has shape {tuple(table.shape)}, its config asks for "
            f"{(length, layers * 2 * inner)}"
        )
    task = facts.get("task_type")
    if task not in ("SEQ_CLS", "SEQ_2_SEQ_LM"):
        raise InputError(f"task_type {task!r} is not supported; supported: SEQ_CLS, SEQ_2_SEQ_LM")
    if spec is None:
        family = "bert" if task == "SEQ_CLS" else "t5"
        shape = {"family": family, "layers": {"encoder": layers, "decoder": layers}}
        widths = {"d_model": inner, "heads": heads, "d_kv": inner // heads}
        spec = keys.describe(shape | widths, gated=False)
    elif (spec.heads, spec.heads * spec.d_kv) != (heads, inner):
        raise InputError(
            f"this prefix has {heads} heads of width {inner // heads}, the host has {spec.heads} "
            f"of {spec.d_kv}; port it to this host first (peftport.plan_port, peftport.apply_port)"
        )
    stack = _last_stack(spec)
    count, twice = spec.layers[stack], len(spec.layers) > 1
    config = PrefixConfig(length, "past")
    if len(spec.layers) > 1:
        config = PrefixConfig(length, "past", stacks=(stack,), blocks=("self_attn",))
    if facts.get("num_transformer_submodules") not in (None, 2 if twice else 1):
        raise InputError(
            f"PEFT option num_transformer_submodules = {facts['num_transformer_submodules']!r} "
            f"does not run on {spec.family}; expected {2 if twice else 1}"
        )
    if layers < count or (layers > count and not twice):
        raise InputError(f"this prefix has {layers} pairs, the host's {stack} has {count} layers")
    chunks = table.view(length, layers, 2, inner)
    state: State = {}
    for i, site in enumerate(_sites(spec, config)):
        pair = chunks[:, 2 * i % layers if twice else i]  # [l, 2, inner]
        state[site.name] = {
            "key": pair[:, 0].clone(),
            "value": pair[:, 1].clone(),
        }
    return spec, config, state
