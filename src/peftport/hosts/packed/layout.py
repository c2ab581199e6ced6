"""Texts of many modules laid end to end, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Texts of one length that follow each other: ``size`` texts of ``length`` tokens.

    ``start`` is their first token, ``text`` their first text, ``slot`` the module they belong to.
    """

    start: int
    size: int
    length: int
    text: int
    slot: int


#: where each slot's rows begin and end
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Packed:
    """K blocks of texts, one a module, each sorted by length and laid end to end.

    Attributes:
        ids: token ids  [N].
        positions: place of every token in its text  [N].
        groups: texts of one length; attention works on one group at a time.
        tokens: each slot's tokens.
        texts: each slot's texts.
        order: for every text in packed order  [S] the place it was given at.
        first: first token of every text  [S].
        copies: 1, or K where all slots read the same texts: then ``ids`` and ``positions`` are
            those of one slot, and :attr:`repeated` are those of all.
    """

    ids: Tensor
    positions: Tensor
    groups: tuple[Group, ...]
    tokens: Spans
    texts: Spans
    order: Tensor
    first: Tensor
    copies: int = 1
    once: Packed | None = field(default=None, repr=False)

    @property
    def n_tokens(self) -> int:
        return self.tokens[-1][1]

    @property
    def n_texts(self) -> int:
        return self.texts[-1][1]


def pack(blocks: Sequence[Sequence[Sequence[int]]]) -> Packed:
    """Lay out K blocks of token ids; every block holds one or more texts.

    Returns:
        the layout; within a slot texts of equal length keep their order.
    """
    ids: list[int] = []
    order: list[int] = []
    first: list[int] = []
    groups: list[Group] = []
    tokens: list[tuple[int, int]] = []
    texts: list[tuple[int, int]] = []
    lengths: list[int] = []
    given = 0
    for slot, block in enumerate(blocks):
        token_start, text_start = len(ids), len(order)
        for at in sorted(range(len(block)), key=lambda i, block=block: len(block[i])):  # type: ignore[misc]
            row = block[at]
            if len(groups) and groups[-1].slot == slot and groups[-1].length == len(row):
                groups[-1] = groups[-1]._replace(size=groups[-1].size + 1)
            else:
                groups.append(Group(len(ids), 1, len(row), len(order), slot))
            first.append(len(ids))
            order.append(given + at)
            lengths.append(len(row))
            ids += row
        given += len(block)
        tokens.append((token_start, len(ids)))
        texts.append((text_start, len(order)))
    starts = torch.tensor(first)
    counts = torch.tensor(lengths)
    positions = torch.arange(len(ids)) - starts.repeat_interleave(counts)
    return Packed(
        torch.tensor(ids, dtype=torch.long),
        positions,
        tuple(groups),
        tuple(tokens),
        tuple(texts),
        torch.tensor(order),
        starts,
    )


def repeat(one: Packed, copies: int) -> Packed:
    """The same texts for ``copies`` slots; what no module changes is computed once."""
    n, s = one.n_tokens, one.n_texts
    groups = tuple(
        Group(g.start + k * n, g.size, g.length, g.text + k * s, k)
        for k in range(copies)
        for g in one.groups
    )
    return replace(
        one,
        groups=groups,
        tokens=tuple((k * n, (k + 1) * n) for k in range(copies)),
        texts=tuple((k * s, (k + 1) * s) for k in range(copies)),
        order=torch.cat([one.order + k * s for k in range(copies)]),
        first=torch.cat([one.first + k * n for k in range(copies)]),
        copies=copies,
        once=one,
    )
