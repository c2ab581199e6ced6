"""A bank: K modules of one method at work on one frozen host at once.

Every parameter has a leading axis K. Texts come packed, slot after slot, so each slot's rows are a
span; what a module does to its rows is computed span by span (on an accelerator: in one batched
product) and never mixes two slots: a slot that holds NaN cannot touch another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.packed.base import Acts
from peftport.hosts.packed.device import batched, wide
from peftport.hosts.packed.layout import Spans
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, Module, State, method_of


class BankLayer(Acts):
    """How K modules of a method act; a method overrides what it uses.

    Args:
        config: the modules' common config.
        state: their tensors by site, each [K, ...].
        head: their head tensors, each [K, ...].
    """

    def __init__(self, config: Any, state: State, head: Mapping[str, Tensor]) -> None:
        super().__init__(head)
        self.config, self.state = config, state

    def acts_on(self, *sites: str) -> bool:
        return any(site in self.state for site in sites)

    def refresh(self) -> None:
        """Called once before every pass: compute what depends on the parameters alone."""


class Bank:
    """K modules stacked, with all their parameters in one tensor.

    Args:
        spec: their host's.
        modules: K modules of one config and the same shapes.
        dtype: the host's. Parameters are kept in float32 at least, and rounded to it when they
            act.
        grad: whether they are trained.
        device: the host's.

    Attributes:
        flat: every slot's parameters  [K, P]: the body's first, then the head's.
        body: how many of the P belong to the body.
        leaves: views by tensor of ``flat``, or of its copy in the host's dtype; autograd sees them.
        layer: the bank layer over those views.
    """

    def __init__(
        self,
        spec: HostSpec,
        modules: Sequence[Module],
        *,
        dtype: torch.dtype,
        grad: bool,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        first = modules[0]
        for module in modules[1:]:
            if module.config != first.config or _shapes(module) != _shapes(first):
                raise InputError(
                    "modules of a bank must have one config and the same shapes, got "
                    f"{first.config} and {module.config}"
                )
        self.modules = list(modules)
        kept = wide(dtype)
        self.flat = torch.stack(
            [torch.cat([t.detach().to(kept).flatten() for _, t in m.tensors()]) for m in modules]
        ).to(device)  # [K, P]
        self._live = self.flat.to(dtype)  # flat itself where that is its dtype
        self.body = sum(t.numel() for ts in first.state.values() for t in ts.values())
        self.leaves: list[Tensor] = []
        at = 0
        state: State = {}
        head: dict[str, Tensor] = {}
        for site, tensors in first.state.items():
            state[site] = {}
            for name, tensor in tensors.items():
                state[site][name], at = self._leaf(tensor, at, grad)
        for name, tensor in first.head.items():
            head[name], at = self._leaf(tensor, at, grad)
        layer = method_of(first.config).bank(spec, first.config, state, head)
        if layer is None:
            raise InputError(f"method '{first.config.method}' has no bank layer")
        self.layer: BankLayer = layer

    def _leaf(self, like: Tensor, at: int, grad: bool) -> tuple[Tensor, int]:
        end = at + like.numel()
        leaf = self._live[:, at:end].view(len(self.flat), *like.shape).detach()
        self.leaves.append(leaf.requires_grad_(grad))
        return leaf, end

    def refresh(self) -> None:
        """Called once before every pass, since ``flat`` may have changed."""
        if self._live is not self.flat:
            with torch.no_grad():
                self._live.copy_(self.flat)
        self.layer.refresh()

    def gradients(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Gradients of the leaves side by side, in the dtype of ``flat``  [K, P]; zero where one
        is unused."""
        rows = len(self.flat)
        parts = [
            (torch.zeros_like(leaf) if grad is None else grad).reshape(rows, -1)
            for leaf, grad in zip(self.leaves, grads, strict=True)
        ]
        return torch.cat(parts, dim=1).to(self.flat.dtype)

    def module(self, slot: int, spec: HostSpec) -> Module:
        """A detached copy of one slot's module, in the form that is kept."""
        like = self.modules[slot]
        row = self.flat[slot].detach().cpu()
        tensors = [tensor for _, tensor in like.tensors()]
        parts = iter(row.split([t.numel() for t in tensors]))
        state = {
            site: {name: next(parts).view(t.shape).clone() for name, t in own.items()}
            for site, own in like.state.items()
        }
        head = {name: next(parts).view(t.shape).clone() for name, t in like.head.items()}
        config, kept = method_of(like.config).finish(spec, like.config, state)
        return replace(like, config=config, state=kept, head=head)


def has_bank(config: MethodConfig) -> bool:
    """Whether a method can be stacked."""
    from peftport.methods.base import Method

    return type(method_of(config)).bank is not Method.bank


def _shapes(module: Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in module.tensors()]


def slot_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spans: Spans) -> Tensor:
    """Every slot's own linear layer on its own rows.

    Args:
        x: [N, d_in]; weight: [K, d_out, d_in]; bias: [K, d_out] or None; spans: rows of each slot.

    Returns:
        [N, d_out]
    """
    if not batched(x.device):
        made: Tensor = _SlotLinear.apply(x, weight, bias, spans)
        return made
    rows = x.view(len(spans), -1, x.shape[1])  # [K, M, d_in]
    out = torch.bmm(rows, weight.mT)  # [K, M, d_out]
    return (out if bias is None else out + bias[:, None]).flatten(0, 1)


class _SlotLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, spans: Spans) -> Tensor:
        out = x.new_empty(len(x), weight.shape[1])
        for k, (start, stop) in enumerate(spans):
            rows = out[start:stop]
            if bias is None:
                torch.mm(x[start:stop], weight[k].t(), out=rows)
            else:
                torch.addmm(bias[k], x[start:stop], weight[k].t(), out=rows)
        ctx.save_for_backward(x, weight)
        ctx.spans = spans
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        grad_x = torch.empty_like(x) if need_x else None
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        grad_bias = grad.new_empty(weight.shape[0], weight.shape[1]) if need_bias else None
        for k, (start, stop) in enumerate(ctx.spans):
            own = grad[start:stop]
            if grad_x is not None:
                torch.mm(own, weight[k], out=grad_x[start:stop])
            if need_weight:
                torch.mm(own.t(), x[start:stop], out=grad_weight[k])
            if grad_bias is not None:
                torch.sum(own, 0, out=grad_bias[k])
        return grad_x, grad_weight if need_weight else None, grad_bias, None
