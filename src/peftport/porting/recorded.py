"""Activations of one host with a module at work, at the positions that two hosts share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from typing import Literal

import torch
from torch import Tensor

from peftport.data.tasks import Encoded
from peftport.hosts.load import Host
from peftport.methods.attach import attach
from peftport.methods.base import Module
from peftport.methods.scores import class_scores
from peftport.porting.spaces import Correspondence, is_held, is_late, later
from peftport.porting.taps import Enough, Space, run_plain, tapped

Side = Literal["source", "target"]
#: what a recording may take of memory, in bytes; fewer texts are read where it would take more
LIMIT = 1 << 30


class Recorder:
    """Runs either host over the texts of a pair, with any module, and keeps what was asked for.

    Rows of one space on the source correspond to rows of its partner on the target, in the same
    order in every recording.

    Args:
        hosts: the pair, with nothing attached.
        width: numbers that a recording keeps per position, all spaces together.
    """

    def __init__(self, hosts: Correspondence, width: int) -> None:
        self._hosts = hosts
        lengths = hosts.aligned.source.lengths
        room = LIMIT // (4 * max(1, width))  # positions
        #: numbers of the texts that are read, in the order in which they are (shortest first, so
        #: that little is padded)
        self.texts: list[int] = []
        for text, length in enumerate(lengths):
            room -= length
            if room < 0 and self.texts:
                break
            self.texts.append(text)
        self.texts.sort(key=lambda text: lengths[text])

    def rows(
        self, side: Side, module: Module | None, spaces: Iterable[Space]
    ) -> dict[Space, Tensor]:
        """Activations by space, [N, d], or [texts, d] of ``head``; float32."""
        host = self._host(side)
        wanted = sorted(set(spaces))
        found: dict[Space, list[Tensor]] = {space: [] for space in wanted}
        at_work = nullcontext() if module is None else attach(host.model, module, spec=host.spec)
        with at_work, tapped(host, wanted, stop=True) as seen:
            for texts in self._batches():
                batch = self._encoded(side).batch(texts, host.pad_id)
                seen.clear()
                with suppress(Enough):
                    run_plain(host, batch)
                real = batch["attention_mask"].bool()
                for space in wanted:
                    found[space].append(self._kept(side, space, seen[space], texts, real))
        return {space: torch.cat(parts).float() for space, parts in found.items()}

    def held(self, space: Space) -> Tensor:
        """Which rows of a source space belong to texts that are held out, [N]."""
        texts = torch.tensor(self.texts)
        if space.kind == "head":
            return is_held(texts)
        couples = self._hosts.aligned.couples
        if couples is None:
            counts = torch.tensor([self._hosts.aligned.source.lengths[t] for t in self.texts])
        else:
            counts = torch.tensor([len(self._couples(t, space)) for t in self.texts])
        return is_held(texts).repeat_interleave(counts)

    def _host(self, side: Side) -> Host:
        return self._hosts.source if side == "source" else self._hosts.target

    def _encoded(self, side: Side) -> Encoded:
        return self._hosts.aligned.source if side == "source" else self._hosts.aligned.target

    def _batches(self) -> Iterable[list[int]]:
        size = self._hosts.batch_size
        return (self.texts[at : at + size] for at in range(0, len(self.texts), size))

    def _kept(
        self, side: Side, space: Space, values: Tensor, texts: list[int], real: Tensor
    ) -> Tensor:
        if values.dim() == 2:
            return values
        if self._hosts.aligned.couples is None:
            return values[real]
        own = 0 if side == "source" else 1
        places = [
            (row, couple[own])
            for row, text in enumerate(texts)
            for couple in self._couples(text, space)
        ]
        at, position = torch.tensor(places, dtype=torch.long).reshape(-1, 2).unbind(1)
        return values[at, position]

    def _couples(self, text: int, space: Space) -> list[tuple[int, int]]:
        aligned = self._hosts.aligned
        assert aligned.couples is not None
        couples = aligned.couples[text]
        if not is_late(self._hosts.source.spec, space):
            return couples
        return later(couples, aligned.source.lengths[text], aligned.target.lengths[text])


def predictions(
    hosts: Correspondence, side: Side, module: Module, texts: Sequence[int] | None = None
) -> Tensor:
    """Class logits of a host with a module for every text, or for those of the given numbers,
    [texts, C], float32."""
    host = hosts.source if side == "source" else hosts.target
    encoded = hosts.aligned.source if side == "source" else hosts.aligned.target
    if texts is not None:
        encoded = Encoded([encoded.ids[text] for text in texts])
    return torch.from_numpy(class_scores(host, module, encoded))
