"""A module as bytes, the way a store keeps it: safetensors with the config in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from peftport.errors import InputError
from peftport.methods.base import Module, State, config_from_json

_HEADER = "peftport"


def to_bytes(module: Module) -> bytes:
    """The same module gives the same bytes (one header entry: safetensors does not order them)."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.tensors()}
    facts = {
        "config": module.config.to_json(),
        "fingerprint": module.fingerprint,
        "host": module.host,
        "notes": dict(module.notes),
        "names": list(tensors),
    }
    return safetensors.torch.save(tensors, {_HEADER: json.dumps(facts, sort_keys=True)})


def from_bytes(content: bytes) -> Module:
    """What :func:`to_bytes` was given. Raises InputError when the bytes are something else."""
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])["__metadata__"][_HEADER]
        facts: Mapping[str, Any] = json.loads(header)
        tensors = safetensors.torch.load(content)
        state: State = {}
        head: dict[str, Tensor] = {}
        for flat in facts["names"]:
            site, _, name = str(flat).partition("/")
            where = head if site == "head" else state.setdefault(site, {})
            where[name] = tensors[flat]
        config = config_from_json(facts["config"])
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"not a module of a store: {error}; restore it from a copy") from None
    return Module(
        config, state, head, str(facts["fingerprint"]), str(facts["host"]), dict(facts["notes"])
    )


def named(module: Module, host: str) -> Module:
    """The module with its host called as the study calls it."""
    return replace(module, host=host)
