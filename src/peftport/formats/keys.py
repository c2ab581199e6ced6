"""Sites and the libraries' names for them, with or without the host at hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from peftport.errors import InputError
from peftport.hosts.families.base import Family, families
from peftport.hosts.spec import HostSpec, Site

#: a claim of more is no host's
MOST_LAYERS = 10_000


def family_for(spec: HostSpec) -> Family:
    return families.get(spec.family)()


def full_path(spec: HostSpec, site: Site) -> str:
    """Dotted path of a site's module in the task model: ``bert.encoder.layer.0...``; of an ``out``
    site, what AdapterHub puts its adapter into."""
    path, prefix = _path(spec, site), family_for(spec).weight_prefix
    return f"{prefix}.{path}" if prefix else path


def _path(spec: HostSpec, site: Site) -> str:
    family = family_for(spec)
    where = family.adapter_path if site.role == "out" else family.module_path
    return where(spec, site)


def paths(spec: HostSpec, roles: Iterable[str]) -> dict[str, tuple[Site, ...]]:
    """Module path -> its sites (several where one linear is fused) for all sites of some roles,
    with and without the body's own prefix (a body saved alone has none)."""
    wanted, found = set(roles), dict[str, tuple[Site, ...]]()
    for site in spec.sites:
        if site.role in wanted:
            for path in {_path(spec, site), full_path(spec, site)}:
                found[path] = (*found.get(path, ()), site)
    return found


def model_type(spec: HostSpec) -> str:
    """transformers' name of the architecture; the family's own name where it is one of several."""
    types = family_for(spec).model_types
    return spec.family if spec.family in types else min(types)


def describe(facts: Mapping[str, Any], gated: bool) -> HostSpec:
    """The spec of a host from its shape alone, as peftport.json stores it (no digests).

    Args:
        facts: ``HostSpec.to_json()``; widths that are missing keep the architecture's defaults.
        gated: whether its feed-forward has a gate, which the shape does not say.
    """
    from transformers import AutoConfig

    family = families.get(str(facts["family"]))()
    types = family.model_types
    config: Any = AutoConfig.for_model(family.name if family.name in types else min(types))
    layers = facts["layers"]
    if any(count > MOST_LAYERS for count in layers.values()):
        raise InputError(
            f"a host of {max(layers.values()):,} layers is claimed, expected at most "
            f"{MOST_LAYERS:,}; get the folder again"
        )
    heads, d_ff = facts.get("heads"), facts.get("d_ff")
    values = {
        "num_hidden_layers": layers.get(family.stacks[0], 0),
        "num_decoder_layers": layers.get("decoder", 0),
        "hidden_size": facts.get("d_model"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.get("kv_heads") or heads,
        "d_kv": facts.get("d_kv"),
        "head_dim": facts.get("d_kv"),
        "intermediate_size": d_ff,
        "d_ff": d_ff,
        "hidden_dim": d_ff,
        "n_inner": d_ff,
        "vocab_size": facts.get("vocab_size"),
        "is_gated_act": gated,
    }
    for key, value in values.items():
        if value is not None and hasattr(config, key):
            setattr(config, key, value)
    return family.describe(config)


def guess(modules: Iterable[str], roles: Iterable[str], only: str | None = None) -> HostSpec:
    """The host that module paths belong to, when nothing else says it; its widths are defaults.

    Args:
        modules: paths of adapted modules, from the keys of a weights file.
        roles: roles that these paths may have.
        only: the family, where the folder names the architecture.

    Raises:
        InputError: no known family has such modules.
    """
    wanted = sorted(set(modules))
    deepest = 1 + max((int(n) for m in wanted for n in re.findall(r"\.(\d{1,4})\b", m)), default=0)
    for name, _ in families:
        for gated in (False, True) if only in (None, name) else ():
            layers = {"encoder": deepest, "decoder": deepest}
            spec = describe({"family": name, "layers": layers}, gated)
            known = paths(spec, roles)
            if wanted and all(module in known for module in wanted):
                sites = [site for module in wanted for site in known[module]]
                layers = {
                    stack: 1 + max((s.layer for s in sites if s.stack == stack), default=-1)
                    for stack in spec.layers
                }
                return describe({"family": name, "layers": layers}, gated)
    raise InputError(
        f"no known host family has the module '{wanted[0] if wanted else 'none'}'; known: "
        f"{', '.join(families.names())}"
    )


def family_of_type(name: str) -> str:
    """Registered family of a ``model_type``. Raises InputError with the known ones."""
    for family, cls in families:
        if name in cls.model_types:
            return family
    known = ", ".join(sorted(t for _, cls in families for t in cls.model_types))
    raise InputError(f"adapter_config.json has the unknown model_type '{name}'; known: {known}")
