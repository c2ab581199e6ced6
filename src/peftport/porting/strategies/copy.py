"""Copy: the same numbers, where both hosts have the same widths."""

from __future__ import annotations

from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig
from peftport.porting.carriers.base import Carried
from peftport.porting.strategies.base import Job, Strategy, by_tensor, differing_widths, strategies


@strategies.register("copy")
class Copy(Strategy):
    """Every site gets the tensors of its source site. Layers are dropped or repeated by the plan's
    layer map where the depths differ."""

    name = "copy"
    reference_url = "https://arxiv.org/abs/2401.14228"
    needs_texts = False
    head = "copied"

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        differ = differing_widths(source, target)
        if differ:
            raise InputError(
                f"strategy 'copy' needs hosts of equal widths, these differ in "
                f"{', '.join(differ)}; use --strategy ridge (with --texts) or --strategy pad"
            )

    def carry(self, job: Job) -> Carried:
        return by_tensor(job, _clone)


def _clone(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor.detach().clone().reshape(shape)
