"""PEFT's folder: adapter_config.json and adapter_model.safetensors (PEFT 0.21).

lora: ``base_model.model.<module>.lora_A.weight`` [r, d_in] and ``lora_B.weight`` [d_out, r]; of a
linear that several sites share see formats/fused.py.
prefix: ``prompt_embeddings`` [l, pairs * 2 * kv_heads * d_kv], keys before values, only for the
self-attention of the last stack, and with positions of a past. With one stack pair i belongs to
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
from peftport.formats import facts as ours
from peftport.formats import fused, keys
from peftport.formats.files import read_json, read_tensors, write_json, write_tensors
from peftport.hosts.spec import HostSpec, Site
from peftport.kinds import is_number, is_whole
from peftport.methods.base import Method, MethodConfig, Module, State, methods
from peftport.methods.lora import LoraConfig
from peftport.methods.prefix import PrefixConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ROLES = ("q", "k", "v", "o", "up", "gate", "down")
_HEADS = ["classifier", "score"]  # what PEFT itself lists for SEQ_CLS
_TASKS = {
    ("encoder",): "SEQ_CLS",
    ("encoder", "decoder"): "SEQ_2_SEQ_LM",
    ("decoder",): "CAUSAL_LM",
}

# Options that do not change what a trained module computes, or that are read below. Every other
# option must be off.
_READ = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "task_type", "modules_to_save", "megatron_core", "qalora_group_size",
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights",
    "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads",
    "num_transformer_submodules", "encoder_hidden_size", "prefix_projection", "init_weights",
}  # fmt: skip
# Options that only mean something where linears are stored [d_in, d_out] and fused.
_FUSED = ("alpha_pattern", "fan_in_fan_out", "rank_pattern")
_OFF: tuple[object, ...] = (None, False, "none", {}, [])


def why_not(module: Module, spec: HostSpec) -> str | None:
    """Why PEFT cannot run this module with equal logits; None where it can."""
    config = module.config
    if isinstance(config, LoraConfig):
        return None
    if not isinstance(config, PrefixConfig):
        return f"PEFT has no {config.method}"
    if not keys.family_for(spec).peft_prefix:
        return f"PEFT cannot run a prefix on {spec.family}"
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
    task = _TASKS[keys.family_for(spec).stacks]
    facts: dict[str, Any] = {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "task_type": task if module.head or task != "SEQ_CLS" else None,
        "modules_to_save": _saved(module) if module.head else None,
        "revision": None,
    }
    prefix = "base_model.model." if lora else "base_model."
    tensors = {f"{prefix}{name}": tensor for name, tensor in module.head.items()}
    if isinstance(module.config, LoraConfig):
        pairs, factors = _pairs(module.state, spec)
        facts |= _lora_config(module.config, spec, factors)
        for path, ab in pairs.items():
            for name, tensor in zip("AB", ab, strict=True):
                tensors[f"base_model.model.{path}.lora_{name}.weight"] = tensor
    else:
        assert isinstance(module.config, PrefixConfig)
        sites = _sites(spec, module.config)
        twice = len(spec.layers) > 1
        count = 2 * len(sites) - 1 if twice else len(sites)
        inner = spec.kv_heads * spec.d_kv
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
            "num_attention_heads": spec.kv_heads,  # of keys: PEFT's own word for them
            "token_dim": inner,
            "num_transformer_submodules": 2 if twice else 1,
            "encoder_hidden_size": inner,
            "prefix_projection": False,
        }
    write_json(folder / CONFIG, facts)
    write_tensors(folder / WEIGHTS, tensors)


def _saved(module: Module) -> list[str]:
    """Modules of the head, with PEFT's own list where it covers them."""
    own = list(dict.fromkeys(name.split(".")[0] for name in module.head))
    return _HEADS if own == ["classifier"] else own


def _pairs(state: State, spec: HostSpec) -> tuple[dict[str, fused.Pair], dict[str, int]]:
    """(A, B) by the path of the linear, and for every linear how its rank has grown."""
    parts: dict[str, dict[str, fused.Pair]] = {}
    for name, ab in state.items():
        site = spec.site(name)
        parts.setdefault(keys.full_path(spec, site), {})[site.role] = (ab["A"], ab["B"])
    columns = {path: columns for path in parts if (columns := _columns(spec, path))}
    shared = all(fused.shares(parts[path], own) for path, own in columns.items())
    pairs, factors = {}, {}
    for path, own in parts.items():
        if path in columns:
            pairs[path] = fused.join(own, columns[path], shared)
            factors[path] = 1 if shared else len(own)
        else:
            [pairs[path]] = own.values()
            factors[path] = 1
    return pairs, factors


def _columns(spec: HostSpec, path: str) -> dict[str, slice]:
    """role -> output columns of a linear that several sites share; empty for one that is not."""
    family = keys.family_for(spec)
    sites = keys.paths(spec, _ROLES)[path]
    return {s.role: own for s in sites if (own := family.columns(spec, s)) is not None}


