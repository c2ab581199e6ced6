"""Matrix products with frozen weights: the bulk of all arithmetic.

Weights that never change may be laid out once for the product that reads them. oneDNN does that:
on an AMD EPYC (Zen 5) it was measured at more than twice the rate of torch's own float32 product.
Where it is missing or slower, torch's is used.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftport.errors import InputError

KERNELS = ("onednn", "torch")
#: rows that the packed layout is made for; other numbers of rows run with it as well
_ROWS = 2048
_chosen: list[str] = []


def has_onednn() -> bool:
    """Whether this torch can lay out weights for oneDNN."""
    ops = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(ops, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


def use_kernel(name: str) -> None:
    """Choose the product for all hosts that are packed from now on in this process.

    Raises:
        InputError: no such kernel, or not on this machine.
    """
    if name not in KERNELS:
        raise InputError(f"unknown kernel '{name}'; known: {', '.join(KERNELS)}")
    if name == "onednn" and not has_onednn():
        raise InputError("kernel 'onednn' is not in this build of torch; use 'torch'")
    _chosen[:] = [name]


def kernel() -> str:
    """The kernel in use; measured the first time it is asked for."""
    if not _chosen:
        use_kernel(fastest_kernel())
    return _chosen[0]


def fastest_kernel() -> str:
    """The faster kernel for a layer of usual size, on this machine and with its threads."""
    if not has_onednn():
        return "torch"
    weight, x = torch.zeros(1536, 384), torch.zeros(512, 384)
    seconds = {name: _time(Frozen(weight, None, name), x) for name in KERNELS}
    return min(KERNELS, key=seconds.__getitem__)


def _time(linear: Frozen, x: Tensor) -> float:
    best = float("inf")
    for _ in range(8):
        begin = time.perf_counter()
        linear(x)
        best = min(best, time.perf_counter() - begin)
    return best


class Frozen:
    """x -> x W^T + b with frozen W [d_out, d_in]; gradients reach x alone.

    Args:
        weight, bias: the host's; they are read, and copied into the kernel's layout.
        kernel: one of :data:`KERNELS`; None for :func:`kernel`. float64 always uses torch's.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: str | None = None) -> None:
        fits = weight.dtype == torch.float32 and weight.device.type == "cpu"
        name = (kernel or globals()["kernel"]()) if fits else "torch"
        self.bias = None if bias is None else bias.detach()
        self.d_out, self.d_in = weight.shape
        self._onednn = name == "onednn"
        forward = weight.detach()
        backward = forward.t()  # elsewhere than on a CPU a transposed layout costs nothing
        if weight.device.type == "cpu":
            backward = backward.contiguous()
        if self._onednn:
            reorder = torch.ops.mkldnn._reorder_linear_weight
            forward, backward = reorder(forward.contiguous(), _ROWS), reorder(backward, _ROWS)
        self._forward, self._backward = forward, backward

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, d_in] -> [N, d_out]"""
        if x.requires_grad:
            return _Product.apply(x, self)
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, self._forward, self.bias)

    def backward(self, grad: Tensor) -> Tensor:
        """[N, d_out] -> [N, d_in]"""
        return self._run(grad, self._backward, None)

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._onednn or not len(x):
            return F.linear(x, weight, bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.contiguous(), weight, bias, "none", [], ""
        )
        return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Frozen) -> Tensor:
        ctx.linear = linear
        return linear.forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.backward(grads[0]), None
