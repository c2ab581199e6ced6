"""Compacter: a bottleneck adapter whose matrices are sums of Kronecker products.

Each matrix is H = sum_i A_i (x) (s_i t_i^T) with n small matrices A_i shared by all sites and a
rank-one factor of its own, so that y = x H + b.
Source: Mahabadi et al. 2021, arXiv 2106.04647, eq. 4 and 6 (n = 4); the layout is AdapterHub's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import SHARED, State, methods
from peftport.methods.bottleneck import Bottleneck, BottleneckConfig


@dataclass(frozen=True)
class CompacterConfig(BottleneckConfig):
    """
    Attributes:
        n: number of Kronecker terms; it must divide d_model and the bottleneck width.
    """

    method = "compacter"
    reduction: float = 32
    activation: str = "gelu"
    n: int = 4

    def check(self) -> None:
        super().check()
        self.require(self.n >= 1, "n", ">= 1")


@methods.register("compacter")
class Compacter(Bottleneck):
    name = "compacter"
    reference_url = "https://arxiv.org/abs/2106.04647"
    config_class = CompacterConfig

    def default_config(self, spec: HostSpec) -> CompacterConfig:
        return CompacterConfig()

    def sites(self, spec: HostSpec, config: Any) -> list[Site]:
        d, b = spec.d_model, config.width(spec.d_model)
        if d % config.n or b % config.n:
            raise InputError(
                f"compacter.n = {config.n} must divide d_model = {d} and the bottleneck width {b}; "
                "change n or reduction"
            )
        return super().sites(spec, config)

    def init(self, spec: HostSpec, config: Any, generator: torch.Generator) -> State:
        """A from N(0, 1e-4) and factors Glorot-normal (what AdapterHub does), biases zero."""
        n = config.n
        rule = torch.empty(n, n, n).normal_(0, 1e-4, generator=generator)
        state: State = {SHARED: {"rule": rule}}

        def glorot(*shape: int) -> Tensor:
            std = math.sqrt(2 / (shape[-2] + shape[-1]))
            return torch.empty(*shape).normal_(0, std, generator=generator)

        for site in self.sites(spec, config):
            d, b = site.d_out, config.width(site.d_out)
            state[site.name] = {
                "down_left": glorot(n, d // n, 1),
                "down_right": glorot(n, 1, b // n),
                "down_bias": torch.zeros(b),
                "up_left": glorot(n, b // n, 1),
                "up_right": glorot(n, 1, d // n),
                "up_bias": torch.zeros(d),
            }
        return state

    def matrices(self, state: State, name: str) -> tuple[Tensor, Tensor]:
        rule, own = state[SHARED]["rule"], state[name]
        down = kronecker_sum(rule, own["down_left"], own["down_right"])  # [d, b]
        up = kronecker_sum(rule, own["up_left"], own["up_right"])  # [b, d]
        return down.mT, up.mT


def kronecker_sum(rule: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum_i kron(rule[i], left[i] @ right[i]): rule [..., n, n, n], left [..., n, p, 1],
    right [..., n, 1, q] -> [..., n p, n q]"""
    n, p, q = rule.shape[-1], left.shape[-2], right.shape[-1]
    blocks = torch.einsum("...iab,...ipq->...apbq", rule, left @ right)  # [..., n, p, n, q]
    return blocks.reshape(*rule.shape[:-3], n * p, n * q)
