"""Texts of many modules laid end to end, without padding."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from peftport.hosts.packed.device import batched, send


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
class PositionBias:
    """A bias of attention scores by position.

    Attributes:
        key: what it is, so that what is made of it can be kept.
        table: (queries, keys) -> [H, Q, T]
    """

    key: Hashable
    table: Callable[[int, int], Tensor]

    def __call__(self, queries: int, keys: int) -> Tensor:
        return self.table(queries, keys)


#: where texts are padded they become a multiple of this long, which attention kernels ask of masks
ALIGN = 8


class KeyMask:
    """Which tokens of padded texts may be attended to.

    Args:
        added: 0 for a text's own tokens, -inf behind them  [S, T] float32.
    """

    def __init__(self, added: Tensor) -> None:
        self.added = added
        #: what attention made of it for one pass through the host, by what it is for
        self.made: dict[Hashable, Tensor] = {}


@dataclass(frozen=True)
class Packed:
    """K blocks of texts, one a module, each sorted by length and laid end to end; on an accelerator
    in their own order, padded to one length.

    Tensors lie on the host's device, ``order`` on the CPU.

    Attributes:
        ids: token ids  [N].
        positions: place of every token in its text  [N].
        groups: texts of one length; attention works on one group at a time.
        tokens: each slot's tokens.
        texts: each slot's texts.
        order: for every text in packed order  [S] the place it was given at.
        first: first token of every text  [S].
        mask: which tokens are padding; None where none is.
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
    mask: KeyMask | None = None
    copies: int = 1
    once: Packed | None = field(default=None, repr=False)

    @property
    def n_tokens(self) -> int:
        return self.tokens[-1][1]

    @property
    def n_texts(self) -> int:
        return self.texts[-1][1]


_CPU = torch.device("cpu")


def pack(blocks: Sequence[Sequence[Sequence[int]]], device: torch.device = _CPU) -> Packed:
    """Lay out K blocks of token ids; every block holds one or more texts.

    Args:
        blocks: slot, text, token.
        device: the host's.

    Returns:
        the layout; within a slot texts of equal length keep their order.
    """
    if batched(device):
        return _padded(blocks, device)
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
        send(torch.tensor(ids, dtype=torch.long), device),
        send(positions, device),
        tuple(groups),
        tuple(tokens),
        tuple(texts),
        torch.tensor(order),
        send(starts, device),
    )


def _padded(blocks: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Packed:
    """As :func:`pack`, every text padded to the length of the longest; blocks of equal size."""
    rows = [row for block in blocks for row in block]
    lengths = np.array([len(row) for row in rows])
    width = -(-int(lengths.max()) // ALIGN) * ALIGN
    own = np.arange(width) < lengths[:, None]  # [S, T]
    ids = np.zeros(own.shape, dtype=np.int64)
    ids[own] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=lengths.sum())
    mask = np.where(own, 0.0, -np.inf).astype(np.float32)
    there = [send(torch.from_numpy(part), device) for part in (ids, mask)]
    return lay(there[0], there[1], len(blocks))


def lay(ids: Tensor, mask: Tensor, slots: int) -> Packed:
    """Texts that are padded already.

    Args:
        ids: token ids, block after block of equal size  [S, T].
        mask: as in :class:`KeyMask`.
        slots: K.
    """
    count, width = ids.shape
    size = count // slots
    starts = range(0, count, size)
    return Packed(
        ids.flatten(),
        torch.arange(width, device=ids.device).repeat(count),
        tuple(Group(at * width, size, width, at, k) for k, at in enumerate(starts)),
        tuple((at * width, (at + size) * width) for at in starts),
        tuple((at, at + size) for at in starts),
        torch.arange(count),
        torch.arange(0, count * width, width, device=ids.device),
        KeyMask(mask),
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
        mask=KeyMask(one.mask.added.repeat(copies, 1)) if one.mask is not None else None,
        copies=copies,
        once=one,
    )
