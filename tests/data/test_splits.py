"""The split of a text is a promise: a changed hash would mix old and new stores."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftport.data.splits import SPLITS, hash_unit, normalise, split_of, split_of_rest

GOLDEN = [
    ("The film's GOOD.", 0.28464276344079026, "source-train", "source-train"),
    ("a gripping movie", 0.8674320276042377, "test", "source-train"),
    ("ok", 0.15053120141998053, "source-train", "source-train"),
]


@pytest.mark.parametrize(("text", "unit", "split", "rest"), GOLDEN)
def test_hash_and_split_never_change(text: str, unit: float, split: str, rest: str) -> None:
    assert (hash_unit(text), split_of(text), split_of_rest(text)) == (unit, split, rest)


@given(st.text())
def test_case_spacing_and_punctuation_do_not_move_a_text(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert split_of(f"  {text} .\n") == split_of(text)
    assert 0 <= hash_unit(text) < 1


def test_splits_have_their_proportions() -> None:
    texts = [f"sentence number {n}" for n in range(20_000)]
    shares = Counter(map(split_of, texts))
    for split, share in zip(SPLITS, (0.40, 0.40, 0.05, 0.15), strict=True):
        assert shares[split] / len(texts) == pytest.approx(share, abs=0.01)
    rest = Counter(map(split_of_rest, texts))
    assert rest["test"] == 0
    assert rest["source-train"] / len(texts) == pytest.approx(0.40 / 0.85, abs=0.01)
    assert rest["validation"] / len(texts) == pytest.approx(0.05 / 0.85, abs=0.01)


@given(st.text())
def test_a_text_outside_the_test_set_is_split_alike_where_a_test_part_exists(text: str) -> None:
    assert split_of(text) in ("test", split_of_rest(text))
