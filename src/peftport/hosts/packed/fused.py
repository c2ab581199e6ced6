"""Norms and activations that transformers composes of many small operations: one kernel each on an
accelerator, where each operation is a pass through its memory; transformers' own on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftport.hosts.packed.device import batched

Elementwise = Callable[[Tensor], Tensor]

_GELU_TANH = ("NewGELUActivation", "GELUTanh", "FastGELUActivation", "PytorchGELUTanh")


def norm_of(norm: Any) -> Elementwise:
    """T5's norm, x / rms(x) * weight. In float64 transformers' own, which takes its mean in
    float32: tests that follow it to the last digits follow it there too."""
    weight: Tensor = norm.weight.detach()
    if not batched(weight.device) or weight.dtype == torch.float64:
        return norm
    return partial(_rms_norm, weight=weight, eps=float(norm.variance_epsilon))


def activation_of(activation: Any, device: torch.device) -> Elementwise:
    """A feed-forward block's activation."""
    if batched(device) and type(activation).__name__ in _GELU_TANH:
        return partial(F.gelu, approximate="tanh")
    return activation


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)
