"""Two pico hosts of one shape and a sound adapter folder of each library, made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peftport.formats import save_module
from peftport.hosts.load import inspect_host
from peftport.methods.base import Module, config_from_json, method_of
from peftport.testing.pico import pico_bert

CONFIGS = {
    "peft": {"method": "lora", "r": 4},
    "prefix": {"method": "prefix", "length": 3, "positions": "past"},
    "hub": {"method": "bottleneck", "reduction": 4},
    "phm": {"method": "compacter", "reduction": 4},
    "pairs": {"method": "prefix", "length": 3, "positions": "none"},
}


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``host``, ``other`` and one adapter of each kind, with a head."""
    root = tmp_path_factory.mktemp("sound")
    pico_bert(root / "host", 0)
    pico_bert(root / "other", 1)
    spec = inspect_host(str(root / "host"))
    for kind, facts in CONFIGS.items():
        config = config_from_json(facts)
        rng = torch.Generator().manual_seed(3)
        state = method_of(config).init(spec, config, rng)
        state = {
            site: {n: torch.randn(t.shape, generator=rng) for n, t in tensors.items()}
            for site, tensors in state.items()
        }
        head = {
            "classifier.weight": torch.randn(2, spec.d_model, generator=rng),
            "classifier.bias": torch.randn(2, generator=rng),
        }
        module = Module(config, state, head, spec.fingerprint, "host")
        save_module(replace(module, notes={"head": "pooler"}), root / kind, spec=spec)
    return root
