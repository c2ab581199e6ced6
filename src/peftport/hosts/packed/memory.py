"""Gives memory back that freed tensors leave behind.

Packed batches differ in size from step to step, so freed blocks are seldom reused whole and a
process would grow with every bank. glibc returns them when it is asked to. (What breaks the heap up
least, torch's huge pages, must be chosen before torch is imported: ``peftport/__init__.py`` does.)
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import Callable
from functools import cache

#: kernels that oneDNN and torch's wrapper keep, one for every number of rows and layer; their own
#: bounds (1,024) amount to half a GB. They are read when the first kernel is made
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "64")


def release() -> None:
    """Return freed memory to the system; does nothing where the C library cannot."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    name = ctypes.util.find_library("c")
    try:
        trim: Callable[[int], object] = ctypes.CDLL(name).malloc_trim
    except (OSError, AttributeError):
        return lambda pad: None
    return trim
