"""From sentences to batches: token ids, length buckets, padding. All of it follows from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

Item = TypeVar("Item")
CLS, SEP, MASK, PAD = "[CLS]", "[SEP]", "[MASK]", "[PAD]"


class Words:
    """The hosts' tokenizer, without the padding and truncation stored in its file."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab()
        self.cls, self.sep = int(vocabulary[CLS]), int(vocabulary[SEP])
        self.mask, self.pad = int(vocabulary[MASK]), int(vocabulary[PAD])
        self.size: int = self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without special tokens."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def located(self, texts: Sequence[str]) -> list[tuple[list[int], dict[int, int]]]:
        """Token ids without special tokens; and by the character where a word ends, the position
        of the word's last token."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        result = []
        for encoding in found:
            last = {word: i for i, word in enumerate(encoding.word_ids)}
            ends = {encoding.offsets[i][1]: i for i in last.values()}
            result.append((encoding.ids, ends))
        return result

    def vocabulary(self) -> dict[str, int]:
        """Token to id."""
        return dict(self._tokenizer.get_vocab())

    def single(self, ids: list[int], max_tokens: int) -> list[int]:
        """[CLS] a [SEP], cut to ``max_tokens`` in all."""
        return [self.cls, *ids[: max_tokens - 2], self.sep]


def some(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` of the items, evenly out of all of them."""
    return list(items[:: max(1, len(items) // count)][:count])


def pad_batch(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask padded to the longest row  ([B, T] int64, [B, T] int64)."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def bucketed(lengths: Sequence[int], batch: int, steps: int, seed: int) -> list[np.ndarray]:
    """Row indices of every step. Each epoch is shuffled by the seed, sorted by length within
    windows of 50 batches, cut into batches, and the batches of a window are shuffled."""
    if len(lengths) < batch:
        raise ValueError(f"a batch of {batch} needs as many rows, got {len(lengths)}")
    rng = np.random.default_rng([seed, 11])
    size = np.asarray(lengths)
    plan: list[np.ndarray] = []
    while len(plan) < steps:
        order = rng.permutation(len(size))
        for start in range(0, len(order), 50 * batch):
            window = order[start : start + 50 * batch]
            window = window[np.argsort(size[window], kind="stable")]
            cuts = [window[i : i + batch] for i in range(0, len(window) - batch + 1, batch)]
            plan.extend(cuts[i] for i in rng.permutation(len(cuts)))
    return plan[:steps]
