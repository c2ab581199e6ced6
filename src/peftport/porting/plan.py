"""What a port would do, decided before anything is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from peftport.errors import HostMismatch, InputError, UnknownName
from peftport.hosts.families.base import families
from peftport.hosts.spec import HostSpec, Site
from peftport.kinds import is_number, is_whole
from peftport.methods.base import SHARED, MethodConfig, Module, method_of
from peftport.porting.carriers.base import carrier_of
from peftport.porting.layers import LAYER_RULES, LayerMap, depth_map, layers_by
from peftport.porting.rank import at_rank
from peftport.porting.strategies.base import Strategy, strategies
from peftport.porting.table import render

__all__ = ["LAYER_RULES", "Move", "PortPlan", "Shape", "depth_map", "plan_port"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """One target site, the source site it is filled from, and its tensors' shapes by name."""

    source: str
    target: str
    before: Mapping[str, Shape]
    after: Mapping[str, Shape]


@dataclass(frozen=True)
class PortPlan:
    """A port that is known to be possible.

    Attributes:
        strategy: registered name.
        source, target: the hosts.
        config, target_config: of the module on each. The inner size (rank, prefix length,
            bottleneck width) stays the source's, so ``reduction`` of a bottleneck follows the
            target's width.
        layer_map: by stack, for every target layer the source layer it is filled from.
        moves: target sites in the host's order.
        shared: shapes on the target of tensors that all sites share, by pseudo-site.
        head: what happens to the head: ``copied``, ``padded``, ``mapped`` or ``none``.
        head_before, head_after: its shapes by tensor name.
        norm_match: whether each site's effect is scaled to its relative size in the source.
        needs_texts: whether unlabelled texts and both loaded hosts are needed.
        parameters_before, parameters_after: numbers of trained parameters, head included.
        options: of the strategy, every one of them.
        carried: the plan at the source's rank, which the strategy carries out before the update is
            brought to the rank of this one; None where the rank stays.
    """

    strategy: str
    source: HostSpec
    target: HostSpec
    config: MethodConfig
    target_config: MethodConfig
    layers: str
    layer_map: Mapping[str, tuple[int, ...]]
    moves: tuple[Move, ...]
    shared: Mapping[str, Mapping[str, Shape]]
    head: str
    head_before: Mapping[str, Shape]
    head_after: Mapping[str, Shape]
    norm_match: bool
    needs_texts: bool
    parameters_before: int
    parameters_after: int
    options: Mapping[str, Any] = field(default_factory=dict)
    carried: PortPlan | None = None

    @property
    def needs_weights(self) -> bool:
        """Whether both hosts' folders are needed."""
        return strategies.get(self.strategy).needs_weights

    @property
    def unused(self) -> dict[str, list[int]]:
        """Source layers that no target layer is filled from, by stack."""
        return {
            stack: sorted(set(range(self.source.layers[stack])) - set(chosen))
            for stack, chosen in self.layer_map.items()
        }

    def table(self) -> str:
        """The plan for people."""
        return render(self)

    def to_json(self) -> dict[str, Any]:
        facts = {
            "strategy": self.strategy,
            "source": self.source.to_json(),
            "target": self.target.to_json(),
            "config": self.config.to_json(),
            "target_config": self.target_config.to_json(),
            "layers": self.layers,
            "layer_map": dict(self.layer_map),
            "unused_layers": self.unused,
            "sites": [
                {"target": m.target, "source": m.source, "before": m.before, "after": m.after}
                for m in self.moves
            ],
            "shared": self.shared,
            "head": {"how": self.head, "before": self.head_before, "after": self.head_after},
            "norm_match": self.norm_match,
            "needs_texts": self.needs_texts,
            "needs_weights": self.needs_weights,
            "options": dict(self.options),
            "parameters": {"before": self.parameters_before, "after": self.parameters_after},
        }
        return json.loads(json.dumps(facts))


