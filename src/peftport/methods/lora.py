"""LoRA: a low-rank update of chosen linear layers.

h = W x + (alpha / r) B A x, with B = 0 at the start.
Source: Hu et al. 2021, arXiv 2106.09685, eq. 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftport.hosts.families.base import Family
from peftport.hosts.packed.device import batched
from peftport.hosts.packed.layout import Spans
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.bank import BankLayer
from peftport.methods.base import Method, MethodConfig, State, methods

_ROLES = ("q", "k", "v", "o", "up", "gate", "down")
_BLOCKS = ("self_attn", "cross_attn", "ff")


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
    blocks: tuple[str, ...] = _BLOCKS

    def check(self) -> None:
        self.require(self.r >= 1, "r", ">= 1")
        self.require(self.alpha > 0, "alpha", "> 0")
        self.require_some("roles", _ROLES)
        self.require_some("blocks", _BLOCKS)

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
            site = spec.site(name)
            columns = family.columns(spec, site)

            def add(
                _: nn.Module,
                args: tuple[Any, ...],
                out: Tensor,
                a: Tensor = a,
                b: Tensor = b,
                columns: slice | None = columns,
            ) -> Tensor:
                delta = self.delta(args[0], a, b, config.scale)
                if columns is not None:  # a part of a fused linear
                    delta = F.pad(delta, (columns.start, out.shape[-1] - columns.stop))
                return out + delta

            linear = family.submodule(model, spec, site)
            undo.append(linear.register_forward_hook(add).remove)
        return undo

    def bank(
        self, spec: HostSpec, config: LoraConfig, state: State, head: Mapping[str, Tensor]
    ) -> BankLayer:
        return LoraBank(config, state, head)


class LoraBank(BankLayer):
    """Adds each slot's own update to its rows of a linear layer's output."""

    def linear(self, site: str, x: Tensor, y: Tensor, start: int, spans: Spans) -> Tensor:
        own = self.state.get(site)
        if own is None:
            return y
        add = _BatchedDelta if batched(x.device) else _SlotDelta
        added: Tensor = add.apply(x, y, own["A"], own["B"], self.config.scale, start, spans)
        return added


class _SlotDelta(torch.autograd.Function):
    """y[:, start : start + d_out] += scale * B_k A_k x on every slot's rows, in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        start: int,
        spans: Spans,
    ) -> Tensor:
        d_out, r = b.shape[1:]
        inner = x.new_empty(len(x), r)  # [N, r]
        for k, (first, stop) in enumerate(spans):
            torch.mm(x[first:stop], a[k].t(), out=inner[first:stop])
            y[first:stop, start : start + d_out].addmm_(inner[first:stop], b[k].t(), alpha=scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, inner, a, b)
        ctx.facts = (scale, start, spans)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        x, inner, a, b = ctx.saved_tensors
        scale, start, spans = ctx.facts
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_a, grad_b = (
            torch.empty_like(t, memory_format=torch.contiguous_format) for t in (a, b)
        )
        for k, (first, stop) in enumerate(spans):
            own = grad[first:stop, start : start + b.shape[1]]  # [n, d_out]
            through = torch.mm(own, b[k]).mul_(scale)  # [n, r]
            torch.mm(through.t(), x[first:stop], out=grad_a[k])
            torch.mm(own.t(), inner[first:stop], out=grad_b[k])
            if grad_x is not None:
                torch.mm(through, a[k], out=grad_x[first:stop])
        needs_y = ctx.needs_input_grad[1]
        return grad_x, grad if needs_y else None, grad_a, grad_b.mul_(scale), None, None, None


class _BatchedDelta(torch.autograd.Function):
    """What :class:`_SlotDelta` does, in one product for all slots, which have M rows each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        start: int,
        spans: Spans,
    ) -> Tensor:
        rows, out = (t.view(len(spans), -1, t.shape[1]) for t in (x, y))  # [K, M, ...]
        inner = torch.bmm(rows, a.mT)  # [K, M, r]
        out[..., start : start + b.shape[1]].add_(torch.bmm(inner, b.mT), alpha=scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, inner, a, b)
        ctx.facts = (scale, start)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        x, inner, a, b = ctx.saved_tensors
        scale, start = ctx.facts
        rows, above = (t.view(len(a), -1, t.shape[1]) for t in (x, grad))
        own = above[..., start : start + b.shape[1]]  # [K, M, d_out]
        through = torch.bmm(own, b).mul_(scale)  # [K, M, r]
        grad_a = torch.bmm(through.mT, rows)
        grad_b = torch.bmm(own.mT, inner).mul_(scale)
        grad_x = torch.bmm(through, a).flatten(0, 1) if ctx.needs_input_grad[0] else None
        needs_y = ctx.needs_input_grad[1]
        return grad_x, grad if needs_y else None, grad_a, grad_b, None, None, None
