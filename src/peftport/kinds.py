"""Whether a value that somebody gave is a number; a bool is none here."""

from __future__ import annotations

from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """An int."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """An int or float, NaN and infinity included."""
    return isinstance(value, int | float) and not isinstance(value, bool)
