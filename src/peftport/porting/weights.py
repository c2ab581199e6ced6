"""A host's weights and vocabulary read from its folder, one tensor at a time, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from peftport.errors import HostMismatch, InputError
from peftport.hosts.families.base import Family, families
from peftport.hosts.fingerprint import body_tensors
from peftport.hosts.load import inspect_host, load_tokenizer
from peftport.hosts.spec import HostSpec, Site


class HostFiles:
    """What data-free strategies see of a host.

    Args:
        spec: the host that the folder must hold.
        folder: of a transformers model; safetensors, sharded or not.
        known: the folder is known to be the spec's host, so it need not be read to make sure. It is
            made sure of when something is first asked for.

    Every method raises HostMismatch where the folder holds another host, and InputError as
    :func:`peftport.hosts.load.inspect_host`.
    """

    def __init__(self, spec: HostSpec, folder: Path, *, known: bool = False) -> None:
        self.spec, self.folder = spec, folder
        self._family: Family = families.get(spec.family)()
        self._known = known

    def linear(self, site: Site) -> Tensor:
        """Weight of a linear site, [d_out, d_in], float32.

        Raises:
            InputError: the folder has no such weight, or one of another shape.
        """
        weight = self._read(f"{self._family.module_path(self.spec, site)}.weight")
        if self._family.transposed:
            weight = weight.T
        weight = weight[self._family.columns(self.spec, site) or slice(None)].to(torch.float32)
        self._check(site.name, weight, (site.d_out, site.d_in))
        return weight

    def bias(self, site: Site) -> Tensor | None:
        """Bias of a linear site, [d_out], float32; None where it has none."""
        name = f"{self._family.module_path(self.spec, site)}.bias"
        if name not in self._tensors:
            return None
        own = self._family.columns(self.spec, site) or slice(None)
        return self._read(name)[own].to(torch.float32)

    def embedding(self) -> Tensor:
        """Input embedding [vocab, d_model] in the dtype that it is stored in."""
        weight = self._read(f"{self._family.embedding_path}.weight")
        self._check("embedding", weight, (weight.shape[0], self.spec.d_model))
        return weight

    def vocabulary(self) -> dict[str, int]:
        """Ids by token, with the marks that say where a word begins made alike."""
        self._make_sure()
        return plain_tokens(load_tokenizer(self.folder).get_vocab())

    @cached_property
    def _tensors(self) -> dict[str, Callable[[], Tensor]]:
        self._make_sure()
        family = self._family
        return dict(body_tensors(self.folder, family.weight_prefix, family.unread_weights))

    def _make_sure(self) -> None:
        if self._known:
            return
        found = inspect_host(str(self.folder)).fingerprint
        if found != self.spec.fingerprint:
            raise HostMismatch(
                f"'{self.folder}' holds host {found[:12]}, the plan is for "
                f"{self.spec.fingerprint[:12] or 'unknown'}; give the folder that was planned for"
            )
        self._known = True

    def _read(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise InputError(
                f"no weight '{name}' in '{self.folder}'; give the folder of a complete "
                f"'{self.spec.family}' model"
            )
        return self._tensors[name]()

    def _check(self, what: str, weight: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(weight.shape) != shape:
            raise InputError(
                f"the weight of {what} in '{self.folder}' is {tuple(weight.shape)}, expected "
                f"{shape}; give an unquantised copy of the host"
            )


def plain_tokens(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Tokens of any tokenizer in one spelling: a space in front where a word begins.

    WordPiece marks what goes on inside a word (``##ing``), SentencePiece and byte-level BPE mark
    where a word begins. Of two tokens that become one, the smaller id stays.

    >>> plain_tokens({"film": 5, "##s": 6}), plain_tokens({"\u2581film": 8, "s": 9})
    ({' film': 5, 's': 6}, {' film': 8, 's': 9})
    """
    pieces = any(token.startswith("##") and len(token) > 2 for token in vocabulary)
    made: dict[str, int] = {}
    for token, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        if pieces:
            inside = token.startswith("##") and len(token) > 2
            plain = token[2:] if inside else " " + token
        else:
            plain = " " + token[1:] if token[:1] in ("\u2581", "\u0120") else token
        made.setdefault(plain, index)
    return made
