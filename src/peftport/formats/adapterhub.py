"""AdapterHub's folder: adapter_config.json, adapter.safetensors, and the head's two files.

As ``adapters`` 1.3 writes it with ``save_adapter(..., use_safetensors=True)``. The keys are the
model's own, with the adapter's name inside: ``<block>.adapters.<name>.adapter_down.0.weight``,
``shared_parameters.<name>.phm_rule``, ``prefix_tuning.prefix_tunings.<name>.self_prefix...``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftport.errors import InputError
from peftport.formats import adapterhub_config as configs
from peftport.formats import keys
from peftport.formats.files import read_json, read_tensors, write_json, write_tensors
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import SHARED, MethodConfig, Module, State, methods
from peftport.methods.bottleneck import BottleneckConfig
from peftport.methods.compacter import CompacterConfig
from peftport.methods.prefix import PrefixConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
HEAD_CONFIG, HEAD_WEIGHTS = "head_config.json", "model_head.safetensors"
NAME = "peftport"  # the adapter's name; load_adapter(..., load_as=...) gives it another

#: our tensor name -> AdapterHub's, below ``<block>.adapters.<name>.``
_BOTTLENECK = {
    "down": "adapter_down.0.weight",
    "down_bias": "adapter_down.0.bias",
    "up": "adapter_up.weight",
    "up_bias": "adapter_up.bias",
}
_COMPACTER = {
    "down_left": "adapter_down.0.W_left",
    "down_right": "adapter_down.0.W_right",
    "down_bias": "adapter_down.0.b",
    "up_left": "adapter_up.W_left",
    "up_right": "adapter_up.W_right",
    "up_bias": "adapter_up.b",
}
#: the head's tensor that has one number a class
_CLASSES = ("classifier.bias", "classifier.out_proj.bias")
#: the network of a reparameterised prefix
_NETWORK = {
    "embedding": "wte.weight",
    "w1": "control_trans.0.weight",
    "b1": "control_trans.0.bias",
    "w2": "control_trans.2.weight",
    "b2": "control_trans.2.bias",
}


def why_not(module: Module, spec: HostSpec) -> str | None:
    """Why AdapterHub cannot run this module with equal logits; None where it can."""
    config = module.config
    if isinstance(config, BottleneckConfig):
        return None
    if not isinstance(config, PrefixConfig):
        return f"AdapterHub's {config.method} is not written"
    if configs.positions(spec) is None:
        return f"AdapterHub's prefix on {spec.family} was not compared with ours"
    if config.positions != configs.positions(spec):
        return (
            f"AdapterHub runs prefixes on {spec.family} with positions "
            f"'{configs.positions(spec)}', this one has '{config.positions}'"
        )
    sites = methods.get("prefix")().sites(spec, config)
    if not any((s.stack, s.block) == (list(spec.layers)[-1], "self_attn") for s in sites):
        return "AdapterHub's prefix always acts on the self-attention of the last stack"
    return None


def group_name(spec: HostSpec, site: Site) -> str:
    """AdapterHub's name of the prefixes that one network makes."""
    if site.block == "cross_attn":
        return "cross_prefix"
    if site.stack != list(spec.layers)[-1]:
        return "encoder_prefix"
    return configs.self_prefix(spec.family)


def _groups(spec: HostSpec, config: PrefixConfig) -> dict[str, list[Site]]:
    groups: dict[str, list[Site]] = {}
    for site in methods.get("prefix")().sites(spec, config):
        groups.setdefault(group_name(spec, site), []).append(site)
    return groups


# Writing ---------------------------------------------------------------------------------------


