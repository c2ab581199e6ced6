"""LoRA: a low-rank update of chosen linear layers.

h = W x + (alpha / r) B A x, with B = 0 at the start.
Source: Hu et al. 2021, arXiv 2106.09685, eq. 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftport.hosts.families.base import Family
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import Method, MethodConfig, State, methods

_ROLES = ("q", "k", "v", "o", "up", "gate", "down")


@dataclass(frozen=True)
class LoraConfig(MethodConfig):
    """
    Attributes:
        r: rank of the update.
        alpha: the update is scaled by alpha / r.
        roles: linear layers that get an update.
        blocks: blocks whose linear layers are meant.
    """

    method = "lora"
    r: int = 8
    alpha: float = 16.0
    roles: tuple[str, ...] = ("q", "v")
    blocks: tuple[str, ...] = ("self_attn", "cross_attn", "ff")

    def check(self) -> None:
        self.require(isinstance(self.r, int) and self.r >= 1, "r", ">= 1")
        self.require(self.alpha > 0, "alpha", "> 0")
        self.require(
            bool(self.roles) and set(self.roles) <= set(_ROLES), "roles", f"some of {_ROLES}"
        )
        self.require(bool(self.blocks), "blocks", "at least one block")

    @property
    def scale(self) -> float:
        return self.alpha / self.r


@methods.register("lora")
class Lora(Method):
    name = "lora"
    reference_url = "https://arxiv.org/abs/2106.09685"
    config_class = LoraConfig

    def default_config(self, spec: HostSpec) -> LoraConfig:
        return LoraConfig()

    def sites(self, spec: HostSpec, config: LoraConfig) -> list[Site]:
        return [s for s in spec.sites if s.role in config.roles and s.block in config.blocks]

    def init(self, spec: HostSpec, config: LoraConfig, generator: torch.Generator) -> State:
        """A uniform in +-1/sqrt(d_in) (PEFT's Kaiming-uniform with a = sqrt 5), B zero."""
        state: State = {}
        for site in self.sites(spec, config):
            bound = 1 / math.sqrt(site.d_in)
            a = torch.empty(config.r, site.d_in).uniform_(-bound, bound, generator=generator)
            state[site.name] = {"A": a, "B": torch.zeros(site.d_out, config.r)}
        return state

    @staticmethod
    def delta(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """x [..., d_in], a [r, d_in], b [d_out, r] -> [..., d_out]"""
        return F.linear(F.linear(x, a), b) * scale

    def attach(
        self, family: Family, model: nn.Module, spec: HostSpec, config: LoraConfig, state: State
    ) -> list[Callable[[], None]]:
        undo: list[Callable[[], None]] = []
        for name, tensors in state.items():
            a, b = tensors["A"], tensors["B"]

            def add(
                _: nn.Module, args: tuple[Any, ...], out: Tensor, a: Tensor = a, b: Tensor = b
            ) -> Tensor:
                return out + self.delta(args[0], a, b, config.scale)

            linear = family.submodule(model, spec, spec.site(name))
            undo.append(linear.register_forward_hook(add).remove)
        return undo
