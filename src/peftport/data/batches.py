"""Which texts are read together: decided by lengths and a seed, by nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peftport.errors import InputError

#: a pool of so many batches is sorted by length before it is cut
POOL = 8


def train_batches(
    lengths: Sequence[int], batch_size: int, steps: int, seed: int
) -> list[list[int]]:
    """Batches of a training run, bucketed by length.

    Every epoch is a random order of all texts. It is cut into pools of 8 batches; each pool is
    sorted by length and cut into batches, which are then put into a random order within their
    pool. What does not fill a batch opens the next epoch, so after any number of epochs no text
    was used more often than another by more than one. Fewer steps give a prefix of more steps.

    Args:
        lengths: tokens of every text  [N].
        batch_size: texts per batch; a smaller dataset is read again until a batch is full.
        steps: number of batches.
        seed: the only source of randomness. The raw stream of PCG64 is used, which numpy keeps
            stable over its versions.

    Returns:
        ``steps`` lists of exactly ``batch_size`` indices into ``lengths``.

    Raises:
        InputError: no texts, or a batch size below 1.
    """
    if not lengths or batch_size < 1 or steps < 0:
        raise InputError(
            "training batches need at least one text, batch_size >= 1 and steps >= 0,"
            f" got {len(lengths)} texts, batch_size {batch_size}, steps {steps}"
        )
    random = np.random.PCG64(seed)
    sizes = np.asarray(lengths)  # [N]
    batches: list[list[int]] = []
    rest = np.empty(0, dtype=np.int64)
    while len(batches) < steps:
        epoch = np.concatenate([rest, _permutation(random, len(sizes))])
        full = len(epoch) // batch_size * batch_size
        rest = epoch[full:]
        for start in range(0, full, POOL * batch_size):
            pool = epoch[start : min(start + POOL * batch_size, full)]
            pool = pool[np.argsort(sizes[pool], kind="stable")]
            cut = pool.reshape(-1, batch_size)  # [batches of the pool, batch_size]
            batches += cut[_permutation(random, len(cut))].tolist()
    return batches[:steps]


def eval_batches(lengths: Sequence[int], max_rows: int) -> list[list[int]]:
    """All texts once, shortest first, at most ``max_rows`` in a batch; equal lengths keep their
    order."""
    if max_rows < 1:
        raise InputError(f"max_rows must be >= 1, got {max_rows}")
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    return [order[start : start + max_rows] for start in range(0, len(order), max_rows)]


def _permutation(random: np.random.PCG64, n: int) -> NDArray[np.int64]:
    """A random order of 0..n-1: the ranks of n raw 64-bit draws."""
    return np.argsort(random.random_raw(n), kind="stable").astype(np.int64)
