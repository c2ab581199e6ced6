"""How large a study's banks are: decided once, when its store is made, and recorded there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftport.errors import InputError
from peftport.hosts.packed.kernels import fastest_kernel, use_kernel
from peftport.study.estimate import in_banks, largest_host, memory_bytes, smallest_host
from peftport.study.materials import Materials
from peftport.study.runner import load
from peftport.study.store import Store
from peftport.train.sizing import choose_sizing

GIB = 1 << 30
#: largest bank that an estimate assumes; what is chosen in the end is measured
GUESS = 16


@dataclass(frozen=True)
class Wish:
    """What a user asked for; None: chosen by measuring.

    Attributes:
        bank: modules in a bank.
        memory_gb: memory that banks may take, in GiB; half of what is free.
        kernel: matrix product of the frozen weights.
    """

    bank: int | None = None
    memory_gb: float | None = None
    kernel: str | None = None

    @property
    def memory_bytes(self) -> int:
        return available_bytes() // 2 if self.memory_gb is None else round(self.memory_gb * GIB)

    def check(self, recorded: Mapping[str, Any]) -> None:
        """Raises InputError where a store was made with something else."""
        for name, wanted in (("bank", self.bank), ("kernel", self.kernel)):
            if wanted is not None and wanted != recorded[name]:
                raise InputError(
                    f"the store was made with --{name} {recorded[name]}, which holds for all of "
                    f"it; leave --{name} out, or give another --store"
                )

    def guess(self, materials: Materials) -> int:
        """A bank's size from the hosts' shapes alone."""
        if self.bank is not None:
            return self.bank
        fits = [k for k in range(1, GUESS + 1) if memory_bytes(materials, k) <= self.memory_bytes]
        return max(fits, default=1)


def decide(materials: Materials, wish: Wish) -> dict[str, Any]:
    """``bank`` and ``kernel`` for a new study, measured on its smallest host (where a bank saves
    most) within the memory that its largest needs.

    Raises:
        InputError: no such kernel on this machine.
    """
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
