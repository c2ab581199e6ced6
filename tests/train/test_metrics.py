"""Metrics against their definitions, by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftport.train.metrics import metrics


def brute_auc(margin: np.ndarray, labels: np.ndarray) -> float:
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in margin[labels == 1]
        for n in margin[labels == 0]
    ]
    return float(np.mean(pairs))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=4, max_size=30))
def test_auc_is_the_share_of_ordered_pairs(rows: list[tuple[int, bool]]) -> None:
    labels = np.array([int(c) for _, c in rows])
    if len(set(labels)) < 2:
        return
    scores = np.array([[0.0, m] for m, _ in rows], dtype=np.float32)
    assert metrics(scores, labels)["auc"] == pytest.approx(brute_auc(scores[:, 1], labels))


def test_a_constant_prediction_scores_a_half_where_classes_are_uneven() -> None:
    labels = np.array([0, 0, 0, 1])
    found = metrics(np.tile([1.0, 0.0], (4, 1)), labels)
    assert found["balanced_accuracy"] == 0.5
    assert found["accuracy"] == found["constant"] == 0.75
    assert found["auc"] == 0.5


def test_three_classes() -> None:
    labels = np.array([0, 1, 2, 2])
    scores = np.eye(3)[[0, 1, 2, 0]]
    found = metrics(scores, labels)
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["accuracy"] == 0.75
    assert 0.5 < found["auc"] <= 1


def test_one_class_has_no_auc() -> None:
    assert np.isnan(metrics(np.zeros((3, 2)), np.zeros(3, dtype=int))["auc"])
