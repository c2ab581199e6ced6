"""Decoder hosts as language models: the loss of every next token, for adapters without labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftport.errors import InputError
from peftport.hosts.families.base import Family, Words
from peftport.hosts.load import Host


def as_language_model(host: Host) -> Host:
    """The same host, trained on the loss of its texts' tokens. Its scores of a text are (summed
    loss, predicted tokens) instead of class logits.

    Raises:
        InputError: it does not predict a next token (encoders, encoder-decoders).
    """
    if host.family.decides_by != "word" or tuple(host.family.stacks) != ("decoder",):
        raise InputError(
            f"held-out loss needs a decoder-only host, '{host.ref}' is a {host.family.name}; "
            "give labelled data"
        )
    return replace(host, family=cast(Family, _Language(host.family)), words=None, labels=2)


class _Language:
    """A family whose task is the text itself; all else is the family's own."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def program(self, *args: Any, **kwargs: Any) -> None:
        """Packed programs know label words only."""
        return None

    def scores(self, model: nn.Module, batch: Mapping[str, Tensor], words: Words | None) -> Tensor:
        losses, real = _token_losses(model, batch)
        return torch.stack([(losses * real).sum(1), real.sum(1)], dim=1)  # [B, 2]

    def loss(
        self, model: nn.Module, batch: Mapping[str, Tensor], labels: Tensor, words: Words | None
    ) -> Tensor:
        losses, real = _token_losses(model, batch)
        return (losses * real).sum() / real.sum().clamp(min=1)


def _token_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss of every next token and whether it is one, both  [B, T - 1]."""
    ids, mask = batch["input_ids"], batch["attention_mask"]  # [B, T]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # [B, T, V]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return losses, mask[:, 1:].to(losses.dtype)
