"""Activation spaces of a host, and the activations of two hosts on the same texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peftport.data.tasks import Encoded, Task, encode
from peftport.errors import InputError
from peftport.hosts.load import Host
from peftport.hosts.spec import HostSpec
from peftport.porting.maps import SAMPLE, Moments

#: Fewest texts that a map can be fitted on.
MIN_TEXTS = 16
#: Every so many texts one is held out to choose the ridge strength.
_FOLD = 5


@dataclass(frozen=True, order=True)
class Space:
    """Where activations are read.

    Attributes:
        kind: ``in`` / ``out`` of a linear layer; ``block``: a block's output h before the residual
            addition; ``stream``: h + residual; ``normed``: the layer norm of that, where the
            architecture has one there; ``head``: what the classification head reads.
        site: name of the linear site (``in``, ``out``) or of the block's ``out`` site; empty for
            ``head``.
    """

    kind: Literal["in", "out", "block", "stream", "normed", "head"]
    site: str = ""

    def __str__(self) -> str:
        return f"{self.kind}({self.site})" if self.site else self.kind


@dataclass(frozen=True, order=True)
class Pair:
    """Two spaces that are taken to mean the same."""

    source: Space
    target: Space


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


@contextmanager
def tapped(host: Host, spaces: Iterable[Space]) -> Iterator[dict[Space, Tensor]]:
    """A dict that every forward pass of the host fills with the activations of ``spaces``:
    [B, T, d], or [B, d] for ``head``."""
    found: dict[Space, Tensor] = {}
    handles = []
    for space in sorted(set(spaces)):
        handles += _hooks(host, space, found)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _hooks(host: Host, space: Space, found: dict[Space, Tensor]) -> list[Any]:
    family, model, spec = host.family, host.model, host.spec
    if space.kind == "head":
        head = family.head_input(model)
        if head is None:
            raise InputError(f"host '{host.ref}' has no classification head")
        return [head.register_forward_pre_hook(lambda _, a: found.update({space: a[0]}))]
    site = spec.site(space.site)
    if space.kind in ("in", "out"):
        linear = family.submodule(model, spec, site)
        own = family.columns(spec, site) or slice(None)

        def keep(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            found[space] = args[0] if space.kind == "in" else out[..., own]

        return [linear.register_forward_hook(keep)]
    point = family.out_point(model, spec, site)
    residual: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        residual[:] = [args[point.residual_arg]]

    def after(_: nn.Module, args: tuple[Any, ...], h: Tensor) -> None:
        value = h if space.kind == "block" else h + residual[0]
        if space.kind == "normed" and point.norm is not None:
            value = point.norm(value)
        found[space] = value

    return [
        point.parent.register_forward_pre_hook(before),
        point.value.register_forward_hook(after),
    ]


def run_plain(host: Host, batch: dict[str, Tensor]) -> None:
    """One forward pass for its activations. An encoder-decoder reads the text in its decoder too
    (shifted right, after the start token), so that decoder spaces vary as richly as encoder ones;
    the first decoder position is the one the label word is decided at."""
    model: Any = host.model
    kwargs = dict(batch)
    if {"encoder", "decoder"} <= set(host.spec.layers):
        ids = batch["input_ids"]
        start = torch.full_like(ids[:, :1], int(model.config.decoder_start_token_id))
        kwargs["decoder_input_ids"] = torch.cat([start, ids[:, :-1]], dim=1)
        kwargs["decoder_attention_mask"] = batch["attention_mask"]
        kwargs["use_cache"] = False  # type: ignore[assignment]
    with torch.no_grad():
        model(**kwargs)


@dataclass
class Correspondence:
    """Activations of two plain hosts on the same unlabelled texts, by pair of spaces.

    Collected on demand and kept, so that one object serves any number of modules, methods and
    strategies on a pair of hosts. Hidden states are folded into moments batch by batch and never
    stored. Padding positions take no part.

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
        check_tokenizers(self.source.spec, self.target.spec)

    def paired(self, pair: Pair) -> Paired:
        self.collect([pair])
        return self._paired[pair]

    def collect(self, pairs: Iterable[Pair]) -> None:
        """Make sure that these pairs are there, with one pass over the texts for all of them."""
        missing = sorted(set(pairs) - set(self._paired))
        if not missing:
            return
        encoded = encode(self.source.tokenizer, self.texts, self.task)
        made: dict[Pair, Paired] = {}
        with (
            tapped(self.source, [p.source for p in missing]) as xs,
            tapped(self.target, [p.target for p in missing]) as ys,
        ):
            for start in range(0, len(self.texts), self.batch_size):
                rows = list(range(start, min(start + self.batch_size, len(self.texts))))
                self._batch(encoded, rows, missing, xs, ys, made)
                if self.progress is not None:
                    self.progress(rows[-1] + 1, len(self.texts))
        self._paired.update(made)

    def _batch(
        self,
        encoded: Encoded,
        rows: list[int],
        pairs: list[Pair],
        xs: dict[Space, Tensor],
        ys: dict[Space, Tensor],
        made: dict[Pair, Paired],
    ) -> None:
        batch = encoded.batch(rows, self.source.pad_id)
        run_plain(self.source, batch)
        run_plain(self.target, batch)
        real = batch["attention_mask"].bool()  # [B, T]
        held = torch.tensor([row % _FOLD == _FOLD - 1 for row in rows])  # [B]
        for pair in pairs:
            x, y = xs[pair.source], ys[pair.target]
            for space, values in ((pair.source, x), (pair.target, y)):
                if not bool(torch.isfinite(values).all()):
                    raise InputError(f"a host's activations are not finite at {space}")
            if x.dim() == 3:
                out = held[:, None].expand_as(real)[real]  # [N]
                x, y = x[real], y[real]  # [N, d]
            else:
                out = held
            if pair not in made:
                d_x, d_y = x.shape[1], y.shape[1]
                made[pair] = Paired(
                    Moments(d_x, d_y), Moments(d_x, d_y), x.new_zeros(0, d_x), y.new_zeros(0, d_y)
                )
            kept = made[pair]
            kept.train.add(x[~out], y[~out])
            kept.held.add(x[out], y[out])
            room = SAMPLE - len(kept.sample_source)
            if room > 0:
                kept.sample_source = torch.cat([kept.sample_source, x[:room]]).double()
                kept.sample_target = torch.cat([kept.sample_target, y[:room]]).double()


def check_tokenizers(source: HostSpec, target: HostSpec) -> None:
    """Raises InputError where the positions of two hosts' tokens do not correspond one to one."""
    if source.tokenizer != target.tokenizer:
        raise InputError(
            f"the hosts' tokenizers differ ({source.tokenizer[:12] or 'unknown'} and "
            f"{target.tokenizer[:12] or 'unknown'}), and ridge does not align positions of "
            "different tokenizers yet; use --strategy pad (or copy, for equal widths)"
        )