def plan_port(
    source: HostSpec,
    target: HostSpec,
    module: Module,
    *,
    strategy: str,
    layers: str = "depth",
    norm_match: bool = False,
    have_texts: bool | None = None,
    layer_map: LayerMap | None = None,
    rank: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> PortPlan:
    """Decide a port, or say why it cannot be done. Nothing is computed and no weight is read.

    Args:
        source: the module's own host.
        target: the host it is to go to.
        module: what is to be ported.
        strategy: registered name.
        layers: how layers correspond; ``depth`` is :func:`depth_map`, ``cka`` what
            :func:`peftport.porting.layers.cka_layers` found.
        norm_match: scale each site's effect to the relative size that it has in the source.
        have_texts: whether unlabelled texts will be there; None: not known yet.
        layer_map: the result of ``cka_layers`` for this pair, with ``layers="cka"``.
        rank: of the ported lora; None: the source's.
        options: of the strategy, where they are not to be what it uses otherwise.

    Raises:
        UnknownName: no such strategy, layer rule or option.
        HostMismatch: the module does not belong to ``source``.
        InputError: sites that do not correspond, or what the strategy cannot do.
    """
    chosen = strategies.get(strategy)()
    if layers not in LAYER_RULES:
        raise UnknownName("layer rule", layers, LAYER_RULES)
    if norm_match and chosen.fits_effect:
        raise InputError(
            f"strategy '{strategy}' fits the size of what it carries already, which a norm "
            "match would undo; leave norm match out"
        )
    chosen_options = _options(chosen, options or {})
    if module.fingerprint and module.fingerprint != source.fingerprint:
        raise HostMismatch(
            f"the module belongs to host {module.fingerprint[:12]} "
            f"('{module.host}'), the given source host is {source.fingerprint[:12] or 'unknown'}; "
            "name the host that the module was trained on with --source"
        )
    _check_families(source, target)
    config, state = method_of(module.config).finish(source, module.config, module.state)
    carrier = carrier_of(config.method)
    reranked = None if rank is None else at_rank(config, rank)
    chosen.check(source, target, config)
    chosen.check_options(source, target, chosen_options)
    needs_texts = chosen.needs_texts or norm_match
    if needs_texts and have_texts is False:
        fits = chosen.needs_texts
        why = f"strategy '{strategy}' fits its maps" if fits else "norm match measures"
        raise InputError(
            f"{why} on unlabelled texts, got none; give a few hundred with --texts"
            + (", or use --strategy pad" if fits else ", or leave norm match out")
        )
    target_config = carrier.resize(config, source, target)
    method = method_of(target_config)
    sites = method.sites(target, target_config)
    if not sites:
        raise InputError(
            f"{config.method} with {config.to_json()} has no site on the target host "
            f"('{target.family}', layers {dict(target.layers)}); choose a target that has "
            f"{', '.join(sorted({name.split('.', 2)[2] for name in state if '.' in name}))}"
        )
    chosen_layers = layers_by(layers, source, target, layer_map)
    shapes = method.shapes(target, target_config)
    before = {s: {n: tuple(t.shape) for n, t in ts.items()} for s, ts in state.items()}
    moves = []
    for site in sites:
        name = _source_name(site, chosen_layers[site.stack])
        if name not in state:
            raise InputError(
                f"target site '{site.name}' corresponds to source site '{name}', where the module "
                f"has no parameters; its sites: {_some(state)}"
            )
        moves.append(Move(name, site.name, before[name], shapes[site.name]))
    head_before = {name: tuple(t.shape) for name, t in module.head.items()}
    head_after = _head_shapes(head_before, source, target)
    after = [*shapes.values(), head_after]
    plan = PortPlan(
        strategy=strategy,
        source=source,
        target=target,
        config=config,
        target_config=target_config,
        layers=layers,
        layer_map=chosen_layers,
        moves=tuple(moves),
        shared={name: shapes[name] for name in shapes if name.split(".")[0] == SHARED},
        head=chosen.head if module.head else "none",
        head_before=head_before,
        head_after=head_after,
        norm_match=norm_match,
        needs_texts=needs_texts,
        parameters_before=sum(
            math.prod(s) for ts in [*before.values(), head_before] for s in ts.values()
        ),
        parameters_after=sum(math.prod(shape) for tensors in after for shape in tensors.values()),
        options=chosen_options,
    )
    return plan if reranked is None or reranked == config else _at_rank(plan, reranked)


def _at_rank(plan: PortPlan, config: MethodConfig) -> PortPlan:
    shapes = method_of(config).shapes(plan.target, config)
    moves = tuple(replace(move, after=shapes[move.target]) for move in plan.moves)
    after = [move.after for move in moves] + [plan.head_after]
    return replace(
        plan,
        target_config=config,
        moves=moves,
        parameters_after=sum(math.prod(shape) for tensors in after for shape in tensors.values()),
        carried=plan,
    )


def _options(strategy: Strategy, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a strategy. Raises UnknownName, or InputError for a value of another kind."""
    for name, value in given.items():
        if name not in strategy.options:
            raise UnknownName(f"option of strategy '{strategy.name}'", name, strategy.options)
        usual, fits, expected = strategy.options[name], True, ""
        if name in strategy.choices:
            fits = value in strategy.choices[name]
            expected = f"one of {', '.join(strategy.choices[name])}"
        elif is_whole(usual):
            fits, expected = is_whole(value) and value >= 1, "a whole number >= 1"
        elif is_number(usual):
            fits, expected = is_number(value) and 0 <= value < math.inf, "a number >= 0"
        if not fits:
            raise InputError(
                f"option '{name}' of strategy '{strategy.name}' must be {expected}, got {value!r}"
            )
    return {**strategy.options, **given}


def _check_families(source: HostSpec, target: HostSpec) -> None:
    """Raises InputError where the hosts' sites or their way of deciding do not correspond."""
    if set(source.layers) != set(target.layers):
        raise InputError(
            f"sites do not correspond: a module of '{source.family}' ({', '.join(source.layers)}) "
            f"cannot go to '{target.family}' ({', '.join(target.layers)}); choose a target of "
            f"family '{source.family}'"
        )
    ours, theirs = families.get(source.family), families.get(target.family)
    if ours.decides_by != theirs.decides_by:
        raise InputError(
            f"'{source.family}' decides by {ours.decides_by} and '{target.family}' by "
            f"{theirs.decides_by}, so the module's head has no counterpart; choose a target of "
            f"family '{source.family}'"
        )


def _source_name(site: Site, layers: tuple[int, ...]) -> str:
    return f"{site.stack}.{layers[site.layer]}.{site.block}.{site.role}"


def _head_shapes(
    before: Mapping[str, Shape], source: HostSpec, target: HostSpec
) -> dict[str, Shape]:
    """A linear head keeps its classes and reads the target's width."""
    if source.d_model == target.d_model:
        return dict(before)
    after: dict[str, Shape] = {}
    for name, shape in before.items():
        if name.endswith("weight") and len(shape) == 2 and shape[1] == source.d_model:
            after[name] = (shape[0], target.d_model)
        elif name.endswith("bias") and len(shape) == 1:
            after[name] = shape
        else:
            raise InputError(
                f"head tensor '{name}' of shape {shape} is not part of one linear layer over "
                f"d_model = {source.d_model}, so it cannot go to another width; train the module "
                "with --head mean"
            )
    return after


def _some(names: Mapping[str, object]) -> str:
    known = sorted(names)
    return ", ".join(known[:4]) + (f" and {len(known) - 4} more" if len(known) > 4 else "")