def write(folder: Path, module: Module, spec: HostSpec, base_model: str | None) -> None:
    """Write adapter and head. Call :func:`why_not` first; a prefix must be direct."""
    family = keys.family_for(spec)
    body = f"{family.weight_prefix}." if family.weight_prefix else ""
    common = {
        "model_type": keys.model_type(spec),
        "hidden_size": spec.d_model,
        "model_name": base_model or "",
        "model_class": configs.model_class(spec),
        "version": configs.VERSION,
    }
    tensors: dict[str, Tensor] = {}
    if isinstance(module.config, PrefixConfig):
        for group, sites in _groups(spec, module.config).items():
            rows = [module.state[s.name][name] for s in sites for name in ("key", "value")]
            flat = torch.cat(rows, dim=1).flatten()  # [l * layers * 2 * inner]
            tensors[f"{body}prefix_tuning.prefix_tunings.{NAME}.{group}.control_trans"] = flat
    else:
        names = _COMPACTER if isinstance(module.config, CompacterConfig) else _BOTTLENECK
        for site, own in module.state.items():
            if site == SHARED:
                tensors[f"{body}shared_parameters.{NAME}.phm_rule"] = own["rule"]
                continue
            path = keys.full_path(spec, spec.site(site))
            for name, tensor in own.items():
                tensors[f"{path}.adapters.{NAME}.{names[name]}"] = tensor
    write_json(
        folder / CONFIG, common | {"name": NAME, "config": configs.to_library(module.config, spec)}
    )
    write_tensors(folder / WEIGHTS, tensors)
    if module.head:
        [classes] = (t.shape[0] for name, t in module.head.items() if name in _CLASSES)
        given = module.notes.get("classes")
        labels = list(given) if given and len(given) == classes else configs.labels(classes)
        facts: dict[str, Any] = {"config": None, "name": None, "num_labels": classes}
        facts["label2id"] = {str(label): i for i, label in enumerate(labels)}
        write_json(folder / HEAD_CONFIG, common | facts)
        write_tensors(folder / HEAD_WEIGHTS, module.head)


# Reading ---------------------------------------------------------------------------------------


def read(
    folder: Path, spec: HostSpec | None
) -> tuple[HostSpec, MethodConfig, State, dict[str, Tensor], str]:
    """(spec, config, state, head, base model's name) of a folder; the spec is guessed if None.

    A reparameterised prefix is returned with its network; ``Method.finish`` makes it direct.
    """
    facts = read_json(folder / CONFIG)
    options, name = facts.get("config"), facts.get("name")
    if not isinstance(options, dict) or not isinstance(name, str):
        raise InputError(f"'{folder / CONFIG}' lacks 'config' or 'name'; is it AdapterHub's?")
    family = keys.family_of_type(str(facts.get("model_type")))
    if spec is not None and spec.family != family:
        raise InputError(
            f"this adapter is for {facts['model_type']}, the host is of family {spec.family}"
        )
    tensors = canonical(read_tensors(folder / WEIGHTS), name)
    spec, config, state = from_tensors(tensors, options, facts, spec, family)
    head = _read_head(folder, spec)
    return spec, config, state, head, str(facts.get("model_name") or "")


