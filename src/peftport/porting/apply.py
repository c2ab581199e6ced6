"""Carry a plan out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from peftport.data.tasks import Task
from peftport.errors import HostMismatch, InputError, RunError
from peftport.hosts.load import Host
from peftport.hosts.spec import HostSpec
from peftport.methods.base import Module, State, method_of
from peftport.methods.lora import LoraConfig
from peftport.porting.carriers.base import Carrier, carrier_of
from peftport.porting.plan import PortPlan
from peftport.porting.rank import to_rank
from peftport.porting.spaces import Correspondence
from peftport.porting.strategies.base import Job, strategies
from peftport.porting.weights import HostFiles


def apply_port(
    plan: PortPlan,
    module: Module,
    *,
    source: Host | None = None,
    target: Host | None = None,
    texts: Sequence[str] | None = None,
    task: Task | None = None,
    batch_size: int = 32,
    hosts: Correspondence | None = None,
    source_folder: Path | None = None,
    target_folder: Path | None = None,
) -> Module:
    """The module on the target host, as planned. Deterministic; ``module`` stays as it is.

    Args:
        plan: from :func:`plan_port`, for this module or another of its config.
        module: what is ported.
        source, target: loaded hosts with nothing attached; needed where ``plan.needs_texts``.
        texts: unlabelled texts, likewise. Labels are never looked at.
        task: how a text is rendered and cut.
        batch_size: texts a forward pass.
        hosts: instead of the four above: activations that serve several modules on this pair.
        source_folder, target_folder: where the hosts lie, needed where ``plan.needs_weights`` and
            no loaded host says it (``locate_host(ref).path``). No model is built from them.

    Returns:
        A module with the target's fingerprint. ``notes["ported"]`` says where it comes from, how
        it was made, and the size of every site before and after; with texts also the root mean
        square of each site's effect relative to what it is added to.

    Raises:
        InputError: texts, hosts or folders are missing, or are not the plan's.
        RunError: the result is not finite.
    """
    if hosts is None and texts is not None and source is not None and target is not None:
        hosts = Correspondence(source, target, texts, task or Task(), batch_size)
    if hosts is not None:
        source, target = hosts.source, hosts.target
    _check(plan, module, source, target, hosts)
    config, state = method_of(module.config).finish(plan.source, module.config, module.state)
    if config != plan.config:
        raise InputError(
            f"the plan is for {plan.config.to_json()}, the module is {config.to_json()}; "
            "make a plan for it"
        )
    carrier = carrier_of(config.method)
    files = _files(plan, (source, source_folder), (target, target_folder))
    seen = hosts if plan.needs_texts else None
    first = Job(plan.carried or plan, module, state, carrier, seen, files, plan.options)
    carried = strategies.get(plan.strategy)().carry(first)
    job = replace(first, plan=plan)
    if plan.carried is not None:
        assert isinstance(plan.target_config, LoraConfig)
        carried.state, facts = to_rank(carried.state, plan.target, plan.target_config)
        carried.facts["rank"] = facts
    effects = _effects(job, carried.state)
    if plan.norm_match:
        carried.state = _norm_matched(carrier, carried.state, effects)
        effects = _effects(job, carried.state)
    for name, tensors in {**carried.state, "head": carried.head}.items():
        for key, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise RunError(f"the ported tensor '{name}/{key}' is not finite")
    notes: dict[str, Any] = {
        "source": {"host": module.host, "fingerprint": module.fingerprint, "module": module.digest},
        "strategy": plan.strategy,
        "layers": plan.layers,
        "layer_map": {stack: list(chosen) for stack, chosen in plan.layer_map.items()},
        "norm_match": plan.norm_match,
        "texts": len(seen.texts) if seen is not None else 0,
        "head": plan.head,
        "norms": _norms(job, carried.state, effects),
        **({"options": dict(plan.options)} if plan.options else {}),
        **(seen.facts() if seen is not None else {}),
        **carried.facts,
    }
    return replace(
        module,
        config=plan.target_config,
        state=carried.state,
        head=carried.head,
        fingerprint=plan.target.fingerprint,
        host=target.ref if target is not None else "",
        notes={**module.notes, "ported": notes},
    )


def _check(
    plan: PortPlan,
    module: Module,
    source: Host | None,
    target: Host | None,
    hosts: Correspondence | None,
) -> None:
    if plan.needs_texts and hosts is None:
        fits = strategies.get(plan.strategy).needs_texts
        what = f"strategy '{plan.strategy}' fits its maps" if fits else "norm match measures"
        raise InputError(
            f"{what} on unlabelled texts with both hosts loaded, and one of these is missing; "
            "give a few hundred texts with --texts"
        )
    given: list[tuple[str, HostSpec, str]] = []
    if module.fingerprint:
        given.append(("source", plan.source, module.fingerprint))
    if source is not None:
        given.append(("source", plan.source, source.spec.fingerprint))
    if target is not None:
        given.append(("target", plan.target, target.spec.fingerprint))
    for role, spec, fingerprint in given:
        if spec.fingerprint != fingerprint:
            raise HostMismatch(
                f"the plan's {role} host is {spec.fingerprint[:12]}, the one given is "
                f"{fingerprint[:12]}; make a plan for these hosts"
            )


def _files(
    plan: PortPlan, source: tuple[Host | None, Path | None], target: tuple[Host | None, Path | None]
) -> tuple[HostFiles, HostFiles] | None:
    """Both hosts' folders, where they are known. Raises InputError where needed ones are not."""
    made: list[HostFiles] = []
    for spec, role, (host, folder) in (
        (plan.source, "source", source),
        (plan.target, "target", target),
    ):
        if host is not None:
            made.append(HostFiles(spec, host.path, known=True))
        elif folder is not None:
            made.append(HostFiles(spec, folder))
        elif plan.needs_weights:
            raise InputError(
                f"strategy '{plan.strategy}' reads both hosts' weights, and the {role}'s folder is "
                f"missing; give {role}_folder, or a loaded host"
            )
    return (made[0], made[1]) if len(made) == 2 else None


