"""Activation spaces of a host, and hooks that read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peftport.errors import InputError
from peftport.hosts.load import Host


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


class Enough(Exception):
    """A forward pass has come to the last space that was asked for."""


class _Until(dict[Space, Tensor]):
    """Raises Enough when it holds so many entries."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __setitem__(self, space: Space, values: Tensor) -> None:
        super().__setitem__(space, values)
        if len(self) == self._count:
            raise Enough


@contextmanager
def tapped(
    host: Host, spaces: Iterable[Space], *, stop: bool = False
) -> Iterator[dict[Space, Tensor]]:
    """A dict that every forward pass of the host fills with the activations of ``spaces``:
    [B, T, d], or [B, d] for ``head``.

    Args:
        stop: end a pass with :class:`Enough` when all are there; clear the dict before each.
    """
    wanted = sorted(set(spaces))
    found: dict[Space, Tensor] = _Until(len(wanted)) if stop else {}
    handles = []
    for space in wanted:
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

        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            found[space] = args[0]

        return [head.register_forward_pre_hook(read)]
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
