"""Another rank for a LoRA: the carried update is cut, or filled up, at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, State, method_of
from peftport.methods.lora import LoraConfig
from peftport.porting.carriers.base import cast_like, doubles
from peftport.porting.lowrank import truncated


def at_rank(config: MethodConfig, rank: int) -> LoraConfig:
    """The config at another rank and the same scale alpha / r.

    Raises:
        InputError: a rank below 1, or a method that has none.
    """
    if not isinstance(config, LoraConfig):
        raise InputError(
            f"a rank is chosen for lora only, the module is {config.method}; leave --rank out"
        )
    if rank < 1:
        raise InputError(f"rank must be >= 1, got {rank}; leave --rank out to keep {config.r}")
    return replace(config, r=rank, alpha=config.scale * rank)


def to_rank(state: State, target: HostSpec, config: LoraConfig) -> tuple[State, dict[str, Any]]:
    """Every site's B A at the config's rank: the best approximation in the Frobenius norm.

    Where the rank grows, the product stays what it is; the new rows of A are a fresh module's, so
    that they can be trained, and the new columns of B are zero.

    Returns:
        The state, and by site the relative error.
    """
    fresh = method_of(config).init(target, config, torch.Generator().manual_seed(0))
    made: State = {}
    errors: dict[str, float] = {}
    before = 0
    for site, tensors in state.items():
        own = doubles(tensors)
        before = own["A"].shape[0]
        b, a, errors[site] = truncated(own["B"], own["A"], config.r)
        full = min(before, *b.shape[:1], a.shape[1])
        a[full:] = fresh[site]["A"][full:]
        made[site] = cast_like({"A": a, "B": b}, tensors)
    return made, {"from": before, "to": config.r, "error": errors}
