"""Metrics of class scores. numpy only: the report imports this without torch."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

#: in the order in which tables show them; the first is the primary one
METRICS = ("balanced_accuracy", "accuracy", "auc", "constant")


def metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All of :data:`METRICS`.

    Args:
        scores: class logits  [N, C].
        labels: classes  [N] in 0..C-1.

    Returns:
        ``balanced_accuracy``: mean recall over the classes that occur; ``accuracy``; ``auc``: area
        under the ROC curve (mean of one-vs-rest for more than two classes; nan with one class);
        ``constant``: accuracy of always predicting the most frequent class.
    """
    predicted = scores.argmax(axis=1)
    present = np.unique(labels)
    recalls = [float(np.mean(predicted[labels == c] == c)) for c in present]
    return {
        "balanced_accuracy": float(np.mean(recalls)),
        "accuracy": float(np.mean(predicted == labels)),
        "auc": _auc(scores, labels),
        "constant": float(np.bincount(labels).max() / len(labels)),
    }


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """P(score of a positive > score of a negative), ties half: the Mann-Whitney statistic."""
    classes = scores.shape[1]
    margins = scores.astype(np.float64) - _others(scores.astype(np.float64))  # [N, C]
    wanted = [1] if classes == 2 else range(classes)
    areas = [_binary_auc(margins[:, c], labels == c) for c in wanted]
    return float(np.mean(areas))


def _others(scores: np.ndarray) -> np.ndarray:
    """For every class the best score among the others  [N, C]."""
    top = np.sort(scores, axis=1)
    best, second = top[:, -1:], top[:, -2:-1]
    return np.where(scores == best, second, best)


def _binary_auc(margin: np.ndarray, positive: np.ndarray) -> float:
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return float("nan")
    ranks = rankdata(margin)
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
