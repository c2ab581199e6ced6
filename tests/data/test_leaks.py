from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftport.data.examples import Example
from peftport.data.leaks import MIN_WORDS, containers, exposed, guard, remove_leaks
from peftport.data.splits import normalise
from peftport.errors import InputError

# few words, so that random texts do meet
TEXT = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=9).map(" ".join)
TEXTS = st.lists(TEXT, max_size=12)


def meet(left: str, right: str) -> bool:
    """The definition, quadratic and obvious."""
    short, long = sorted((normalise(left), normalise(right)), key=len)
    contained = len(short.split()) >= MIN_WORDS and f" {short} " in f" {long} "
    return short == long or contained


@given(TEXTS, TEXTS)
def test_remove_leaks_is_the_definition(train: list[str], protected: list[str]) -> None:
    examples = [Example(text, 0, text) for text in train]
    kept, dropped = remove_leaks(examples, protected)
    assert kept == [e for e in examples if not any(meet(e.text, text) for text in protected)]
    assert dropped == len(examples) - len(kept)


@given(TEXTS, TEXTS, TEXTS)
def test_guard_refuses_exactly_what_meets(a: list[str], b: list[str], c: list[str]) -> None:
    parts = {"a": a, "b": b, "c": c}
    leak = any(
        meet(left, right)
        for (n, one), (m, two) in product(parts.items(), repeat=2)
        if n != m
        for left, right in product(one, two)
    )
    if leak:
        with pytest.raises(InputError, match="must be disjoint"):
            guard(parts)
    else:
        guard(parts)


@given(TEXTS, TEXTS, TEXTS)
def test_without_the_exposed_texts_the_parts_are_disjoint(
    a: list[str], b: list[str], c: list[str]
) -> None:
    first = list(dict.fromkeys(a))
    second = [text for text in dict.fromkeys(b) if text not in first]
    third = [text for text in dict.fromkeys(c) if text not in first + second]
    gone = exposed([first, second, third])
    assert not gone & set(first)
    parts = {"1": first, "2": second, "3": third}
    guard({name: [t for t in texts if t not in gone] for name, texts in parts.items()})


@settings(max_examples=50)
@given(TEXTS)
def test_containers_are_the_longest_texts_around(texts: list[str]) -> None:
    for text, found in zip(texts, containers(texts), strict=True):
        around = [other for other in texts if meet(text, other) and len(other) >= len(text)]
        assert found in around and len(found) == max(map(len, around))


def test_guard_names_parts_counts_and_at_most_three_texts() -> None:
    train = [f"Sentence number {word}, quite good!" for word in ("one", "two", "six", "ten")]
    test = [text.upper() for text in train] + ["a very long and harmless sentence"]
    with pytest.raises(InputError) as caught:
        guard({"rt test": test, "sst2 source-train": train})
    message = str(caught.value)
    assert "rt test and sst2 source-train: 4" in message
    assert message.count("is in both") == 3 and "\n" not in message
    assert "'Sentence number one, quite good!' is in both rt test and sst2 source-train" in message


def test_guard_names_containment_in_both_directions() -> None:
    short, long = "as good as it gets", "this film is as good as it gets, really"
    for parts in ({"test": [short], "train": [long]}, {"train": [short], "test": [long]}):
        inner, outer = parts
        with pytest.raises(InputError, match=f"of {inner} is contained in a text of {outer}"):
            guard(parts)


def test_short_texts_and_word_parts_do_not_count_as_contained() -> None:
    guard({"test": ["a good film"], "train": ["this is a good film"]})
    guard({"test": ["one two three four five"], "train": ["one two three four fives"]})
    with pytest.raises(InputError):
        guard({"test": ["a good film"], "train": ["A good film."]})


def test_many_texts_are_compared_in_time_that_grows_with_their_words() -> None:
    """4,000 x 100,000 texts: minutes if pairs were scanned."""
    train = [
        Example(f"w{n} w{n + 1} x{n} w{n * 7} y{n} of the film", 0, "") for n in range(100_000)
    ]
    protected = [f"the film v{n} said w{n} w{n} about it" for n in range(3_999)]
    protected.append("w5 w6 x5 w35 y5")
    kept, dropped = remove_leaks(train, protected)
    assert dropped == 1 and len(kept) == 99_999
