"""Bottleneck adapters: a small feed-forward network at the output of a block.

h <- h + up(f(down(x))) with x = h, before h is added to the residual stream (Houlsby et al.), or
with x = norm(h + residual) (``norm_first``; Pfeiffer et al., as AdapterHub's ``seq_bn`` does).
Source: Houlsby et al. 2019, arXiv 1902.00751, section 2.1; Pfeiffer et al. 2021, arXiv 2005.00247.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftport.errors import InputError
from peftport.hosts.families.base import Family
from peftport.hosts.packed.layout import Spans
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.bank import BankLayer, slot_linear
from peftport.methods.base import Method, MethodConfig, State, methods

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "swish": F.silu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class BottleneckConfig(MethodConfig):
    """
    Attributes:
        reduction: d_model / bottleneck width (rounded down to at least 1).
        activation: f.
        blocks: blocks that get an adapter; attention and feed-forward is Houlsby's double adapter.
        norm_first: read norm(h + residual) instead of h.
    """

    method = "bottleneck"
    reduction: float = 16
    activation: str = "swish"
    blocks: tuple[str, ...] = ("self_attn", "ff")
    norm_first: bool = False

    def check(self) -> None:
        self.require(self.reduction >= 0.01, "reduction", ">= 0.01")
        self.require(self.activation in ACTIVATIONS, "activation", f"one of {sorted(ACTIVATIONS)}")
        self.require_some("blocks", ("self_attn", "cross_attn", "ff"))

    def width(self, d_model: int) -> int:
        """Bottleneck width b, as AdapterHub rounds it."""
        return max(1, int(d_model // self.reduction))


@methods.register("bottleneck")
class Bottleneck(Method):
    name = "bottleneck"
    reference_url = "https://arxiv.org/abs/1902.00751"
    config_class: ClassVar[type[MethodConfig]] = BottleneckConfig

    def default_config(self, spec: HostSpec) -> BottleneckConfig:
        return BottleneckConfig()

    def sites(self, spec: HostSpec, config: BottleneckConfig) -> list[Site]:
        return [s for s in spec.sites if s.role == "out" and s.block in config.blocks]

    def init(self, spec: HostSpec, config: Any, generator: torch.Generator) -> State:
        """Weights from N(0, 0.02), biases zero: AdapterHub's default."""
        state: State = {}
        for site in self.sites(spec, config):
            d, b = site.d_out, config.width(site.d_out)
            state[site.name] = {
                "down": torch.empty(b, d).normal_(0, 0.02, generator=generator),
                "down_bias": torch.zeros(b),
                "up": torch.empty(d, b).normal_(0, 0.02, generator=generator),
                "up_bias": torch.zeros(d),
            }
        return state

    def matrices(self, state: State, name: str) -> tuple[Tensor, Tensor]:
        """(down [b, d], up [d, b]) of a site as nn.Linear weights."""
        return state[name]["down"], state[name]["up"]

    @staticmethod
    def effect(
        x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, activation: str
    ) -> Tensor:
        """x [..., d], down [b, d], up [d, b] -> [..., d]"""
        return F.linear(ACTIVATIONS[activation](F.linear(x, down, down_bias)), up, up_bias)

    def attach(
        self, family: Family, model: nn.Module, spec: HostSpec, config: Any, state: State
    ) -> list[Callable[[], None]]:
        undo: list[Callable[[], None]] = []
        for site in self.sites(spec, config):
            if site.name not in state:
                raise InputError(f"the module has no parameters for site '{site.name}'")
            point = family.out_point(model, spec, site)
            residual: list[Tensor] = []

            def read(
                _: nn.Module,
                args: tuple[Any, ...],
                kept: list[Tensor] = residual,
                at: int = point.residual_arg,
            ) -> None:
                kept[:] = [args[at]]

            def add(
                _: nn.Module,
                args: tuple[Any, ...],
                h: Tensor,
                name: str = site.name,
                kept: list[Tensor] = residual,
                norm: nn.Module | None = point.norm,
            ) -> Tensor:
                x = h
                if config.norm_first:
                    x = h + kept.pop()
                    x = norm(x) if norm is not None else x
                down, up = self.matrices(state, name)
                own = state[name]
                return h + self.effect(
                    x, down, own["down_bias"], up, own["up_bias"], config.activation
                )

            if config.norm_first:
                undo.append(point.parent.register_forward_pre_hook(read).remove)
            undo.append(point.value.register_forward_hook(add).remove)
        return undo

    def bank(
        self, spec: HostSpec, config: Any, state: State, head: Mapping[str, Tensor]
    ) -> BankLayer:
        return BottleneckBank(self, config, state, head)


class BottleneckBank(BankLayer):
    """Each slot's own small network on its rows of a block's output."""

    def __init__(
        self, method: Bottleneck, config: Any, state: State, head: Mapping[str, Tensor]
    ) -> None:
        super().__init__(config, state, head)
        self._method = method

    def out(
        self,
        site: str,
        h: Tensor,
        residual: Tensor,
        norm: Callable[[Tensor], Tensor] | None,
        spans: Spans,
    ) -> Tensor:
        own = self.state[site]
        down, up = self._method.matrices(self.state, site)  # [K, b, d], [K, d, b]
        x = h
        if self.config.norm_first:
            x = h + residual
            x = norm(x) if norm is not None else x
        inner = ACTIVATIONS[self.config.activation](
            slot_linear(x, down, own["down_bias"], spans)
        )  # [N, b]
        return h + slot_linear(inner, up, own["up_bias"], spans)