def _lora_config(config: LoraConfig, spec: HostSpec, factors: Mapping[str, int]) -> dict[str, Any]:
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    grown = {path.rpartition(".")[2]: n for path, n in factors.items() if n > 1}
    everywhere = next(iter(factors.values())) if len(set(factors.values())) == 1 else 1
    facts = {
        "peft_type": "LORA",
        "r": config.r * everywhere,
        "lora_alpha": alpha * everywhere,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _targets(spec, config),
        "init_lora_weights": True,
    }
    if keys.family_for(spec).transposed:
        facts["fan_in_fan_out"] = True
    if everywhere == 1 and grown:
        facts["rank_pattern"] = {name: config.r * n for name, n in grown.items()}
        facts["alpha_pattern"] = {name: alpha * n for name, n in grown.items()}
    return facts


def _targets(spec: HostSpec, config: LoraConfig) -> list[str]:
    """The shortest path endings that match the module's linear layers and no other."""
    wanted = {keys.full_path(spec, s) for s in _sites(spec, config)}
    others = {keys.full_path(spec, s) for s in spec.sites if s.role in _ROLES} - wanted
    others |= {f"{keys.family_for(spec).weight_prefix}.pooler.dense", "classifier.dense"}

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
    known = ours.read(folder)
    spec, config, state, head = from_tensors(
        read_tensors(folder / WEIGHTS), facts, spec, known.config if known is not None else None
    )
    return spec, config, state, head, str(facts.get("base_model_name_or_path") or "")


def from_tensors(
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    spec: HostSpec | None,
    known: MethodConfig | None = None,
) -> tuple[HostSpec, MethodConfig, State, dict[str, Tensor]]:
    """(spec, config, state, head) from PEFT's tensors, or from anything of their layout
    (gradients); ``facts`` is its config, ``known`` ours where peftport.json has it."""
    kind, tensors = facts.get("peft_type"), dict(tensors)
    if kind not in ("LORA", "PREFIX_TUNING"):
        raise InputError(f"peft_type {kind!r} is not supported; supported: LORA, PREFIX_TUNING")
    for option, value in sorted(facts.items()):
        if option not in _READ and value not in _OFF and option not in _FUSED:
            raise _not_off(option, value)
    config: MethodConfig
    if kind == "LORA":
        spec, config, state = _read_lora(facts, tensors, spec, known)
    else:
        spec, config, state = _read_prefix(facts, tensors, spec)
    prefix = "base_model.model." if kind == "LORA" else "base_model."
    saved = tuple(facts.get("modules_to_save") or ())
    head: dict[str, Tensor] = {}
    for key in list(tensors):
        name = key.removeprefix(prefix)
        # PEFT saves every module whose name ends so: pre_classifier goes with classifier
        if key.startswith(prefix) and saved and name.split(".")[0].endswith(saved):
            head[name] = tensors.pop(key)
    if tensors:
        raise InputError(f"the weights file has a tensor that is not known: '{min(tensors)}'")
    return spec, config, state, head


def _not_off(option: str, value: object) -> InputError:
    return InputError(f"PEFT option {option} = {value!r} is not supported; expected it off")


def _whole(facts: Mapping[str, Any], name: str) -> int:
    value = facts.get(name)
    if not is_whole(value) or value < 1:
        raise InputError(f"PEFT option {name} must be a whole number >= 1, got {value!r}")
    return value


def _read_lora(
    facts: Mapping[str, Any],
    tensors: dict[str, Tensor],
    spec: HostSpec | None,
    known_config: MethodConfig | None,
) -> tuple[HostSpec, LoraConfig, State]:
    init = facts.get("init_lora_weights", True)
    if init not in (True, False, "gaussian", "orthogonal", "eva"):
        raise InputError(
            f"PEFT option init_lora_weights = {init!r} is not supported: it changes the host"
        )
    found: dict[str, dict[str, Tensor]] = {}
    for key in list(tensors):
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if match:
            found.setdefault(match[1], {})[match[2]] = tensors.pop(key)
    if not found:
        raise InputError("the weights file holds no lora_A and lora_B; is it a LoRA?")
    guessed = spec is None
    if spec is None:
        spec = keys.guess(found, _ROLES)
    for option in _FUSED:
        if facts.get(option) not in _OFF and not keys.family_for(spec).transposed:
            raise _not_off(option, facts[option])
    ranks = {path: _rank(facts, path) for path in found}
    for path, ab in found.items():
        shapes = {name: tuple(t.shape) for name, t in sorted(ab.items())}
        ok = set(ab) == {"A", "B"} and all(t.dim() == 2 for t in ab.values())
        r = ranks[path][0]
        if not ok or ab["A"].shape[0] != r or ab["B"].shape[1] != r:
            raise InputError(f"'{path}' needs lora_A [{r}, d_in] and lora_B [d_out, {r}]: {shapes}")
    if guessed and keys.family_for(spec).transposed:  # where columns begin depends on the width
        spec = keys.describe(spec.to_json() | {"d_model": _width(spec, found)}, gated=False)
    known = keys.paths(spec, _ROLES)
    strange = sorted(set(found) - set(known))
    if strange:
        raise InputError(f"host family {spec.family} has no linear layer '{strange[0]}'")
    pairs = {path: (ab["A"], ab["B"]) for path, ab in found.items()}
    named, scales = _by_site(spec, pairs, ranks, known_config)
    if len(set(scales)) != 1:
        raise InputError(
            "this LoRA has different ranks or alphas in different linear layers; peftport needs "
            f"the same everywhere, got (r, alpha) {sorted(set(scales))}"
        )
    r, alpha = scales[0]
    sites = [s for s in spec.sites if s.name in named]
    state = {s.name: dict(zip("AB", named[s.name], strict=True)) for s in sites}
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


