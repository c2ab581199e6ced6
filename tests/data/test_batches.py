from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftport.data.batches import eval_batches, train_batches
from peftport.errors import InputError

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=60)


def test_train_batches_never_change() -> None:
    lengths = [5, 3, 9, 1, 7, 2, 8, 4, 6, 10, 12, 11]
    assert train_batches(lengths, 3, 5, seed=7) == [
        [3, 5, 1],
        [7, 0, 8],
        [4, 6, 2],
        [9, 11, 10],
        [9, 11, 10],
    ]
    many = train_batches([n % 61 for n in range(1000)], 16, 70, seed=3)
    assert many[0] == [854, 0, 611, 734, 795, 186, 308, 431, 4, 858, 493, 616, 495, 922, 739, 373]
    assert many[69][:8] == [740, 436, 131, 681, 864, 11, 926, 318]


@given(LENGTHS, st.integers(1, 20), st.integers(0, 40), st.integers(0, 2**32))
def test_every_text_is_used_equally_often(
    lengths: list[int], batch_size: int, steps: int, seed: int
) -> None:
    batches = train_batches(lengths, batch_size, steps, seed)
    assert [len(batch) for batch in batches] == [batch_size] * steps
    assert {index for batch in batches for index in batch} <= set(range(len(lengths)))
    # what no longer fills a batch of an epoch opens the next one
    for epochs in range(1, steps * batch_size // len(lengths) + 1):
        done = batches[: epochs * len(lengths) // batch_size]
        counts = Counter(index for batch in done for index in batch)
        uses = [counts[index] for index in range(len(lengths))]
        assert max(uses) - min(uses) <= 1


@given(LENGTHS, st.integers(1, 8), st.integers(0, 30), st.integers(0, 30), st.integers(0, 99))
def test_fewer_steps_are_a_prefix(
    lengths: list[int], batch_size: int, few: int, more: int, seed: int
) -> None:
    longer = train_batches(lengths, batch_size, few + more, seed)
    assert train_batches(lengths, batch_size, few, seed) == longer[:few]


def test_an_epoch_of_whole_batches_uses_every_text_once() -> None:
    batches = train_batches([n % 37 for n in range(640)], 16, 80, seed=1)
    for epoch in (batches[:40], batches[40:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(640))


def test_seeds_differ_and_lengths_are_bucketed() -> None:
    lengths = [1 + (n * 7919) % 60 for n in range(2000)]
    batches = train_batches(lengths, 16, 100, seed=0)
    assert batches != train_batches(lengths, 16, 100, seed=1)
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 12
    shortest = [min(lengths[i] for i in batch) for batch in batches[:8]]
    assert shortest != sorted(shortest)


@given(st.lists(st.integers(1, 64), max_size=60), st.integers(1, 20))
def test_eval_batches_cover_every_text_once_by_length(lengths: list[int], rows: int) -> None:
    batches = eval_batches(lengths, rows)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[index] for index in flat] == sorted(lengths)
    assert all(0 < len(batch) <= rows for batch in batches)
    for left, right in pairwise(flat):
        assert lengths[left] < lengths[right] or left < right


@pytest.mark.parametrize(("lengths", "size", "steps"), [([], 4, 1), ([3], 0, 1), ([3], 1, -1)])
def test_impossible_batches_are_refused(lengths: list[int], size: int, steps: int) -> None:
    with pytest.raises(InputError, match="batch_size >= 1"):
        train_batches(lengths, size, steps, seed=0)
    with pytest.raises(InputError, match="max_rows must be >= 1, got 0"):
        eval_batches([1], 0)
