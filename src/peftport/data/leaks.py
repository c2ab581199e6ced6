"""No text of one part of the data may be met in another: equal, or contained word for word.

Texts are compared after ``normalise``. Containment counts from ``MIN_WORDS`` words on, because
"a good film" is in everything. Texts are found by their first words, in time that grows with the
number of words and not with the number of pairs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from peftport.data.examples import Example
from peftport.data.splits import normalise
from peftport.errors import InputError

#: shortest text, in words, whose appearance inside another one is a leak
MIN_WORDS = 5


class Needles:
    """Normalised texts that are looked for inside others."""

    def __init__(self, texts: Iterable[str]) -> None:
        #: normalised text -> its first position among ``texts``
        self._whole: dict[str, int] = {}
        #: first words -> word counts of the texts that begin so
        self._starts: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
        for index, text in enumerate(texts):
            if not text or text in self._whole:
                continue
            self._whole[text] = index
            words = text.split(" ")
            if len(words) >= MIN_WORDS:
                self._starts[tuple(words[:MIN_WORDS])].add(len(words))

    def within(self, text: str) -> Iterator[int]:
        """Positions of the needles that equal a normalised text or are contained in it."""
        whole, starts = self._whole, self._starts
        words = text.split(" ")
        if len(words) < MIN_WORDS:
            if text in whole:
                yield whole[text]
            return
        grams = zip(*(words[shift:] for shift in range(MIN_WORDS)), strict=False)
        for at, gram in enumerate(grams):
            if gram not in starts:
                continue
            for length in starts[gram]:
                if at + length <= len(words):
                    found = whole.get(" ".join(words[at : at + length]))
                    if found is not None:
                        yield found


def guard(parts: Mapping[str, Sequence[str]]) -> None:
    """Refuse data whose parts share a text.

    Args:
        parts: name of a part (``rotten-tomatoes test``) to its texts; every part is held against
            every other one.

    Raises:
        InputError: a text of one part equals, contains or is contained in one of another part;
            the message names the parts, how many texts they share, and at most three of them.
    """
    counts: Counter[tuple[str, str]] = Counter()
    shown: list[str] = []
    texts = [(name, normalise(text), text) for name in parts for text in parts[name]]
    first: dict[str, str] = {}
    for name, text, raw in texts:
        if text and first.setdefault(text, name) != name:
            counts[first[text], name] += 1
            _show(shown, raw, f"is in both {first[text]} and {name}")
    needles = Needles(text for _, text, _ in texts)
    for name, text, _ in texts:
        for found in needles.within(text):
            other, inner, raw = texts[found]
            if other != name and inner != text:
                counts[other, name] += 1
                _show(shown, raw, f"of {other} is contained in a text of {name}")
    if counts:
        pairs = ", ".join(f"{left} and {right}: {n}" for (left, right), n in counts.items())
        raise InputError(
            f"parts of the data that must be disjoint share texts ({pairs}): {'; '.join(shown)};"
            " take the shared texts out of the training part or choose other data"
        )


def remove_leaks(train: Sequence[Example], protected: Iterable[str]) -> tuple[list[Example], int]:
    """Training examples without those that meet a protected text.

    Args:
        train: examples that may be dropped, e.g. SST-2's training phrases.
        protected: texts that they must not equal, contain or be contained in, e.g. the
            validation and test sentences (and the target's training sentences) of another dataset.

    Returns:
        The kept examples in their order, and how many were dropped.
    """
    ours = [normalise(example.text) for example in train]
    theirs = list(dict.fromkeys(normalise(text) for text in protected))
    bad = _meeting(ours, theirs)
    return [example for example, text in zip(train, ours, strict=True) if text not in bad], sum(
        text in bad for text in ours
    )


def _meeting(ours: Sequence[str], theirs: Sequence[str]) -> set[str]:
    """Those of our normalised texts that equal, contain or are contained in one of theirs."""
    needles = Needles(theirs)
    bad = {text for text in ours if next(needles.within(text), None) is not None}
    needles = Needles(ours)
    return bad | {ours[found] for text in theirs for found in needles.within(text)}


def exposed(parts: Sequence[Sequence[str]]) -> set[str]:
    """Normalised texts that meet one of an earlier part (the most protected part comes first).

    Args:
        parts: different normalised texts, each in one part only.
    """
    rank = {text: at for at, part in enumerate(parts) for text in part}
    flat = list(rank)
    needles = Needles(flat)
    meets = dict(rank)  # text -> the most protected part that it meets
    for text in flat:
        for found in needles.within(text):
            inner = flat[found]
            meets[text] = min(meets[text], rank[inner])
            meets[inner] = min(meets[inner], rank[text])
    return {text for text in flat if meets[text] < rank[text]}


def containers(texts: Sequence[str]) -> list[str]:
    """For every text the longest of the given texts that contains it, itself if none does.

    Phrases of a treebank get their sentence this way, so that they are split with it.
    """
    plain = [normalise(text) for text in texts]
    needles = Needles(plain)
    best: dict[str, int] = {}
    for at in sorted(range(len(plain)), key=lambda i: (-len(plain[i]), i)):
        for found in needles.within(plain[at]):
            best.setdefault(plain[found], at)
    return [texts[best.get(text, at)] for at, text in enumerate(plain)]


def _show(shown: list[str], text: str, where: str) -> None:
    if len(shown) < 3:
        text = " ".join(text.split())
        shown.append(f"'{text if len(text) <= 60 else text[:57] + '...'}' {where}")