def _effects(job: Job, state: State) -> dict[str, dict[str, tuple[float, float]]]:
    """Relative size of what each site adds, by part: (source, ported). Empty without texts."""
    if job.hosts is None:
        return {}
    links, plan = job.links, job.plan
    job.hosts.collect([pair for _, uses in links for pair in uses.values()])
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for link, uses in links:
        paired = {use: job.hosts.paired(pair) for use, pair in uses.items()}
        ours = {use: p.sample_source for use, p in paired.items()}
        theirs = {use: p.sample_target for use, p in paired.items()}
        before = job.carrier.effects(plan.config, job.state, link.source.name, ours)
        after = job.carrier.effects(plan.target_config, state, link.target.name, theirs)
        found[link.target.name] = {part: (before[part], after[part]) for part in before}
    return found


def _norm_matched(
    carrier: Carrier, state: State, effects: dict[str, dict[str, tuple[float, float]]]
) -> State:
    """Each part scaled by source / ported; a part without effect stays as it is."""
    made = dict(state)
    for site, parts in effects.items():
        factors = {
            part: before / after if before > 0 and after > 0 else 1.0
            for part, (before, after) in parts.items()
        }
        made[site] = carrier.scaled(state[site], factors)
    return made


def _norms(
    job: Job, state: State, effects: dict[str, dict[str, tuple[float, float]]]
) -> dict[str, dict[str, Any]]:
    """By target site: norm of the parameters' action on the source and on the target, and the
    relative effects where they were measured."""
    plan, found = job.plan, {}
    for move in plan.moves:
        row: dict[str, Any] = {
            "source": job.carrier.size(plan.config, job.state, move.source),
            "ported": job.carrier.size(plan.target_config, state, move.target),
        }
        if move.target in effects:
            parts = effects[move.target]
            row["effect_source"] = {part: before for part, (before, _) in parts.items()}
            row["effect_ported"] = {part: after for part, (_, after) in parts.items()}
        found[move.target] = row
    return found
