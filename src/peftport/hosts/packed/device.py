"""Where a packed host runs, and what an accelerator needs: everything in one shape.

A CPU works on one slot or one group of texts after another, and on no padding. An accelerator would
spend its time starting so many small products, so there texts are padded to one width and all slots
are done together; which of the two is used follows from the tensors' device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from peftport.errors import InputError

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_forced: list[bool] = []


def use_device(name: str) -> torch.device:
    """The device of a name, made ready for numbers that repeat.

    Args:
        name: one of :data:`DEVICES`; ``auto`` is ``cuda`` where there is one.

    Raises:
        InputError: an unknown name, or CUDA where this torch finds none.
    """
    if name not in DEVICES:
        raise InputError(f"unknown device '{name}'; known: {', '.join(DEVICES)}")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("device 'cuda' is not to be had here; use 'cpu' or 'auto'")
    if name == "cpu" or not there:
        return torch.device("cpu")
    # read by cuBLAS when it is first used; without it its sums differ from run to run
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda", 0)


def use_deterministic(device: torch.device) -> None:
    """The same numbers from run to run: an operation that cannot give them is refused on CUDA
    (its attention kernels repeat themselves only then), and named elsewhere."""
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cpu")
    if device.type != "cpu":  # a pass over everything that is allocated, against a mistake
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def dtype_named(name: str) -> torch.dtype:
    """Raises InputError unless a host's weights may have this type."""
    if name not in DTYPES:
        raise InputError(f"unknown dtype '{name}'; known: {', '.join(DTYPES)}")
    return DTYPES[name]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of what is trained and of losses: float32, or the host's where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def free_bytes(device: torch.device) -> int:
    """Memory of an accelerator that may still be taken, what torch holds unused counted in."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def batched(device: torch.device) -> bool:
    """Whether slots and texts are done together instead of one after another."""
    return device.type != "cpu" or bool(_forced)


@contextmanager
def as_on_an_accelerator() -> Iterator[None]:
    """Slots and texts are done together on a CPU too: for tests."""
    _forced.append(True)
    try:
        yield
    finally:
        _forced.pop()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; to an accelerator without waiting."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
