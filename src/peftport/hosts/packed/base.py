"""The contract of a packed host, and of what acts on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from peftport.hosts.packed.device import wide
from peftport.hosts.packed.layout import Packed, Spans


class Acts:
    """K modules of one method, as a packed host sees them; by default they change nothing.

    Args:
        head: head tensors by PEFT name, each with a leading axis K; empty for word hosts.
    """

    #: how much later every token stands, where positions are absolute
    shift: int = 0

    def __init__(self, head: Mapping[str, Tensor]) -> None:
        self.head = head

    def acts_on(self, *sites: str) -> bool:
        """Whether any of these sites has parameters."""
        return False

    def linear(self, site: str, x: Tensor, y: Tensor, start: int, spans: Spans) -> Tensor:
        """Output of a linear site: y [N, ...] whose columns from ``start`` are the site's, given
        its input x [N, d_in]. ``y`` may be changed in place."""
        return y

    def out(
        self,
        site: str,
        h: Tensor,
        residual: Tensor,
        norm: Callable[[Tensor], Tensor] | None,
        spans: Spans,
    ) -> Tensor:
        """Output h [N, D] of a block before it is added to the residual."""
        return h

    def pairs(self, site: str) -> tuple[Tensor, Tensor] | None:
        """Keys and values [K, l, H * d] before an attention's own."""
        return None

    def prefix_bias(self) -> str:
        """How pairs count in a relative position bias: none, past, shifted."""
        return "none"


class Program(ABC):
    """A host's forward pass over packed texts. It reads the model's weights and changes nothing."""

    @abstractmethod
    def scores(self, texts: Packed, acts: Acts) -> Tensor:
        """Class logits [S, C] in packed order."""

    @abstractmethod
    def losses(self, texts: Packed, acts: Acts, labels: Tensor) -> Tensor:
        """Mean training loss of every slot [K]; labels [S] in packed order."""


def slot_means(losses: Tensor, slots: int) -> Tensor:
    """[S] -> [K]: every slot has as many texts."""
    return losses.view(slots, -1).mean(1)


def classify(features: Tensor, acts: Acts, slots: int) -> Tensor:
    """Each slot's own linear head: features [S, D] -> [S, C]."""
    weight, bias = acts.head["classifier.weight"], acts.head["classifier.bias"]
    blocks = features.view(slots, -1, features.shape[1])  # [K, B, D]
    return (blocks @ weight.transpose(1, 2) + bias[:, None]).flatten(0, 1)


def class_losses(scores: Tensor, labels: Tensor, slots: int) -> Tensor:
    scores = scores.to(wide(scores.dtype))
    return slot_means(F.cross_entropy(scores, labels, reduction="none"), slots)
