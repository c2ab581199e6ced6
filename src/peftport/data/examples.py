"""One labelled text."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """A text with its class.

    Attributes:
        text: what a host reads.
        label: index of its class.
        group: what decides its split (``split_of(group)``): the text itself, or the longer text
            that it was taken from, so that parts of one review never end on both sides.
    """

    text: str
    label: int
    group: str
