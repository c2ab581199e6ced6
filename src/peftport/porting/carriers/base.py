"""The contract of a carrier: what a strategy must know of a method to move it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import MethodConfig, State
from peftport.porting.maps import Affine, Moments, split
from peftport.porting.spaces import Pair, Space
from peftport.registry import Registry


@dataclass(frozen=True)
class Link:
    """A target site and the source site whose parameters it gets."""

    source: Site
    target: Site


@dataclass(frozen=True)
class Points:
    """What is known of the activations in a pair of spaces.

    Attributes:
        mean, covariance: of the target's, [d_t] and [d_t, d_t].
        sample_source, sample_target: some of the positions, [N, d_s] and [N, d_t].
    """

    mean: Tensor
    covariance: Tensor
    sample_source: Tensor
    sample_target: Tensor


class Maps(ABC):
    """Coordinates of one host in those of another: what a map-based strategy supplies."""

    @abstractmethod
    def read(self, pair: Pair, *, intercept: bool = True) -> Affine:
        """Target's coordinates -> source's, [d_t, d_s]."""

    @abstractmethod
    def write(self, pair: Pair) -> Affine:
        """Source's coordinates -> target's, [d_s, d_t]."""

    def points(self, pair: Pair) -> Points | None:
        """Activations, where the strategy has seen any."""
        return None

    def facts(self) -> dict[str, Any]:
        """What is worth knowing about the maps that were used; JSON-able."""
        return {}


@dataclass
class Carried:
    """Parameters in the target's shapes, and what is worth knowing about how they came about.

    Attributes:
        state, head: as in :class:`peftport.methods.base.Module`.
        facts: JSON-able.
    """

    state: State
    head: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a site does, as far as it can be fitted.

    Attributes:
        read: what its parameters read.
        write: the space that what they add ends up in.
        through: whether the linear layer that is read lies between the two.
    """

    read: Space
    write: Space
    through: bool = False


@dataclass(frozen=True)
class Wanted:
    """What a site should add.

    Attributes:
        x: what it reads, [N, d_in].
        y: what it should add there, [N, d_out], float64.
        held: which points are held out to choose a strength, [N].
        probed: what each further probe (:meth:`Carrier.probes`) changes in x, [N, d_in] each.
        spec: of the host.
        weight: of the linear layer between x and y, where there is one, [d_in, d_out], float64.
    """

    x: Tensor
    y: Tensor
    held: Tensor
    probed: Sequence[Tensor] = ()
    spec: HostSpec | None = None
    weight: Tensor | None = None

    def moments(self, x: Tensor) -> tuple[Moments, Moments]:
        """Of (x, y) on the points to fit on, and on those that are held out."""
        return split(x, self.y, self.held)


class Carrier(ABC):
    """What a method's parameters mean in the coordinates of a host.

    Attributes:
        name: of the method.
        rate: learning rate at which its modules are usually trained.
        fit_from: strategy that carries what :meth:`fitted` leaves as it is.
    """

    name: ClassVar[str]
    rate: ClassVar[float] = 1e-3
    fit_from: ClassVar[str] = "ridge"

    def answers(self, spec: HostSpec, config: Any) -> dict[str, Answer]:
        """Sites whose effect can be fitted in closed form, in the host's order, by name; the
        module's other sites then stay without effect. Empty where a method has no such sites."""
        return {}

    def fitted(
        self, config: Any, state: State, site: str, wanted: Wanted
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """A site's tensors so that it adds what is wanted, and how well held-out points are met.

        Args:
            config: of the module on the target.
            state: of the module on the target; what is not fitted is taken from it.
            site: name.
            wanted: points.
        """
        raise NotImplementedError(f"{self.name} has no sites to fit")

    def probes(
        self, spec: HostSpec, config: Any, tensors: Mapping[str, Tensor]
    ) -> list[dict[str, Tensor]]:
        """Tensors of a site to watch its host with, one after the other: the first as long as it
        is not fitted (without effect), more where a fit needs to know what they do."""
        return [self.scaled(tensors, defaultdict[str, float](float))]

    def resize(self, config: Any, source: HostSpec, target: HostSpec) -> MethodConfig:
        """The config of the module on the target: the same inner size (rank, prefix length,
        bottleneck width) as on the source, so that nothing is cut that need not be."""
        return config

    @abstractmethod
    def spaces(self, spec: HostSpec, site: Site, config: Any) -> dict[str, Space]:
        """Spaces that the parameters of a site live in, by use."""

    @abstractmethod
    def carry(
        self,
        config: Any,
        state: State,
        links: Sequence[tuple[Link, Mapping[str, Pair]]],
        maps: Maps,
    ) -> Carried:
        """The state in the target's coordinates.

        Args:
            config: of the source module.
            state: of the source module.
            links: target sites in order, with the pair of spaces for each use.
            maps: between the coordinates.
        """

    @abstractmethod
    def size(self, config: Any, state: State, site: str) -> float:
        """Size of a site's parameters without any data: a Frobenius norm of what they do."""

    @abstractmethod
    def effects(
        self, config: Any, state: State, site: str, points: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Root mean square of what the module adds at a site, relative to what it is added to.

        Args:
            points: activations of the plain host by use, [N, d].

        Returns:
            One number for each part that can be scaled on its own.
        """

    @abstractmethod
    def scaled(
        self, tensors: Mapping[str, Tensor], factors: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """A site's tensors with each part's effect scaled."""


carriers: Registry[type[Carrier]] = Registry("carrier", "peftport.porting.carriers")


def carrier_of(method: str) -> Carrier:
    """Raises InputError where porting does not know the method."""
    if method not in carriers:
        raise InputError(
            f"porting does not know the method '{method}'; known: {', '.join(carriers.names())}"
        )
    return carriers.get(method)()


def input_site(spec: HostSpec, site: Site) -> Site:
    """The one site that stands for all linears with the same input (q, k, v of a self-attention;
    k, v of a cross-attention; gate, up), so that its activations are collected once."""
    first = {"k": "q", "v": "q"} if site.block == "self_attn" else {"v": "k", "gate": "up"}
    role = first.get(site.role, site.role)
    name = f"{site.stack}.{site.layer}.{site.block}.{role}"
    return spec.by_name.get(name, site)


def sibling(spec: HostSpec, site: Site, role: str) -> Site:
    """The site of another role in the same block."""
    return spec.site(f"{site.stack}.{site.layer}.{site.block}.{role}")


def rms(x: Tensor) -> float:
    """x [N, d] -> square root of the mean square"""
    return float(x.double().square().mean().sqrt())


def ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def cast_like(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float64 results in the dtype of the tensors they replace."""
    return {name: t.to(like[name].dtype).contiguous() for name, t in tensors.items()}


def doubles(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to(torch.float64) for name, t in tensors.items()}
