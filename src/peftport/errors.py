"""One exception tree. Every message says what was given, what was expected and what to do.

Exit codes of the command line follow from it: :class:`InputError` ends with 2, :class:`RunError`
with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PeftportError(Exception):
    """Base of every error that peftport raises on purpose; its text is one line."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class InputError(PeftportError):
    """What the user gave cannot be used; nothing was written."""

    exit_code = 2


class UnknownName(InputError):
    """A name that no registry knows.

    >>> str(UnknownName("method", "lorra", ["lora", "prefix"]))
    "unknown method 'lorra'; did you mean 'lora'? known: lora, prefix"
    """

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(given, names, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ";"
        super().__init__(f"unknown {kind} '{given}'{hint} known: {', '.join(names) or 'none'}")


class HostMismatch(InputError):
    """A module met a host that it was not trained on."""


class RunError(PeftportError):
    """A run failed although its input was sound (divergence, a full disk, a killed worker)."""
