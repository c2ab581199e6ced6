"""How many modules make a bank, measured on this machine before a study begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from peftport.data.tasks import Encoded
from peftport.hosts.load import Host
from peftport.hosts.packed.kernels import fastest_kernel, use_kernel
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, methods
from peftport.train.fused import Slot, train_bank, trains_in_banks
from peftport.train.reference import TrainSpec, fresh_module

#: bank sizes that are tried, in this order
SIZES = (1, 2, 4, 8, 16)
#: how much slower than the best a smaller bank may be
GAIN = 0.05
#: what one step keeps for every token and layer, in numbers of d_model
_KEPT = 14
_TEXTS, _TOKENS = 16, 28
#: largest bank on an accelerator, where more are not faster by much
MOST = 64
#: share of an accelerator's free memory that a bank may take: its blocks are not all of one size
SHARE = 0.85


@dataclass(frozen=True)
class Sizing:
    """What is decided once per study.

    Attributes:
        bank: modules in a bank, K.
        kernel: matrix product of the frozen weights (peftport.hosts.packed.kernels).
    """

    bank: int
    kernel: str


def bank_bytes(spec: HostSpec, bank: int, tokens: int = _TEXTS * _TOKENS) -> int:
    """Bytes of one training step beside the host: ``tokens`` of each of ``bank`` slots."""
    return 4 * _KEPT * spec.d_model * sum(spec.layers.values()) * tokens * bank


def choose_sizing(host: Host, memory_bytes: int, largest: HostSpec | None = None) -> Sizing:
    """Kernel and bank size: the smallest bank whose time per module is within 5 % of the best.

    Args:
        host: the study's smallest host, where the time that a bank saves counts most; not yet
            used for a bank in this process.
        memory_bytes: what a bank may use.
        largest: the host whose banks need most memory; ``host`` itself when None.

    Returns:
        what to use; the kernel is set for this process.
    """
    kernel = fastest_kernel()
    use_kernel(kernel)
    if not trains_in_banks(host):
        return Sizing(1, kernel)
    spec = largest or host.spec
    fits = [k for k in SIZES if bank_bytes(spec, k) <= memory_bytes] or [1]
    seconds = {size: _seconds(host, size) for size in fits}
    best = min(seconds.values())
    return Sizing(min(k for k in fits if seconds[k] <= best * (1 + GAIN)), kernel)


def fitting_bank(host: Host, memory_bytes: int, tokens: int) -> int:
    """The largest bank, of :data:`MOST` at most, that fits on an accelerator.

    Args:
        host: the study's largest host, on the accelerator.
        memory_bytes: what is free there.
        tokens: longest text of the study.
    """
    return extrapolated(memory_bytes, lambda size: _peak_bytes(host, size, tokens))


def extrapolated(memory_bytes: int, peak: Callable[[int], int]) -> int:
    """As :func:`fitting_bank`, with what a bank of some size was measured to take."""
    small, large = peak(1), peak(3)
    each = max(1, (large - small) // 2)
    fixed = max(0, small - each)
    return max(1, min(MOST, (int(memory_bytes * SHARE) - fixed) // each))


def _peak_bytes(host: Host, size: int, tokens: int) -> int:
    """Most memory that steps of a bank of all methods took beside the host, texts of full length:
    the first step, the one that is recorded, and one that is played."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(host.device)
    before = torch.cuda.memory_reserved(host.device)
    for method in methods.names():
        config = methods.get(method)().default_config(host.spec)
        list(train_bank(host, _slots(host, config, size, np.full(_TEXTS, tokens), steps=3)))
    return int(torch.cuda.max_memory_reserved(host.device) - before)


def _slots(
    host: Host, config: MethodConfig, size: int, lengths: np.ndarray, steps: int
) -> list[Slot]:
    """A bank of fresh modules on arbitrary tokens."""
    random = np.random.default_rng(0)
    high = min(host.spec.vocab_size, 1000)
    ids = [random.integers(1, high, size=length).tolist() for length in lengths]
    spec = TrainSpec(steps=steps, lr=1e-3, batch_size=_TEXTS)
    labels = [0] * len(ids)
    return [Slot(fresh_module(host, config, k), Encoded(ids), labels, spec) for k in range(size)]


def _seconds(host: Host, size: int) -> float:
    """Seconds a module and step of a bank of fresh modules on arbitrary tokens: the best of 3."""
    config = methods.get("lora")().default_config(host.spec)
    random = np.random.default_rng(0)
    lengths = random.integers(_TOKENS // 2, _TOKENS * 3 // 2, size=4 * _TEXTS)
    slots = _slots(host, config, size, lengths, steps=2)
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for _ in train_bank(host, slots):
            pass
        best = min(best, time.perf_counter() - begin)
    return best / (2 * size)
