"""peftport's own layout, for modules that no library runs with equal logits.

``module.safetensors`` holds ``<site>/<tensor>`` and ``head/<name>``; the config is in
peftport.json. ``peftport.attach`` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftport.errors import InputError
from peftport.formats.files import read_tensors, write_tensors
from peftport.methods.base import MethodConfig, Module, State, config_from_json

WEIGHTS = "module.safetensors"


def write(folder: Path, module: Module) -> None:
    write_tensors(folder / WEIGHTS, dict(module.tensors()))


def read(folder: Path, facts: Mapping[str, Any]) -> tuple[MethodConfig, State, dict[str, Tensor]]:
    """(config, state, head) of a folder whose peftport.json is ``facts``."""
    config = config_from_json(facts["config"])
    state: State = {}
    head: dict[str, Tensor] = {}
    for key, tensor in read_tensors(folder / WEIGHTS).items():
        site, slash, name = key.partition("/")
        if not slash:
            raise InputError(f"'{folder / WEIGHTS}' has a tensor that is not known: '{key}'")
        if site == "head":
            head[name] = tensor
        else:
            state.setdefault(site, {})[name] = tensor
    return config, state, head
