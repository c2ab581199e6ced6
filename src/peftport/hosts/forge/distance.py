"""How far a host is from another of its shape."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def encoder_distance(
    weights: Mapping[str, Tensor], parent: Mapping[str, Tensor], *, matrices_only: bool = False
) -> float:
    """Relative Frobenius distance ||W - W_parent|| / ||W_parent|| over the encoder layers.

    Args:
        weights, parent: tensors of two hosts of one shape, by BertModel's names.
        matrices_only: leave biases and layer norms out.
    Returns:
        The distance; embeddings and pooler do not count.
    Raises:
        ValueError: the two hosts have different encoder layers.
    """
    mine = {name: w for name, w in weights.items() if name.startswith("encoder.")}
    names = {name for name in parent if name.startswith("encoder.")}
    if set(mine) != names or any(mine[n].shape != parent[n].shape for n in names):
        raise ValueError("distance needs two hosts of one shape; their encoder layers differ")
    moved = size = 0.0
    for name, w in mine.items():
        if matrices_only and w.ndim < 2:
            continue
        old = parent[name].double()
        moved += float((w.double() - old).square().sum())
        size += float(old.square().sum())
    return float((moved / size) ** 0.5)
