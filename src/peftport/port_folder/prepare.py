"""Everything about a port that is decided before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftport.data.tasks import Task
from peftport.errors import InputError, UnknownName
from peftport.formats import FILES, load_module, recorded
from peftport.formats.files import check_place
from peftport.methods.base import Module
from peftport.port_folder.hosts import Named, find, find_source
from peftport.port_folder.texts import check_texts
from peftport.porting import PortPlan, plan_port
from peftport.porting.strategies.base import strategies
from peftport.refs import Ref, resolve

AUTO = "auto"
LAYERS = ("depth", "cka")


@dataclass(frozen=True)
class Prepared:
    """A port that is known to be possible.

    Attributes:
        adapter: how it was asked for.
        library: whose format it is in.
        module: what is in it.
        source, target: its host, and the one it goes to.
        plan: what goes where. With ``layers`` = ``cka`` its layer map is replaced when the port
            runs, since that is measured on the texts.
        why: why this strategy.
        layers: ``depth`` or ``cka``.
        rank: inner size that was asked for; None: the source's.
        task: how a text is put to the hosts.
        output: the folder to be written, absolute; None: nowhere yet.
    """

    adapter: str
    library: str
    module: Module
    source: Named
    target: Named
    plan: PortPlan
    why: str
    layers: str
    rank: int | None
    task: Task
    output: Path | None

    @property
    def needs_texts(self) -> bool:
        return self.plan.needs_texts or self.layers == "cka"

    def plan_with(self, layer_map: Mapping[str, tuple[int, ...]]) -> PortPlan:
        """The same plan with layers that were measured."""
        return plan_port(
            self.source.spec,
            self.target.spec,
            self.module,
            strategy=self.plan.strategy,
            layers="cka",
            norm_match=self.plan.norm_match,
            have_texts=True,
            layer_map=layer_map,
            rank=self.rank,
            options=self.plan.options,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter,
            "format": self.library,
            "source": _host(self.source),
            "target": _host(self.target),
            "strategy": self.plan.strategy,
            "why": self.why,
            "layers": self.layers,
            "task": self.task.to_json(),
            "plan": self.plan.to_json(),
        }


def _host(host: Named) -> dict[str, Any]:
    return {
        "name": host.name,
        "revision": host.revision,
        "fingerprint": host.spec.fingerprint,
    }


def prepare(
    adapter: str | Path,
    target: str,
    output: str | Path | None = None,
    *,
    source: str | None = None,
    strategy: str = AUTO,
    texts: str | Sequence[str] | None = None,
    layers: str = "depth",
    rank: int | None = None,
    norm_match: bool = False,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    task: Mapping[str, Any] | None = None,
) -> Prepared:
    """Find both hosts, read the adapter, choose a strategy and plan. Nothing is computed, no text
    is read and nothing is written; the arguments are those of :func:`peftport.port`.

    Raises:
        InputError: anything that would keep the port from being done.
        HostMismatch: the adapter was not trained on ``source``.
    """
    if strategy != AUTO and strategy not in strategies:
        raise UnknownName("strategy", strategy, [AUTO, *strategies.names()])
    if layers not in LAYERS:
        raise UnknownName("layer rule", layers, LAYERS)
    if rank is not None and rank < 1:
        raise InputError(f"--rank must be >= 1, got {rank}")
    if isinstance(texts, str):
        check_texts(texts)
    if layers == "cka" and texts is None:
        raise InputError(
            "--layers cka compares both hosts' layers on unlabelled texts, got none; give a few "
            "hundred with --texts, or use --layers depth"
        )
    folder = resolve(Ref.parse(str(adapter)), allow=FILES).path
    place = None if output is None else _place(Path(output), folder, overwrite)
    known = recorded(folder)
    ours = find_source(source, known, str(adapter))
    module = load_module(folder, spec=ours.spec)
    module = replace(
        module, host=known.host or ours.name, fingerprint=known.fingerprint or ours.spec.fingerprint
    )
    facts = {**module.notes.get("task", {}), **(task or {})}
    asked = Task.from_json(facts)
    theirs = find(target)
    have_texts = texts is not None
    why = "asked for"
    if strategy == AUTO:
        from peftport.porting.auto import choose

        choice = choose(ours.spec, theirs.spec, module, have_texts=have_texts)
        strategy, why = choice.strategy, choice.why
    plan = plan_port(
        ours.spec,
        theirs.spec,
        module,
        strategy=strategy,
        norm_match=norm_match,
        have_texts=have_texts,
        rank=rank,
        options=options,
    )
    return Prepared(
        str(adapter), known.library, module, ours, theirs, plan, why, layers, rank, asked, place
    )


def _place(output: Path, adapter: Path, overwrite: bool) -> Path:
    """Raises InputError unless a new folder can be made there; the adapter itself is never one."""
    place = Path(os.path.abspath(output.expanduser()))
    real, own = place.resolve(), adapter.resolve()
    if real == own or own in real.parents or real in own.parents:
        raise InputError(
            f"'{output}' is, holds or lies inside the adapter's own folder; "
            "give another output folder"
        )
    check_place(place, overwrite)
    parent = next(p for p in place.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"'{output}' cannot be written; give a folder you may write to")
    return place
