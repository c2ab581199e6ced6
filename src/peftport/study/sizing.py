"""How large a study's banks are: decided once, when its store is made, and recorded there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftport.errors import InputError
from peftport.hosts.packed.device import free_bytes, use_device
from peftport.hosts.packed.kernels import fastest_kernel, use_kernel
from peftport.study.estimate import largest_host, memory_bytes, smallest_host
from peftport.study.materials import Materials, in_banks
from peftport.study.runner import load
from peftport.study.store import Store
from peftport.train.sizing import choose_sizing, fitting_bank

GIB = 1 << 30
#: largest bank that an estimate assumes; what is chosen in the end is measured
GUESS = 16
#: what a store is taken to have been made with where it does not say
DEFAULTS = {"device": "cpu", "dtype": "float32"}


@dataclass(frozen=True)
class Wish:
    """What a user asked for; None: chosen by measuring.

    Attributes:
        bank: modules in a bank.
        memory_gb: memory that banks may take, in GiB; half of what is free.
        kernel: matrix product of the frozen weights.
        device: where modules are trained and measured (``auto``, ``cpu``, ``cuda``); the CPU.
        dtype: of the hosts' weights there (``float32``, ``bfloat16``); float32.
    """

    bank: int | None = None
    memory_gb: float | None = None
    kernel: str | None = None
    device: str | None = None
    dtype: str | None = None

    @property
    def memory_bytes(self) -> int:
        return available_bytes() // 2 if self.memory_gb is None else round(self.memory_gb * GIB)

    def check(self, recorded: Mapping[str, Any]) -> None:
        """Raises InputError where a store was made with something else."""
        device = None if self.device is None else use_device(self.device).type
        wishes = {"bank": self.bank, "kernel": self.kernel, "device": device, "dtype": self.dtype}
        for name, wanted in wishes.items():
            there = recorded.get(name, DEFAULTS.get(name))
            if wanted is not None and wanted != there:
                raise InputError(
                    f"the store was made with --{name} {there}, which holds for all of "
                    f"it; leave --{name} out, or give another --store"
                )

    def guess(self, materials: Materials) -> int:
        """A bank's size from the hosts' shapes alone."""
        if self.bank is not None:
            return self.bank
        fits = [k for k in range(1, GUESS + 1) if memory_bytes(materials, k) <= self.memory_bytes]
        return max(fits, default=1)


def recorded_device(environment: Mapping[str, Any]) -> tuple[str, str]:
    """Device and dtype of a store; one that is older than they are ran in float32 on a CPU.

    Raises:
        InputError: this machine has no such device.
    """
    device, dtype = (str(environment.get(name, DEFAULTS[name])) for name in DEFAULTS)
    return use_device(device).type, dtype


def decide(materials: Materials, wish: Wish) -> dict[str, Any]:
    """``bank``, ``kernel``, ``device`` and ``dtype`` for a new study. The bank's size is measured:
    on a CPU by time, on the smallest host (where a bank saves most) within the memory that the
    largest needs; on an accelerator by the memory that a bank takes on the largest.

    Raises:
        InputError: no such kernel or device on this machine.
    """
    device = use_device(wish.device or "cpu")
    where = {"device": device.type, "dtype": materials.dtype}
    if device.type == "cpu":
        return {**_decide_on_cpu(materials, wish), **where}
    if not in_banks(materials.specs[largest_host(materials)]):
        return {"bank": wish.bank or 1, "kernel": "torch", **where}
    if wish.bank is not None:
        return {"bank": wish.bank, "kernel": "torch", **where}
    host = load(materials, largest_host(materials), device)
    room = free_bytes(device) if wish.memory_gb is None else wish.memory_bytes
    return {
        "bank": fitting_bank(host, room, materials.task.max_tokens),
        "kernel": "torch",
        **where,
    }


def _decide_on_cpu(materials: Materials, wish: Wish) -> dict[str, Any]:
    if wish.kernel is not None:
        use_kernel(wish.kernel)
    largest = materials.specs[largest_host(materials)]
    name = smallest_host(materials)
    if not in_banks(largest):
        return {"bank": wish.bank or 1, "kernel": wish.kernel or "torch"}
    if wish.bank is not None:
        return {"bank": wish.bank, "kernel": wish.kernel or fastest_kernel()}
    room = max(0, wish.memory_bytes - memory_bytes(materials, 0))
    chosen = choose_sizing(load(materials, name), room, largest)
    return {"bank": chosen.bank, "kernel": wish.kernel or chosen.kernel}


def recorded_kernel(store: Store) -> str:
    """The store's kernel, or torch's where this machine has no such; a writer notes that."""
    name = str(store.environment["kernel"])
    try:
        use_kernel(name)
    except InputError as error:
        text = f"kernel '{name}' of the store is not to be had here, 'torch' is used: {error}"
        if store.writes and text not in store.notes:
            store.note(text)
        return "torch"
    return name


def available_bytes() -> int:
    """Memory that may be used without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return 4 * GIB
    facts = dict(line.split(":", 1) for line in lines)
    return int(facts["MemAvailable"].split()[0]) * 1024
