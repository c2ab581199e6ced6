"""No validation or test text of any packaged dataset is in what the hosts were trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import pytest

from peftport.data.examples import Example
from peftport.data.packaged import imdb_reviews, imdb_sentences, rotten_tomatoes
from peftport.data.splits import normalise, split_of
from peftport.hosts import packaged
from peftport.hosts.forge import corpus as forge_corpus
from peftport.hosts.forge.corpus import Guard, build_corpus, sentences

HELD_OUT = ("validation", "test")


def occurrences(patterns: Iterable[str], texts: Iterable[str]) -> Iterator[str]:
    """Patterns that occur in a text as whole consecutive words (written for this test alone)."""
    by_start: dict[str, list[list[str]]] = defaultdict(list)
    for pattern in {normalise(p) for p in patterns} - {""}:
        words = pattern.split()
        by_start[" ".join(words[:4])].append(words)
    lengths = sorted({len(start.split()) for start in by_start})
    for text in texts:
        words = normalise(text).split()
        for i in range(len(words)):
            for n in lengths:
                for pattern_words in by_start.get(" ".join(words[i : i + n]), ()):
                    if words[i : i + len(pattern_words)] == pattern_words:
                        yield " ".join(pattern_words)


def test_the_check_finds_what_it_should() -> None:
    texts = ["One two, three four five six."]
    assert list(occurrences(["Two three"], texts)) == ["two three"]
    assert list(occurrences(["two three four five six"], texts)) == ["two three four five six"]
    assert not list(occurrences(["two three four five seven", "wo three", "six seven"], texts))


def test_corpus_is_disjoint_from_all_that_is_held_out() -> None:
    corpus = build_corpus()
    runs = [" ".join(run) for run in corpus.train + corpus.held_out]
    assert len(runs) > 10_000
    rotten = [e.text for e in rotten_tomatoes()]
    held_sentences = [e.text for e in imdb_sentences() if split_of(e.group) in HELD_OUT]
    held_reviews = [e.text for e in imdb_reviews() if split_of(e.group) in HELD_OUT]
    assert len(held_sentences) > 10_000 and len(held_reviews) > 1_000 and len(rotten) > 8_000
    # nothing held out lies in the corpus, not even across its sentences' borders ...
    assert not list(occurrences(rotten + held_sentences + held_reviews, runs))
    # ... and nothing of the corpus lies in held-out text
    mine = sentences(corpus.train + corpus.held_out)
    assert not list(occurrences(mine, rotten + held_reviews))


def test_shipped_hosts_were_trained_on_this_corpus() -> None:
    """Same text in the same order on every machine, and the one that the hosts were made from."""
    for facts in packaged.read_manifest()["hosts"].values():
        assert facts["corpus"] == {**build_corpus().counts(), "sha256": build_corpus().digest}


def test_losses_are_measured_on_other_reviews() -> None:
    corpus = build_corpus()
    assert 0.01 < len(corpus.held_out) / len(corpus.train) < 0.04
    assert not set(sentences(corpus.held_out)[:50]) & set(sentences(corpus.train))


HELD = "the acting was a joy to watch from start to finish and so was the music"


@pytest.mark.parametrize(
    ("found", "bad"),
    [
        (["A plain sentence of some words.", "Another one of the kind."], []),
        (["The acting was a joy to watch from start, to finish!"], [0]),  # shares eight words
        (["Well, a joy to watch from start or so."], []),  # shares seven
        (["A joy to watch from start."], [0]),  # shorter, and whole inside
        (["It is touching and funny, they say.", "Fine with me then."], [0]),  # a short phrase
        (["They say it is touching", "and funny to the end."], [0, 1]),  # over a border
        (["They say it is touching."], []),
    ],
)
def test_guard_rules(found: list[str], bad: list[int]) -> None:
    guard = Guard(texts=[HELD, "no ."], phrases=["Touching and funny ."])
    assert [i for i, b in enumerate(guard.offenders(found)) if b] == bad


def _with_texts(monkeypatch: pytest.MonkeyPatch, label: int) -> str:
    reviews = []
    for k in range(40):
        text = f"Review number {k} says this much. It goes on for {k} more words. And ends there."
        reviews.append(Example(text, label, text))
    parts = [
        Example(part + ".", label, review.group)
        for review in reviews
        for part in review.text.rstrip(".").split(". ")
    ]
    monkeypatch.setattr(forge_corpus, "imdb_reviews", lambda: reviews)
    monkeypatch.setattr(forge_corpus, "imdb_sentences", lambda: parts)
    monkeypatch.setattr(forge_corpus, "rotten_tomatoes", lambda: [Example("fresh .", label, "x")])
    return build_corpus.__wrapped__().digest


def test_labels_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _with_texts(monkeypatch, 0) == _with_texts(monkeypatch, 1)
