"""Tiny hosts, modules of every method with every tensor drawn, and what they compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftport.hosts.families.base import Words
from peftport.hosts.load import Host, load_host
from peftport.methods.attach import attach
from peftport.methods.base import Module, config_from_json, method_of

HOSTS = Path(__file__).resolve().parents[1] / "golden" / "data" / "hosts"

#: name -> (host, config, library that must be chosen)
MODULES: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert-lora": ("bert", {"method": "lora", "r": 4, "alpha": 6}, "peft"),
    "bert-lora-output": ("bert", {"method": "lora", "r": 2, "roles": ["o"]}, "peft"),
    "bert-lora-all": (
        "bert",
        {"method": "lora", "r": 2, "roles": ["q", "k", "v", "o", "up", "down"]},
        "peft",
    ),
    "bert-prefix-past": ("bert", {"method": "prefix", "length": 3, "positions": "past"}, "peft"),
    "bert-prefix-none": ("bert", {"method": "prefix", "length": 3}, "adapterhub"),
    "bert-bottleneck": ("bert", {"method": "bottleneck", "reduction": 4}, "adapterhub"),
    "bert-bottleneck-norm-first": (
        "bert",
        {"method": "bottleneck", "reduction": 8, "blocks": ["ff"], "norm_first": True},
        "adapterhub",
    ),
    "bert-compacter": ("bert", {"method": "compacter", "reduction": 4}, "adapterhub"),
    "t5-lora": ("t5", {"method": "lora", "r": 4, "alpha": 2.5}, "peft"),
    "t5-lora-cross": ("t5", {"method": "lora", "r": 2, "blocks": ["cross_attn"]}, "peft"),
    "t5-lora-ff": ("t5", {"method": "lora", "r": 2, "roles": ["gate", "up", "down"]}, "peft"),
    "t5-prefix-past": (
        "t5",
        {
            "method": "prefix",
            "length": 3,
            "positions": "past",
            "stacks": ["decoder"],
            "blocks": ["self_attn"],
        },
        "peft",
    ),
    "t5-prefix-shifted": (
        "t5",
        {"method": "prefix", "length": 3, "positions": "shifted"},
        "adapterhub",
    ),
    "t5-prefix-none": ("t5", {"method": "prefix", "length": 3, "positions": "none"}, "peftport"),
    "t5-bottleneck": (
        "t5",
        {"method": "bottleneck", "reduction": 4, "blocks": ["self_attn", "cross_attn", "ff"]},
        "adapterhub",
    ),
    "t5-compacter": ("t5", {"method": "compacter", "reduction": 4}, "adapterhub"),
}


@pytest.fixture(scope="session")
def hosts() -> dict[str, Host]:
    made = {kind: load_host(str(HOSTS / kind)) for kind in ("bert", "t5")}
    made["t5"].words = Words(((10, 1), (20, 21, 1)))
    return made


@pytest.fixture(scope="session")
def make(hosts: dict[str, Host]) -> Callable[[str], Module]:
    """make(name): a module of :data:`MODULES`."""

    def draw(name: str) -> Module:
        kind, facts, _ = MODULES[name]
        host = hosts[kind]
        config = config_from_json(facts)
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        state = method_of(config).init(host.spec, config, generator)
        for tensors in state.values():
            for key, tensor in tensors.items():
                tensors[key] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        head = {
            key: torch.randn(p.shape, generator=generator)
            for key, p in host.family.head_parameters(host.model).items()
        }
        notes = {"classes": ["bad", "good"], "task": {"template": "{text}"}}
        return Module(config, state, head, host.spec.fingerprint, "tiny host", notes)

    return draw


@pytest.fixture(scope="session")
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(5, 60, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 4:], mask[2, 6:] = 0, 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture(scope="session")
def logits(inputs: dict[str, Tensor]) -> Callable[..., Tensor]:
    """logits(model, host): [B, C] of an encoder, [B, W, V] of an encoder-decoder."""

    def compute(model: Any, host: Host) -> Tensor:
        kwargs: dict[str, Tensor] = {}
        if host.words is not None:
            kwargs["decoder_input_ids"] = torch.tensor([[0, 10, 7]] * 3)
        with torch.no_grad():
            return model(**inputs, **kwargs).logits

    return compute


@pytest.fixture(scope="session")
def attached(hosts: dict[str, Host], logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """attached(kind, module): what a host computes with a module attached."""

    def compute(kind: str, module: Module) -> Tensor:
        host = hosts[kind]
        with attach(host.model, module, spec=host.spec):
            return logits(host.model, host)

    return compute
