"""Pad: zero-padded or truncated tensors, with no regard to what the coordinates mean."""

from __future__ import annotations

from torch import Tensor

from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig
from peftport.porting.carriers.base import Carried
from peftport.porting.strategies.base import Job, Strategy, by_tensor, strategies


@strategies.register("pad")
class Pad(Strategy):
    """The naive baseline across widths (ual-adapter's way): coordinate i stays coordinate i,
    missing ones are zero, surplus ones are cut."""

    name = "pad"
    reference_url = "https://github.com/hamehrabi/ual-adapter"
    needs_texts = False
    head = "padded"

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        """Any two hosts whose sites correspond will do."""

    def carry(self, job: Job) -> Carried:
        return by_tensor(job, padded)


def padded(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The leading entries of a tensor in another shape of as many axes, zeros elsewhere."""
    made = tensor.new_zeros(shape)
    common = tuple(slice(0, min(a, b)) for a, b in zip(tensor.shape, shape, strict=True))
    made[common] = tensor.detach()[common]
    return made
