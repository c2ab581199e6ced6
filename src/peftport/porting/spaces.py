"""The activations of two hosts on the same texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

from peftport.data.tasks import Task
from peftport.errors import InputError
from peftport.hosts.load import Host
from peftport.hosts.spec import HostSpec
from peftport.porting.alignment import Aligned, Couples, align, need_offsets
from peftport.porting.maps import SAMPLE, Moments
from peftport.porting.taps import Pair, Space, run_plain, tapped

__all__ = [
    "MIN_TEXTS",
    "Batch",
    "Correspondence",
    "Pair",
    "Paired",
    "Space",
    "check_tokenizers",
    "run_plain",
    "tapped",
]

#: Fewest texts that a map can be fitted on.
MIN_TEXTS = 16
#: Every so many texts one is held out to choose the ridge strength.
_FOLD = 5


@dataclass
class Paired:
    """What is kept of two hosts' activations in a pair of spaces (x: source, y: target).

    Attributes:
        train, held: moments over four fifths of the texts, and over every fifth.
        sample_source, sample_target: the first :data:`SAMPLE` positions, [N, d], float64.
    """

    train: Moments
    held: Moments
    sample_source: Tensor
    sample_target: Tensor

    @property
    def moments(self) -> Moments:
        return self.train + self.held


@dataclass
class Correspondence:
    """Activations of two plain hosts on the same unlabelled texts, by pair of spaces.

    Collected on demand and kept, so that one object serves any number of modules, methods and
    strategies on a pair of hosts. Hidden states are folded into moments batch by batch and never
    stored. Padding positions take no part. Where the tokenizers differ, positions are those whose
    tokens end at the same character (:mod:`peftport.porting.alignment`).

    Attributes:
        source, target: the hosts, with nothing attached.
        texts: unlabelled texts.
        task: how a text is rendered and cut.
        batch_size: texts a forward pass.
        progress: called with (texts done, texts) after each batch.
    """

    source: Host
    target: Host
    texts: Sequence[str]
    task: Task = field(default_factory=Task)
    batch_size: int = 32
    progress: Callable[[int, int], None] | None = None
    _paired: dict[Pair, Paired] = field(default_factory=dict, repr=False)
    #: what strategies keep between modules, e.g. fitted maps
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.texts) < MIN_TEXTS:
            raise InputError(
                f"maps between hosts need at least {MIN_TEXTS} unlabelled texts, got "
                f"{len(self.texts)}; give a few hundred"
            )
        if not self._one_tokenizer:
            need_offsets(self.source.tokenizer, self.target.tokenizer)

    @property
    def _one_tokenizer(self) -> bool:
        return self.source.spec.tokenizer == self.target.spec.tokenizer

    @cached_property
    def aligned(self) -> Aligned:
        """The texts in both hosts' tokens."""
        made = align(
            self.source.tokenizer,
            self.target.tokenizer,
            self.texts,
            self.task,
            same=self._one_tokenizer,
        )
        if made.couples is not None:
            for part, wanted in (("fit", False), ("choose the strength on", True)):
                found = sum(len(c) for row, c in enumerate(made.couples) if is_held(row) is wanted)
                if found < MIN_TEXTS:
                    raise InputError(
                        f"the hosts' tokens end at the same character {found} times in the texts "
                        f"to {part} maps, expected at least {MIN_TEXTS}; give more or longer texts"
                    )
        return made

    def facts(self) -> dict[str, Any]:
        """What is worth knowing about the alignment; empty for hosts with one tokenizer."""
        if self._one_tokenizer:
            return {}
        made = self.aligned
        return {
            "tokens_aligned": sum(map(len, made.couples or [])),
            "tokens_source": sum(made.source.lengths),
            "tokens_target": sum(made.target.lengths),
        }

    def paired(self, pair: Pair) -> Paired:
        self.collect([pair])
        return self._paired[pair]

    def collect(self, pairs: Iterable[Pair]) -> None:
        """Make sure that these pairs are there, with one pass over the texts for all of them."""
        missing = sorted(set(pairs) - set(self._paired))
        if not missing:
            return
        made: dict[Pair, Paired] = {}
        for batch in self.passes([p.source for p in missing], [p.target for p in missing]):
            for pair in missing:
                x, y, texts = batch.points(pair)
                if pair not in made:
                    d_x, d_y = x.shape[1], y.shape[1]
                    made[pair] = Paired(
                        Moments(d_x, d_y),
                        Moments(d_x, d_y),
                        x.new_zeros(0, d_x),
                        y.new_zeros(0, d_y),
                    )
                kept, out = made[pair], is_held(texts)
                kept.train.add(x[~out], y[~out])
                kept.held.add(x[out], y[out])
                room = SAMPLE - len(kept.sample_source)
                if room > 0:
                    kept.sample_source = torch.cat([kept.sample_source, x[:room]]).double()
                    kept.sample_target = torch.cat([kept.sample_target, y[:room]]).double()
        self._paired.update(made)

    def passes(self, source: Iterable[Space], target: Iterable[Space]) -> Iterator[Batch]:
        """Both hosts on the texts, batch by batch, with the activations of these spaces."""
        aligned = self.aligned
        with tapped(self.source, source) as xs, tapped(self.target, target) as ys:
            for start in range(0, len(self.texts), self.batch_size):
                rows = list(range(start, min(start + self.batch_size, len(self.texts))))
                ours = aligned.source.batch(rows, self.source.pad_id)
                theirs = ours
                if aligned.couples is not None:
                    theirs = aligned.target.batch(rows, self.target.pad_id)
                run_plain(self.source, ours)
                run_plain(self.target, theirs)
                couples = None if aligned.couples is None else [aligned.couples[r] for r in rows]
                real = (ours["attention_mask"].bool(), theirs["attention_mask"].bool())
                yield Batch(rows, real, couples, xs, ys, self.source.spec)
                if self.progress is not None:
                    self.progress(rows[-1] + 1, len(self.texts))