def canonical(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Keys without the adapter's name and without the copies that a pool leaves in every layer.

    ``bert...output.adapters.<name>.adapter_up.bias`` -> ``bert...output/adapter_up.bias``;
    ``...prefix_tuning.prefix_tunings.<name>.self_prefix.x`` -> ``prefix/self_prefix.x``;
    ``...shared_parameters.<name>.phm_rule`` -> ``shared/phm_rule``.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        for mark, label in (
            (f".adapters.{name}.", None),
            (f"prefix_tunings.{name}.", "prefix"),
            (f"shared_parameters.{name}.", "shared"),
        ):
            path, hit, rest = key.partition(mark)
            if hit:
                new = f"{label or path}/{rest}"
                break
        else:
            raise InputError(f"the weights file has a tensor that is not known: '{key}'")
        if new in found and not torch.equal(found[new], tensor):
            raise InputError(f"the weights file has two different tensors '{new}'")
        found[new] = tensor
    return found


def from_tensors(
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
    spec: HostSpec | None,
    family: str,
) -> tuple[HostSpec, MethodConfig, State]:
    """Config and state from canonical tensors (or from anything of their layout: gradients)."""
    if options.get("architecture") == "prefix_tuning":
        return _read_prefix(tensors, options, facts, spec, family)
    modules = {key.partition("/")[0] for key in tensors} - {"shared"}
    if not modules:
        raise InputError("the weights file holds no adapter")
    if spec is None:
        guessed = keys.guess(modules, ("out",), family)
        d = facts.get("hidden_size")
        if not any(d in tensor.shape for tensor in tensors.values()):
            raise InputError(f"no tensor is hidden_size = {d!r} wide; get the folder again")
        shape = guessed.to_json() | {"d_model": d}
        spec = keys.describe(shape, gated=False)
    config = configs.bottleneck(options, spec)
    names = _COMPACTER if isinstance(config, CompacterConfig) else _BOTTLENECK
    back = {theirs: ours for ours, theirs in names.items()}
    known = keys.paths(spec, ("out",))
    state: State = {}
    for key, tensor in tensors.items():
        module, _, rest = key.partition("/")
        if key == "shared/phm_rule" and isinstance(config, CompacterConfig):
            state.setdefault(SHARED, {})["rule"] = tensor
        elif module in known and rest in back:
            [site] = known[module]
            state.setdefault(site.name, {})[back[rest]] = tensor
        else:
            raise InputError(f"the weights file has a tensor that is not known: '{key}'")
    if isinstance(config, CompacterConfig) and SHARED not in state:
        raise InputError(
            "the weights file lacks shared_parameters...phm_rule (AdapterHub 1.3 forgets it when "
            "it saves a compacter of a T5); without it the adapter cannot run"
        )
    order = [SHARED, *(s.name for s in spec.sites)]
    ordered = {
        site: {name: state[site][name] for name in ("rule", *names) if name in state[site]}
        for site in order
        if site in state
    }
    return spec, config, ordered


def _read_prefix(
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
    spec: HostSpec | None,
    family: str,
) -> tuple[HostSpec, PrefixConfig, State]:
    length = options.get("prefix_length")
    if not isinstance(length, int) or length < 1:
        raise InputError(f"AdapterHub option prefix_length must be >= 1, got {length!r}")
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        label, _, name = key.partition("/")
        group, dot, rest = name.partition(".")
        if label != "prefix" or not dot:
            raise InputError(f"the weights file has a tensor that is not known: '{key}'")
        groups.setdefault(group, {})[rest] = tensor
    if spec is None:
        spec = configs.guess_prefix_host(groups, length, facts, family)
    config = configs.prefix(options, spec)
    expected = _groups(spec, config)
    if set(expected) != set(groups):
        raise InputError(f"expected the prefixes {sorted(expected)}, got {sorted(groups)}")
    read_group: Callable[..., State] = _direct if config.hidden is None else _network
    state: State = {}
    for group, sites in expected.items():
        state |= read_group(groups[group], length, sites, group)
    return spec, config, state


def _direct(own: Mapping[str, Tensor], length: int, sites: list[Site], group: str) -> State:
    size = length * len(sites) * 2 * sites[0].d_out
    if set(own) != {"control_trans"} or own["control_trans"].numel() != size:
        shapes = {name: tuple(t.shape) for name, t in own.items()}
        raise InputError(f"{group} must be one control_trans of {size} numbers, got {shapes}")
    chunks = own["control_trans"].view(length, len(sites), 2, -1)  # [l, layers, 2, inner]
    return {
        site.name: {"key": chunks[:, i, 0].contiguous(), "value": chunks[:, i, 1].contiguous()}
        for i, site in enumerate(sites)
    }


def _network(own: Mapping[str, Tensor], length: int, sites: list[Site], group: str) -> State:
    if set(own) != set(_NETWORK.values()):
        raise InputError(f"{group} must hold {sorted(_NETWORK.values())}, got {sorted(own)}")
    name = f"{SHARED}.{sites[0].stack}.{sites[0].block}"
    return {name: {ours: own[theirs] for ours, theirs in _NETWORK.items()}}


def _read_head(folder: Path, spec: HostSpec) -> dict[str, Tensor]:
    """The classification head by its name in the task model; none for a host that answers with a
    word (AdapterHub saves that host's own lm_head, which no adapter trains)."""
    pickle = (folder / "pytorch_model_head.bin").is_file()
    if keys.family_for(spec).decides_by == "word":
        return {}
    if not (folder / HEAD_WEIGHTS).is_file() and not pickle:
        return {}
    head = read_tensors(folder / HEAD_WEIGHTS)
    facts = read_json(folder / HEAD_CONFIG) if (folder / HEAD_CONFIG).is_file() else {}
    return configs.static_head(head, facts, spec)
