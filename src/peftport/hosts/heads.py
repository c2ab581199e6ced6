"""Classification heads of encoders beside the architecture's own."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftport.errors import InputError


class MeanHead(nn.Module):
    """One linear layer over the mean of a text's last hidden states.

    It takes the place of a head of two layers over the first token (RoBERTa, DistilBERT). Their
    task models pass it one token's states, so it is given all of them by a hook on the body.

    Attributes:
        weight, bias: [C, D] and [C].
        reads: gets what the layer reads  [B, D].
    """

    def __init__(self, d_model: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, d_model))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.reads = nn.Identity()
        self._seen: tuple[Tensor, Tensor | None] | None = None

    def see(self, hidden: Tensor, mask: Tensor | None) -> None:
        """hidden  [B, T, D], mask  [B, T] or None: all tokens are real."""
        self._seen = (hidden, mask)

    def forward(self, _: Tensor) -> Tensor:
        """-> class logits  [B, C]"""
        if self._seen is None:
            raise RuntimeError("a MeanHead was called before the body that it belongs to")
        hidden, mask = self._seen
        self._seen = None
        if mask is None:
            mean = hidden.mean(dim=1)
        else:
            weights = mask.to(hidden.dtype)[..., None]  # [B, T, 1]
            mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return F.linear(self.reads(mean), self.weight, self.bias)


def load_classifier(path: str, *, labels: int, head: str, dtype: torch.dtype) -> nn.Module:
    """A sequence classifier in eval mode with its own head (``pooler``) or a :class:`MeanHead`.

    Args:
        path, labels, head, dtype: as in :meth:`Family.load`.

    Raises:
        InputError: an unknown head.
    """
    from transformers import AutoModelForSequenceClassification

    if head not in ("pooler", "mean"):
        raise InputError(f"head must be 'pooler' or 'mean', got '{head}'")
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=labels, dtype=dtype, local_files_only=True
    )
    if head == "mean":
        mean = MeanHead(model.config.hidden_size, labels).to(dtype)
        model.classifier = mean
        if hasattr(model, "pre_classifier"):
            model.pre_classifier = nn.Identity()

        def show(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            mean.see(out[0], mask)

        model.base_model.register_forward_hook(show, with_kwargs=True)
    return cast(nn.Module, model.eval())
