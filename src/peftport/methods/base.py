"""The contract of a method, and the module that it trains."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

import torch
from torch import Tensor, nn

from peftport.errors import InputError
from peftport.hosts.families.base import Family
from peftport.hosts.spec import HostSpec, Site
from peftport.kinds import is_number, is_whole
from peftport.registry import Registry

if TYPE_CHECKING:
    from peftport.methods.bank import BankLayer

#: site name -> tensor name -> tensor; the pseudo-site "shared" holds what all sites share
State = dict[str, dict[str, Tensor]]
SHARED = "shared"


@dataclass(frozen=True)
class MethodConfig:
    """Hyperparameters of a method: frozen, and refuses nonsense when it is made."""

    method: ClassVar[str]

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if hint in _KINDS:
                fits, expected = _KINDS[hint]
                self.require(fits(getattr(self, name)), name, expected)
        self.check()

    @property
    def shift(self) -> int:
        """How many positions later the host's tokens stand."""
        return 0

    def check(self) -> None:
        """Raises InputError: ``prefix.length must be >= 1, got 0``."""

    def require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise InputError(
                f"{self.method}.{name} must be {expected}, got {getattr(self, name)!r}"
            )

    def require_some(self, name: str, known: Sequence[str]) -> None:
        """One or more of these words."""
        given = getattr(self, name)
        self.require(bool(given) and set(given) <= set(known), name, f"some of {tuple(known)}")

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """From a mapping (YAML, JSON); unknown keys are refused, lists become tuples."""
        given = {key: value for key, value in facts.items() if key != "method"}
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise InputError(f"unknown key '{cls.method}.{key}'; known: {', '.join(known)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def _whole(value: object) -> bool:
    return is_whole(value) and abs(value) < 2**31


def _number(value: object) -> bool:
    """False for NaN and infinity too."""
    return is_number(value) and abs(value) < 1e9


def _words(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(word, str) for word in value)


#: what the values of a field of this type must be, and in words
_KINDS: dict[Any, tuple[Callable[[object], bool], str]] = {
    int: (_whole, "a whole number below 2^31"),
    int | None: (lambda value: value is None or _whole(value), "a whole number or null"),
    float: (_number, "a finite number"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    str: (lambda value: isinstance(value, str), "a word"),
    tuple[str, ...]: (_words, "a list of words, as [a, b]"),
}


@dataclass(frozen=True)
class Module:
    """One set of trained parameters of one method for one host.

    Attributes:
        config: the method and its hyperparameters.
        state: site name -> named tensors, float32 (float64 in conformance tests).
        head: tensors of the travelling classification head by PEFT name; empty for ``word`` hosts.
        fingerprint: weight fingerprint of the host it belongs to.
        host: how that host was named, for people and for ``base_model_name_or_path``.
        notes: free facts that travel along (task, labels, provenance).
    """

    config: MethodConfig
    state: State
    head: dict[str, Tensor]
    fingerprint: str
    host: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by flat name, body first, then ``head/...``, in a fixed order."""
        for site in self.state:
            for name, tensor in self.state[site].items():
                yield f"{site}/{name}", tensor
        for name, tensor in self.head.items():
            yield f"head/{name}", tensor

    @property
    def size(self) -> int:
        """Number of trained parameters."""
        return sum(tensor.numel() for _, tensor in self.tensors())

    @property
    def digest(self) -> str:
        """Digest of config and values, independent of where the module is stored."""
        h = hashlib.sha256(json.dumps(self.config.to_json(), sort_keys=True).encode())
        for name, tensor in sorted(self.tensors()):
            h.update(f"{name}{tuple(tensor.shape)}".encode())
            h.update(tensor.detach().to(torch.float64).contiguous().numpy().tobytes())
        return h.hexdigest()


class Method(ABC):
    """A PEFT method by its paper's definition.

    Every method file has the same five parts in the same order: its config, its sites and fresh
    parameters, its arithmetic on one site, how it attaches to a host, and its bank layer.
    """

    name: ClassVar[str]
    reference_url: ClassVar[str]
    config_class: ClassVar[type[MethodConfig]]

    @abstractmethod
    def default_config(self, spec: HostSpec) -> MethodConfig:
        """The configuration used when a user gives none for this host."""

    @abstractmethod
    def sites(self, spec: HostSpec, config: Any) -> list[Site]:
        """Sites where a module of this config acts on this host, in the host's order."""

    @abstractmethod
    def init(self, spec: HostSpec, config: Any, generator: torch.Generator) -> State:
        """Fresh trainable parameters by the method's own initialisation (the scratch control)."""

    @abstractmethod
    def attach(
        self, family: Family, model: nn.Module, spec: HostSpec, config: Any, state: State
    ) -> list[Callable[[], None]]:
        """Make ``model`` compute with ``state`` (tensors are used as given, so they may require
        grad). Returns what undoes it, exactly."""

    def bank(
        self, spec: HostSpec, config: Any, state: State, head: Mapping[str, Tensor]
    ) -> BankLayer | None:
        """K modules at once: ``state`` and ``head`` with a leading axis K. None where the method
        cannot be stacked; it is then trained module by module."""
        return None

    def finish(self, spec: HostSpec, config: Any, state: State) -> tuple[Any, State]:
        """What is kept of trained parameters (a reparameterised prefix becomes a direct one)."""
        return config, state

    def shapes(self, spec: HostSpec, config: Any) -> dict[str, dict[str, tuple[int, ...]]]:
        """Expected tensor shapes by site: what a loaded module is checked against."""
        with torch.device("meta"):  # a config that lies about its size must not cost memory
            state = self.init(spec, config, torch.Generator().manual_seed(0))
        return {s: {n: tuple(t.shape) for n, t in ts.items()} for s, ts in state.items()}


#: a module with so many times the weights that it is attached to is a slip
_MOST = 10


def check_config(spec: HostSpec, config: MethodConfig) -> None:
    """Raises InputError where a fresh module would have no site on a host, or not fit on it."""
    method = method_of(config)
    facts = {key: value for key, value in config.to_json().items() if key != "method"}
    told = ", ".join(f"{key} {value}" for key, value in facts.items())
    if not method.sites(spec, config):
        raise InputError(
            f"{config.method} ({told}) has no site on a '{spec.family}' host, whose sites are "
            f"{', '.join(sorted({f'{s.block}.{s.role}' for s in spec.sites}))}"
        )
    shapes = method.shapes(spec, config)
    size = sum(math.prod(shape) for own in shapes.values() for shape in own.values())
    weights = sum(site.d_in * site.d_out for site in spec.sites)
    if size > _MOST * weights:
        raise InputError(
            f"{config.method} ({told}) would train {size:,} parameters on a host whose linear "
            f"layers have {weights:,}; give it a smaller size"
        )


methods: Registry[type[Method]] = Registry("method", "peftport.methods")


def method_of(config: MethodConfig) -> Method:
    return methods.get(config.method)()


def config_from_json(facts: Mapping[str, Any]) -> MethodConfig:
    """A config of any method from ``{"method": name, ...}``."""
    if "method" not in facts:
        raise InputError(f"a method config needs the key 'method', got {sorted(facts)}")
    return methods.get(str(facts["method"])).config_class.from_json(facts)
