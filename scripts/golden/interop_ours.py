"""peftport's side of interop.py: save modules of every format, read the libraries' folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from interop import GOLDEN, MADE, Report, host_folder, inputs, record, recorded
from torch import Tensor

import peftport
from peftport.errors import InputError
from peftport.formats import convert_pickle, library_for
from peftport.hosts.load import Host
from peftport.methods.base import config_from_json, method_of
from peftport.testing import pico

_DECODER = {"stacks": ["decoder"], "blocks": ["self_attn"]}
_ALL = ["self_attn", "cross_attn", "ff"]
CASES: list[tuple[str, str, Mapping[str, Any]]] = [
    ("bert", "lora", {"method": "lora", "r": 4, "alpha": 6, "roles": ["q", "v", "down"]}),
    ("bert", "prefix-past", {"method": "prefix", "length": 3, "positions": "past"}),
    ("bert", "prefix-none", {"method": "prefix", "length": 3, "positions": "none"}),
    ("bert", "bottleneck", {"method": "bottleneck", "reduction": 4}),
    ("bert", "bottleneck-attention",
     {"method": "bottleneck", "reduction": 4, "blocks": ["self_attn"]}),
    ("bert", "bottleneck-norm-first",
     {"method": "bottleneck", "reduction": 8, "blocks": ["ff"], "activation": "relu",
      "norm_first": True}),
    ("bert", "compacter", {"method": "compacter", "reduction": 4}),
    ("t5", "lora", {"method": "lora", "r": 4, "alpha": 6}),
    ("t5", "prefix-past", {"method": "prefix", "length": 3, "positions": "past", **_DECODER}),
    ("t5", "prefix-shifted", {"method": "prefix", "length": 3, "positions": "shifted"}),
    ("t5", "prefix-shifted-decoder",
     {"method": "prefix", "length": 3, "positions": "shifted", **_DECODER}),
    ("t5", "bottleneck", {"method": "bottleneck", "reduction": 4}),
    ("t5", "bottleneck-cross", {"method": "bottleneck", "reduction": 4, "blocks": _ALL}),
    ("t5", "bottleneck-norm-first",
     {"method": "bottleneck", "reduction": 8, "blocks": ["ff"], "norm_first": True}),
    ("t5", "compacter", {"method": "compacter", "reduction": 4}),
    *((kind, name, facts) for kind in MADE for name, facts in {
        "lora": {"method": "lora", "r": 4, "alpha": 6},
        "bottleneck": {"method": "bottleneck", "reduction": 4},
        "bottleneck-norm-first":
            {"method": "bottleneck", "reduction": 8, "blocks": ["ff"], "norm_first": True},
        "compacter": {"method": "compacter", "reduction": 4},
    }.items()),
    ("roberta", "prefix-none", {"method": "prefix", "length": 3, "positions": "none"}),
    ("distilbert", "prefix-none", {"method": "prefix", "length": 3, "positions": "none"}),
    ("llama", "prefix-past", {"method": "prefix", "length": 3, "positions": "past"}),
    ("gpt2", "prefix-past", {"method": "prefix", "length": 3, "positions": "past"}),
]  # fmt: skip


def load(step: Path) -> dict[str, Host]:
    """All hosts, by kind."""
    kinds = [path.name for path in sorted(GOLDEN.iterdir()) if path.is_dir()]
    return {kind: peftport.load_host(str(host_folder(step, kind))) for kind in [*kinds, *MADE]}


def logits(host: Host, module: peftport.Module) -> Tensor:
    with peftport.attach(host.model, module, spec=host.spec), torch.no_grad():
        return host.model(**inputs(host.family.name)).logits


def draw(host: Host, facts: Mapping[str, Any]) -> peftport.Module:
    """A module with every tensor drawn, head included."""
    config = config_from_json(facts)
    generator = torch.Generator().manual_seed(len(str(facts)))
    state = method_of(config).init(host.spec, config, generator)
    for tensors in state.values():
        for name, tensor in tensors.items():
            tensors[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    head = {
        name: torch.randn(p.shape, generator=generator)
        for name, p in host.family.head_parameters(host.model).items()
    }
    notes = {"classes": ["bad", "good"]}
    return peftport.Module(config, state, head, host.spec.fingerprint, "tiny", notes)


def write(folder: Path) -> None:
    for kind in MADE:
        place = host_folder(folder, kind)
        place.mkdir(parents=True)
        getattr(pico, f"pico_{kind}")(place)
    hosts = load(folder)
    for kind, name, facts in CASES:
        host = hosts[kind]
        module = draw(host, facts)
        place = folder / f"{kind}-{name}"
        peftport.save_module(module, place / "module", spec=host.spec)
        library, _ = library_for(module, host.spec)
        record(place, kind, library, logits(host, module))
        print(f"written  {kind}-{name} for {library}")


def read(folder: Path, report: Report) -> None:
    rows = list(recorded(folder))
    hosts = load(folder)
    for name, kind, library, place, expected in rows:
        host = hosts[kind]
        if any(place.glob("*.bin")):
            try:
                peftport.load_module(place, spec=host.spec)
            except InputError as error:
                assert "convert_pickle" in str(error), error
            else:
                raise AssertionError(f"'{place}' holds a pickle and was not refused")
            convert_pickle(place)
        module = peftport.load_module(place, spec=host.spec)
        report.compare(name, f"peftport (made by {library})", logits(host, module), expected)