def _rank(facts: Mapping[str, Any], path: str) -> tuple[int, float]:
    """(rank, alpha with alpha / rank the scale) of a linear; the patterns name its last part."""
    own = dict(facts)
    for pattern, option in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        own[option] = (facts.get(pattern) or {}).get(path.rpartition(".")[2], facts.get(option))
    r, alpha = _whole(own, "r"), own.get("lora_alpha")
    if not is_number(alpha) or not 0 < alpha < math.inf:
        raise InputError(f"PEFT option lora_alpha must be > 0, got {alpha!r}")
    # rslora scales by alpha / sqrt(r) = (alpha sqrt(r)) / r
    return r, float(alpha * math.sqrt(r) if facts.get("use_rslora") else alpha)


def _width(spec: HostSpec, found: Mapping[str, Mapping[str, Tensor]]) -> int:
    """d_model by a linear that reads it."""
    for path, sites in keys.paths(spec, _ROLES).items():
        if path in found and sites[0].role != "down":
            return int(found[path]["A"].shape[1])
    return int(next(iter(found.values()))["B"].shape[0])


def _by_site(
    spec: HostSpec,
    pairs: Mapping[str, fused.Pair],
    ranks: Mapping[str, tuple[int, float]],
    known: MethodConfig | None,
) -> tuple[dict[str, fused.Pair], list[tuple[int, float]]]:
    """(A, B) by site, and every linear's (r, alpha), with shared linears taken apart."""
    sites = keys.paths(spec, _ROLES)
    columns = {path: own for path in pairs if (own := _columns(spec, path))}
    for path, own in columns.items():
        width = max(part.stop for part in own.values())
        if pairs[path][1].shape[0] != width:
            got = pairs[path][1].shape[0]
            raise InputError(f"'{path}' has lora_B of {got} rows, this host needs {width}")
    roles: tuple[str, ...] | None = None
    if columns:
        told = (known.r, known.roles) if isinstance(known, LoraConfig) else None
        of_one = next(iter(columns.values()))
        roles = fused.layout([pairs[path] for path in columns], of_one, told)
    found: dict[str, fused.Pair] = {}
    scales: list[tuple[int, float]] = []
    for path, pair in pairs.items():
        r, alpha = ranks[path]
        if path not in columns:
            found[sites[path][0].name] = pair
            scales.append((r, alpha))
            continue
        own_parts = fused.split(pair, columns[path], roles)
        by_role = {s.role: s.name for s in sites[path]}
        found |= {by_role[role]: part for role, part in own_parts.items()}
        count = len(roles or ("all",))
        scales.append((r // count, alpha / count))
    return found, scales


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
    if task not in _TASKS.values():
        known = ", ".join(sorted(_TASKS.values()))
        raise InputError(f"task_type {task!r} is not supported; supported: {known}")
    if spec is None:
        if task == "CAUSAL_LM":
            raise InputError(
                "a prefix of a causal language model does not say which one it is for; give the "
                "host's spec (peftport.inspect_host)"
            )
        family = "bert" if task == "SEQ_CLS" else "t5"
        shape = {"family": family, "layers": {"encoder": layers, "decoder": layers}}
        widths = {"d_model": inner, "heads": heads, "d_kv": inner // heads}
        spec = keys.describe(shape | widths, gated=False)
    elif task != (expected := _TASKS[keys.family_for(spec).stacks]):
        raise InputError(f"task_type {task!r} does not run on {spec.family}; expected {expected}")
    elif (spec.kv_heads, spec.kv_heads * spec.d_kv) != (heads, inner):
        raise InputError(
            f"this prefix has {heads} heads of width {inner // heads}, the host has "
            f"{spec.kv_heads} of {spec.d_kv}; port it: peftport port ADAPTER "
            "--target HOST -o OUT"
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