@overload
def is_held(text: int) -> bool: ...
@overload
def is_held(text: Tensor) -> Tensor: ...
def is_held(text: int | Tensor) -> bool | Tensor:
    """Whether a text, by its number, is held out."""
    return text % _FOLD == _FOLD - 1


@dataclass(frozen=True)
class Batch:
    """Activations of both hosts on some texts.

    Attributes:
        rows: numbers of the texts.
        real: which positions are no padding, [B, T], of either host.
        couples: by text, positions that correspond; None: each is its own partner.
        xs, ys: activations of the source and of the target by space.
        spec: of the source.
    """

    rows: list[int]
    real: tuple[Tensor, Tensor]
    couples: list[Couples] | None
    xs: dict[Space, Tensor]
    ys: dict[Space, Tensor]
    spec: HostSpec

    def points(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Corresponding points x [N, d_x] and y [N, d_y], and the number of each one's text [N]."""
        x, y = self.xs[pair.source], self.ys[pair.target]
        for space, values in ((pair.source, x), (pair.target, y)):
            if not bool(torch.isfinite(values).all()):
                raise InputError(f"a host's activations are not finite at {space}")
        texts = torch.tensor(self.rows)  # [B]
        if x.dim() == 2:
            return x, y, texts
        if self.couples is None:
            real, _ = self.real
            return x[real], y[real], texts[:, None].expand_as(real)[real]
        late = is_late(self.spec, pair.source)
        ends = torch.stack([real.sum(1) for real in self.real], dim=1).tolist()  # [B, 2]
        found = [
            (row, i, j)
            for row, (couples, end) in enumerate(zip(self.couples, ends, strict=True))
            for i, j in (later(couples, *end) if late else couples)
        ]
        at, i, j = torch.tensor(found, dtype=torch.long).reshape(-1, 3).unbind(1)
        return x[at, i], y[at, j], texts[at]


def later(couples: Couples, end_x: int, end_y: int) -> Couples:
    """Positions of the text after a start token, which takes the last token's place."""
    return [(0, 0), *((i + 1, j + 1) for i, j in couples if i + 1 < end_x and j + 1 < end_y)]


def is_late(spec: HostSpec, space: Space) -> bool:
    """Whether a space's positions are those of the shifted text (see :func:`run_plain`): of a
    decoder beside an encoder, except where it reads the encoder's output."""
    if space.kind == "head" or "encoder" not in spec.layers:
        return False
    site = spec.site(space.site)
    reads_encoder = site.block == "cross_attn" and site.role in ("k", "v")
    return site.stack == "decoder" and not reads_encoder


def check_tokenizers(source: HostSpec, target: HostSpec, strategy: str = "this strategy") -> None:
    """For strategies that need positions to correspond one to one.

    Raises:
        InputError: the hosts' tokenizers differ.
    """
    if source.tokenizer != target.tokenizer:
        raise InputError(
            f"the hosts' tokenizers differ ({source.tokenizer[:12] or 'unknown'} and "
            f"{target.tokenizer[:12] or 'unknown'}), and {strategy} needs one tokenizer; use "
            "--strategy ridge (with --texts)"
        )
