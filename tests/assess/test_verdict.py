"""Answers follow their intervals: known curves give known answers, noise gives none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from peftport.assessing.statistics import Curves, Resampled
from peftport.assessing.verdict import (
    AFTER,
    AHEAD,
    NO_BETTER,
    UNKNOWN,
    WORKS,
    WORSE,
    Thresholds,
    judge,
)  # fmt: skip
from peftport.errors import InputError

TEXTS, SEEDS = 400, 5


def rows(mean: float, seed: int) -> np.ndarray:
    """Hits of so many texts in a hundred, with little variation  [S, N]."""
    rng = np.random.default_rng(seed)
    hits = np.zeros((SEEDS, TEXTS))
    for row in hits:
        count = round((mean + rng.normal(0, 0.005)) * TEXTS)
        row[rng.permutation(TEXTS)[: max(0, min(TEXTS, count))]] = 1
    return hits


def curves(
    ported: Mapping[int, float], scratch: Mapping[int, float], native: float | None = 0.8
) -> Curves:
    means = {"ported": ported, "scratch": scratch, "sampled": scratch}
    values = {
        init: {b: rows(mean, 100 * at + b) for b, mean in by.items()}
        for at, (init, by) in enumerate(means.items())
    }
    top = None if native is None else rows(native, 999)
    labels = np.arange(TEXTS) % 2
    return Curves(values, top, (labels == 0).astype(float), labels, np.ones(TEXTS))


START = {0: 0.5, 10: 0.6, 30: 0.7}


@pytest.mark.parametrize(
    ("ported", "answer", "steps"),
    [
        ({0: 0.88, 10: 0.9, 30: 0.9}, WORKS, 0),
        ({0: 0.6, 10: 0.88, 30: 0.9}, AFTER, 10),
        ({0: 0.6, 10: 0.7, 30: 0.9}, AFTER, 30),
        ({0: 0.6, 10: 0.7, 30: 0.7}, AHEAD, 0),
        ({0: 0.47, 10: 0.56, 30: 0.66}, NO_BETTER, None),
        ({0: 0.5, 10: 0.3, 30: 0.4}, WORSE, 10),
    ],
)
def test_known_curves(ported: Mapping[int, float], answer: str, steps: int | None) -> None:
    margin = Thresholds(margin=0.1, level=1e-4 if answer == NO_BETTER else 0.05)
    found = judge(curves(ported, START), margin)
    assert (found.answer, found.steps) == (answer, steps), found.why


def test_working_after_steps_asks_for_a_lead() -> None:
    """A module that ends above 0.9 of native where scratch does so too carries nothing."""
    both = {0: 0.5, 10: 0.6, 30: 0.9}
    found = judge(curves(both, both))
    assert found.accepted(30) and found.answer not in (WORKS, AFTER, AHEAD)


def test_noise_that_trains_well_is_not_said_to_work() -> None:
    """Ahead of scratch, but no further than other draws of its own distribution."""
    good = {0: 0.5, 10: 0.7, 30: 0.9}
    base = curves(good, START)
    mixed = Curves(
        {**base.values, "sampled": curves(good, START).values["ported"]},
        base.native, base.floor, base.strata, base.sizes,
    )  # fmt: skip
    assert judge(base).answer == AFTER
    assert judge(mixed).answer not in (WORKS, AFTER, AHEAD)


def test_few_noisy_texts_tell_nothing() -> None:
    rng = np.random.default_rng(0)
    values = {
        init: {b: (rng.random((3, 20)) < 0.6).astype(float) for b in (0, 10)}
        for init in ("ported", "sampled", "scratch")
    }
    labels = np.arange(20) % 2
    native = (rng.random((3, 20)) < 0.7).astype(float)
    found = judge(Curves(values, native, (labels == 0).astype(float), labels, np.ones(20)))
    assert found.answer == UNKNOWN and "more seeds or test texts" in found.why


def test_without_native_modules_nothing_works() -> None:
    found = judge(curves({0: 0.88, 10: 0.9, 30: 0.9}, START, native=None))
    assert found.answer == AHEAD and found.native is None
    assert all(row.recovery is None for row in found.rows)


def test_recovery_is_undefined_where_native_is_not_above_the_floor() -> None:
    found = judge(curves({0: 0.6, 10: 0.7, 30: 0.7}, START, native=0.5))
    assert all(row.recovery is None for row in found.rows)


def test_recovery_is_the_ratio_of_means() -> None:
    ours = curves({0: 0.7, 10: 0.7, 30: 0.8}, START)
    drawn = Resampled(ours)
    found = drawn.recovery(ours.values["ported"][0])
    assert found is not None and ours.native is not None
    hits = [float(x.mean()) for x in (ours.values["ported"][0], ours.native)]
    assert found.point == pytest.approx((hits[0] - 0.5) / (hits[1] - 0.5), abs=0.02)
    assert found.low < found.point < found.high


def test_balanced_accuracy_weighs_classes_and_loss_weighs_tokens() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    always = (labels == 0).astype(float)
    by = {i: {0: always[None].repeat(3, 0)} for i in ("ported", "sampled", "scratch")}
    drawn = Resampled(Curves(by, None, always, labels, np.ones(100)))
    assert drawn.score(always) == pytest.approx(0.5)
    sizes = np.linspace(1, 9, 100)
    drawn = Resampled(Curves(by, None, always, np.zeros(100), sizes))
    losses = -np.linspace(3, 1, 100)
    assert drawn.score(losses) == pytest.approx((losses * sizes).sum() / sizes.sum())


def test_steps_saved() -> None:
    flat = curves({0: 0.5, 10: 0.7, 30: 0.9}, {0: 0.5, 10: 0.55, 30: 0.7})
    saved = Resampled(flat).saved_steps()
    assert saved is not None
    assert saved.point == pytest.approx(20, abs=1.5) and saved.low <= saved.point <= saved.high
    assert Resampled(curves({0: 0.5, 10: 0.5, 30: 0.6}, START)).saved_steps() is None


def test_a_training_that_diverged_is_left_out_and_counted() -> None:
    whole = curves({0: 0.88, 10: 0.9, 30: 0.9}, START)
    values = {i: {b: x.copy() for b, x in by.items()} for i, by in whole.values.items()}
    for by in values["scratch"].values():
        by[2] = np.nan
    found = judge(Curves(values, whole.native, whole.floor, whole.strata, whole.sizes))
    assert found.answer == WORKS and found.failed == {"scratch": 1}
    assert np.isfinite(found.rows[0].against["scratch"].difference.point)


def test_thresholds_refuse_nonsense() -> None:
    with pytest.raises(InputError, match=r"level must lie in 0\.\.1, got 1\.5"):
        Thresholds(level=1.5)


# The null check and coverage, reduced; the whole of it is benchmarks/assess_null.py ---------------


@pytest.fixture(scope="module")
def null_check() -> ModuleType:
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import assess_null
    finally:
        sys.path.remove(folder)
    return assess_null


def test_noise_is_seldom_said_to_work(null_check: ModuleType) -> None:
    found = null_check.null(null_check.World(3, 100), 30)
    assert set(found) == set(null_check.NULLS)
    assert all(row["works"] <= 0.05 for row in found.values())


def test_intervals_hold_the_truth(null_check: ModuleType) -> None:
    found = null_check.coverage(null_check.World(3, 100), 60)
    assert min(found.values()) >= 0.88, found  # 93% in 200 runs; 60 leave room for chance
