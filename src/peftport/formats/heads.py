"""Whether the head in a folder is one that its host's architecture has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from peftport.errors import InputError
from peftport.formats.keys import family_for
from peftport.hosts.spec import HostSpec

#: layers of a head in their order: DistilBERT's; BERT's and every linear one; RoBERTa's
_LAYERS: tuple[tuple[str, ...], ...] = (
    ("pre_classifier", "classifier"),  # before the next one, which is a part of it
    ("classifier",),
    ("classifier.dense", "classifier.out_proj"),
)


def check_head(head: Mapping[str, Tensor], spec: HostSpec, *, guessed: bool) -> None:
    """Raises InputError unless the head is made of linear layers of this host's width.

    Args:
        head: tensors by name, ``<layer>.weight`` [d_out, d_in] and ``<layer>.bias`` [d_out].
        spec: the host.
        guessed: the spec's widths are defaults, so only the head's own can be compared.
    """
    if not head:
        return
    if family_for(spec).decides_by != "class":
        raise InputError(
            f"the folder has the head {sorted(head)}, but a {spec.family} host answers with a word"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
    layers = next((names for names in _LAYERS if {f"{n}.weight" for n in names} <= set(shapes)), ())
    expected: dict[str, tuple[int, ...]] = {}
    if layers:
        last = shapes[f"{layers[-1]}.weight"]
        d = last[-1] if guessed and last else spec.d_model
        for layer in layers:
            out = last[0] if layer == layers[-1] and last else d
            expected |= {f"{layer}.weight": (out, d), f"{layer}.bias": (out,)}
    if shapes != expected or not all(shape and shape[0] for shape in shapes.values()):
        raise InputError(
            f"the head {shapes} is none that a {spec.family} host of width {spec.d_model} has; "
            f"expected {expected or 'classifier.weight and classifier.bias'}"
        )
