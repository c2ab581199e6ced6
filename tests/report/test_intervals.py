"""Intervals say what they should: known answers, exact metrics, levels, coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from peftport.report.evidence import Evidence
from peftport.report.resample import Resampled, coded, contributions, holm, level_weights
from peftport.report.stats import mean_of, paired, permutation_test, recovery
from peftport.train.metrics import metrics


@pytest.mark.parametrize("metric", ["balanced_accuracy", "accuracy", "auc"])
def test_contributions_add_up_to_the_metric(metric: str) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(101) < 0.3).astype(int)
    logits = rng.normal(size=(101, 2)).round(1)  # ties too
    values, offset, by_class = contributions(metric, logits, labels)
    groups = [labels == 0, labels == 1] if by_class else [labels >= 0]
    total = offset + sum(values[own].mean() for own in groups)
    assert total == pytest.approx(metrics(logits, labels)[metric], abs=1e-12)


def test_linear_auc_follows_a_resampled_auc() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 2
    logits = np.stack([np.zeros(400), labels + rng.normal(0, 1, 400)], axis=1)
    values, offset, _ = contributions("auc", logits, labels)
    linear, exact = [], []
    for _ in range(200):
        pick = rng.integers(0, 400, 400)
        own = [pick[labels[pick] == c] for c in (0, 1)]
        linear.append(offset + sum(values[p].mean() for p in own))
        exact.append(metrics(logits[pick], labels[pick])["auc"])
    assert np.corrcoef(linear, exact)[0, 1] > 0.99
    assert np.std(linear) == pytest.approx(np.std(exact), rel=0.1)


@pytest.mark.parametrize("n", [3, 5, 12])
def test_weighted_means_have_the_unbiased_variance(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    weights = level_weights(np.random.default_rng(0), 40_000, n)
    means = (weights * values).sum(axis=1) / weights.sum(axis=1)
    assert means.var() == pytest.approx(values.var(ddof=1) / n, rel=0.06)


def test_a_known_gap_is_found(study: Any) -> None:
    evidence = study(sentences=400).evidence()
    scores = Resampled(evidence, "balanced_accuracy", draws=500)
    interval = paired(evidence, scores, "scratch", 0).mean(scores)
    assert interval.low < 0.23 < interval.high
    assert interval.above(0.1)
    assert interval.seeds == 3
    # 2 methods x 2 pairs x 3 seeds ported, and 2 x 2 targets x 3 scratch
    assert (interval.runs, interval.trainings) == (12, 24)


def test_shared_scratch_trainings_are_counted_once(study: Any) -> None:
    pairs = (("big", "t"), ("big-tuned", "t"), ("small", "t"))
    evidence = study(pairs=pairs, methods=("lora",)).evidence()
    scores = Resampled(evidence, "balanced_accuracy", draws=200)
    interval = paired(evidence, scores, "scratch", 0).mean(scores)
    assert interval.runs == 9
    assert interval.trainings == 9 + 3


def test_copies_of_runs_do_not_make_an_interval_narrower(study: Any) -> None:
    """Two sources whose ported runs are the same trainings hold no more than one does."""
    one = study(pairs=(("a", "t"),), methods=("lora",))
    both = pd.concat([one.frame(), one.frame().assign(source="b")])
    from peftport.report.evidence import tidy

    evidence = one.evidence()
    doubled = one.evidence(cells=tidy(both))
    narrow, wide = (
        paired(e, s, "scratch", 0).mean(s)
        for e in (evidence, doubled)
        for s in [Resampled(e, "balanced_accuracy", draws=300)]
    )
    assert wide.runs == 2 * narrow.runs
    assert wide.trainings == narrow.trainings
    assert (wide.low, wide.high) == pytest.approx((narrow.low, narrow.high))


def test_few_seeds_get_the_t_interval(study: Any) -> None:
    evidence = study(
        lambda run: 0.5 + 0.15 * run["seed"] * (run["init"] == "ported"), methods=("lora",),
        pairs=(("a", "b"),), sentences=2000,
    ).evidence()  # fmt: skip
    scores = Resampled(evidence, "balanced_accuracy", draws=500)
    pairs = paired(evidence, scores, "scratch", 0)
    interval = pairs.mean(scores)
    values = pairs.values(scores)
    half = stats.t.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    assert interval.rule == "t over seeds"
    assert interval.high - interval.low == pytest.approx(2 * half)


def test_null_intervals_cover_zero(study: Any) -> None:
    """No effect, 3 seeds: at most a few of 80 intervals may miss 0 (95%: 4 expected)."""
    missed = 0
    for at in range(80):
        evidence = study(
            lambda run: 0.6, methods=("lora",), pairs=(("a", "b"),), sentences=60,
            noise=0.04, ablations=False, seed=at, budgets=(0,),
        ).evidence()  # fmt: skip
        scores = Resampled(evidence, "balanced_accuracy", draws=200)
        interval = paired(evidence, scores, "scratch", 0).mean(scores)
        missed += interval.above() or interval.below()
    assert missed <= 8


def test_holm_known_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_permutation_counts_every_labelling() -> None:
    values = np.array([3.0, 3.1, 3.2, 1.0, 1.1, 1.2, 0.0, 0.1, 0.2])
    groups = np.repeat(["a", "b", "c"], 3).astype(object)
    found = permutation_test(values, groups, np.tile([0, 1, 2], 3))
    assert found is not None
    assert found.exact and found.labellings == 36
    assert found.p == pytest.approx(1 / 36)


def test_permutation_that_cannot_reach_significance_has_no_p() -> None:
    found = permutation_test(
        np.array([1.0, 1.0, 0.0, 0.0]), np.array(list("aabb"), object), np.array([0, 1, 0, 1])
    )
    assert found is not None and found.p is None


def test_permutation_under_the_null_is_uniform() -> None:
    rng = np.random.default_rng(0)
    groups, blocks = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    found = [permutation_test(rng.normal(size=12), groups, blocks) for _ in range(100)]
    small = sum(f is not None and f.p is not None and f.p < 0.1 for f in found)
    assert 3 <= small <= 19


def _recovery(evidence: Evidence, floor: float) -> Any:
    scores = Resampled(evidence, "balanced_accuracy", draws=500)
    ported = evidence.grid.query("init == 'ported' and budget == 0 and target == 'small'")
    return recovery(scores, ported, evidence.native("lora", "small"), floor)


def test_recovery_is_a_ratio_of_means(study: Any) -> None:
    truth = {"ported": 0.7, "native": 0.9}
    evidence = study(
        lambda run: truth.get(run["init"], 0.5), methods=("lora",), sentences=1000
    ).evidence()
    found = _recovery(evidence, 0.5)
    expected = (found.ported.point - 0.5) / (found.native.point - 0.5)
    assert found.ratio.point == pytest.approx(expected)
    assert found.ratio.low < 0.5 < found.ratio.high


def test_recovery_is_undefined_when_native_is_at_the_floor(study: Any) -> None:
    evidence = study(lambda run: 0.5, methods=("lora",)).evidence()
    found = _recovery(evidence, 0.5)
    assert found.ratio is None and "undefined" in found.why
    assert found.ported.point > 0


def test_mean_without_runs_is_none(study: Any) -> None:
    evidence = study().evidence()
    scores = Resampled(evidence, "balanced_accuracy", draws=50)
    assert mean_of(scores, evidence.grid.head(0)) is None


def test_scores_that_do_not_give_the_exported_number_are_named(study: Any) -> None:
    made = study(methods=("lora",))
    evidence = made.evidence()
    key = evidence.grid["key"].iloc[0]
    changed = {(key, 0): -made.scores[key, 0]}
    evidence = made.evidence(scores=lambda k, b: changed.get((k, b), made.scores[k, b]))
    assert Resampled(evidence, "balanced_accuracy", draws=50).unlike == [f"{key} at 0"]


def test_runs_that_share_a_host_or_a_seed_move_together(study: Any) -> None:
    pairs = [(s, t) for s in "abc" for t in "xyz"]
    evidence = study(pairs=pairs, methods=("lora",), sentences=20).evidence()
    scores = Resampled(evidence, "balanced_accuracy", draws=20)
    units = paired(evidence, scores, "scratch", 0).units
    weights, resampled = scores.unit_weights(coded(units))
    assert resampled == ("seed", "source", "target")
    at = {tuple(k): i for i, k in enumerate(units[["source", "target", "seed"]].to_numpy(object))}
    for one, two in (
        [("a", "x", 0), ("b", "x", 0)],
        [("a", "x", 0), ("a", "y", 0)],
        [("a", "x", 0), ("a", "x", 1)],
    ):
        ratio = weights[at[one]] / weights[at[two]]
        # the ratio depends only on the factor in which the two differ
        elsewhere = [
            tuple(x if one[i] != two[i] else ("c", "z", 2)[i] for i, x in enumerate(run))
            for run in (one, two)
        ]
        again = weights[at[elsewhere[0]]] / weights[at[elsewhere[1]]]
        np.testing.assert_allclose(ratio, again)
        assert ratio.std() > 0
