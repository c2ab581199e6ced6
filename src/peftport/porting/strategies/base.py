"""The contract of a porting strategy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, Module, State
from peftport.porting.carriers.base import Carried, Carrier, Link, Maps, cast_like
from peftport.porting.spaces import Correspondence, Pair, Space
from peftport.porting.weights import HostFiles
from peftport.registry import Registry

if TYPE_CHECKING:
    from peftport.porting.plan import PortPlan


@dataclass(frozen=True)
class Job:
    """What a strategy gets to work with.

    Attributes:
        plan: shapes, layer map and target config, already decided.
        module: the source module (its parameters as ``state`` below when a reparameterisation had
            to be resolved).
        state: parameters to carry, by source site.
        carrier: what the method's parameters mean.
        hosts: both hosts on unlabelled texts; None for a strategy that needs neither.
        files: both hosts' weights by name, where their folders are known.
        options: the strategy's, every one of them.
    """

    plan: PortPlan
    module: Module
    state: State
    carrier: Carrier
    hosts: Correspondence | None
    files: tuple[HostFiles, HostFiles] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def links(self) -> list[tuple[Link, Mapping[str, Pair]]]:
        """Target sites in order, with the pair of spaces for each use of their parameters."""
        plan = self.plan
        links: list[tuple[Link, Mapping[str, Pair]]] = []
        for move in plan.moves:
            link = Link(plan.source.site(move.source), plan.target.site(move.target))
            ours = self.carrier.spaces(plan.source, link.source, plan.config)
            theirs = self.carrier.spaces(plan.target, link.target, plan.target_config)
            links.append((link, {use: Pair(ours[use], theirs[use]) for use in ours}))
        return links


class Strategy(ABC):
    """Answers three questions about a module on its way to another host.

    Which target layer gets which source layer is in the plan. The strategy says how source
    coordinates become target coordinates, and with that how large the result is; norm match, where
    it is asked for, is applied to the result of any strategy.

    Attributes:
        name: registered name.
        reference_url: where the idea is described.
        needs_texts: whether unlabelled texts and both loaded hosts are needed.
        needs_weights: whether both hosts' folders are needed, to read single weights from.
        head: what happens to a classification head, as one word for tables.
        fits_effect: whether what the module does is fitted instead of its weights being carried: it
            then has its size from the texts, which a norm match would undo, and source layers
            without a partner are taken over with the next one.
        options: what can be chosen, by name, with the values that are used otherwise.
        choices: what an option may be that is a word, by its name.
    """

    name: ClassVar[str]
    reference_url: ClassVar[str]
    needs_texts: ClassVar[bool]
    needs_weights: ClassVar[bool] = False
    head: ClassVar[str]
    fits_effect: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    choices: ClassVar[Mapping[str, Sequence[str]]] = MappingProxyType({})

    @abstractmethod
    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        """Raises InputError, with the remedy, where the strategy cannot do this pair. Called
        before anything is computed."""

    def check_options(  # noqa: B027 most options fit every pair
        self, source: HostSpec, target: HostSpec, options: Mapping[str, Any]
    ) -> None:
        """Likewise, where an option does not fit the pair."""

    @abstractmethod
    def carry(self, job: Job) -> Carried:
        """Parameters in the target's shapes. Deterministic; the job's tensors stay as they are."""


class MapStrategy(Strategy):
    """A strategy that is a set of linear maps between spaces; carriers do the rest."""

    head = "mapped"

    @abstractmethod
    def maps(self, job: Job) -> Maps:
        """The maps. They may be fitted when they are first asked for."""

    def carry(self, job: Job) -> Carried:
        maps = self.maps(job)
        carried = job.carrier.carry(job.plan.config, job.state, job.links, maps)
        carried.head = mapped_head(job.module.head, maps)
        carried.facts.update(maps.facts())
        return carried


HEAD = Pair(Space("head"), Space("head"))


def mapped_head(head: Mapping[str, Tensor], maps: Maps) -> dict[str, Tensor]:
    """Linear layers over the head's input: W' = W R^T, b' = b + W c with R [d_t, d_s], c [d_s]."""
    made: dict[str, Tensor] = {}
    for name, weight in head.items():
        if not name.endswith("weight"):
            continue
        bias_name = name.removesuffix("weight") + "bias"
        bias = head.get(bias_name)
        read = maps.read(HEAD, intercept=bias is not None)
        made[name] = weight.to(torch.float64) @ read.weight.T  # [C, d_t]
        if bias is not None:
            made[bias_name] = bias.to(torch.float64) + weight.to(torch.float64) @ read.bias
    return {name: cast_like(made, head)[name] for name in head}


def by_tensor(job: Job, change: Any) -> Carried:
    """A strategy that treats every tensor alone: change(tensor, shape on the target)."""
    state: State = {}
    for name, shapes in job.plan.shared.items():
        own = job.state[name]
        state[name] = {key: change(own[key], shape) for key, shape in shapes.items()}
    for move in job.plan.moves:
        own = job.state[move.source]
        state[move.target] = {key: change(own[key], shape) for key, shape in move.after.items()}
    head = {key: change(job.module.head[key], shape) for key, shape in job.plan.head_after.items()}
    return Carried(state, head)


def differing_widths(source: HostSpec, target: HostSpec) -> list[str]:
    """Widths in which two hosts differ, as ``d_model 384 -> 256``."""
    facts = [("d_model", source.d_model, target.d_model), ("heads", source.heads, target.heads)]
    facts.append(("d_kv", source.d_kv, target.d_kv))
    return [f"{name} {ours} -> {theirs}" for name, ours, theirs in facts if ours != theirs]


def need_hosts(job: Job) -> Correspondence:
    if job.hosts is None:
        raise InputError(
            f"strategy '{job.plan.strategy}' fits its maps on unlabelled texts, got none; "
            "give a few hundred with --texts, or use --strategy pad"
        )
    return job.hosts


def need_files(job: Job) -> tuple[HostFiles, HostFiles]:
    if job.files is None:
        raise InputError(
            f"strategy '{job.plan.strategy}' reads both hosts' weights from their folders, got "
            "none; give source_folder and target_folder, or loaded hosts"
        )
    return job.files


def only_for(strategy: str, methods: Sequence[str], config: MethodConfig) -> None:
    """Raises InputError where a strategy is not made for the module's method."""
    if config.method not in methods:
        raise InputError(
            f"strategy '{strategy}' carries {' and '.join(methods)} only, the module is "
            f"{config.method}; use --strategy ridge (with --texts) or --strategy embedding"
        )


def head_pairs(head: Sequence[str] | Mapping[str, Tensor]) -> list[Pair]:
    return [HEAD] if head else []


strategies: Registry[type[Strategy]] = Registry("strategy", "peftport.porting.strategies")
