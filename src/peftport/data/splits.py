"""Which sentence belongs to which split: a stable hash of the normalised text, nothing else.

The split of a text depends on the text alone, never on its row, its file, a seed or the order of
reading, so the same sentence met in two datasets falls into the same split of both.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Literal, get_args

Split = Literal["source-train", "target-train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

#: Upper ends of the hash intervals: 40% source-train, 40% target-train, 5% validation, 15% test.
_UPPER: tuple[tuple[Split, float], ...] = (
    ("source-train", 0.40),
    ("target-train", 0.80),
    ("validation", 0.85),
    ("test", 1.00),
)


def normalise(text: str) -> str:
    """Case, accents' encoding, punctuation and spacing folded: the identity of a sentence.

    >>> normalise(" The  Film's\\u00a0GOOD . ")
    'the film s good'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def hash_unit(text: str) -> float:
    """A number in [0, 1) from SHA-256 of the normalised text."""
    digest = hashlib.sha256(normalise(text).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(text: str) -> Split:
    """The split of a text (for IMDB the caller passes the whole review, so that a review's
    sentences stay together)."""
    u = hash_unit(text)
    return next(split for split, upper in _UPPER if u < upper)


def split_of_rest(text: str) -> Split:
    """The split of a text of a dataset that brings its own test part: source-train, target-train
    or validation, in their usual proportion.

    A text that ``split_of`` puts into one of the three stays there, so that it agrees with other
    datasets; what would be a test text is spread over the three.
    """
    u, top = hash_unit(text), _UPPER[-2][1]
    if u >= top:
        u = (u - top) / (1 - top) * top
    return next(split for split, upper in _UPPER if u < upper)
