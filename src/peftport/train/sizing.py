"""How many modules make a bank, measured on this machine before a study begins."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from peftport.data.tasks import Encoded
from peftport.hosts.load import Host
from peftport.hosts.packed.kernels import fastest_kernel, use_kernel
from peftport.hosts.spec import HostSpec
from peftport.methods.base import methods
from peftport.train.fused import Slot, train_bank, trains_in_banks
from peftport.train.reference import TrainSpec, fresh_module

#: bank sizes that are tried, in this order
SIZES = (1, 2, 4, 8, 16)
#: how much slower than the best a smaller bank may be
GAIN = 0.05
#: what one step keeps for every token and layer, in numbers of d_model
_KEPT = 14
_TEXTS, _TOKENS = 16, 28


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


def _seconds(host: Host, size: int) -> float:
    """Seconds a module and step of a bank of fresh modules on arbitrary tokens: the best of 3."""
    config = methods.get("lora")().default_config(host.spec)
    random = np.random.default_rng(0)
    lengths = random.integers(_TOKENS // 2, _TOKENS * 3 // 2, size=4 * _TEXTS)
    high = min(host.spec.vocab_size, 1000)
    ids = [random.integers(1, high, size=length).tolist() for length in lengths]
    spec = TrainSpec(steps=2, lr=1e-3, batch_size=_TEXTS)
    labels = [0] * len(ids)
    slots = [Slot(fresh_module(host, config, k), Encoded(ids), labels, spec) for k in range(size)]
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for _ in train_bank(host, slots):
            pass
        best = min(best, time.perf_counter() - begin)
    return best / (spec.steps * size)
