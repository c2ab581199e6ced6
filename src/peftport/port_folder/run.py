"""Carry a prepared port out and write the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftport.formats import library_for, save_module
from peftport.hosts.load import Host, check_length, load_host
from peftport.methods.base import Module
from peftport.port_folder.card import Worth, port_card
from peftport.port_folder.hosts import Named
from peftport.port_folder.prepare import AUTO, Prepared, prepare
from peftport.port_folder.texts import COLUMN, COUNT, read_texts, unlike
from peftport.porting import Correspondence, PortPlan, apply_port, cka_layers, strategies

Progress = Callable[[int, int], None]

#: notes that hold for the module on any host; the others are about its source
_TRAVEL = ("task", "head", "classes")


@dataclass(frozen=True)
class Ported:
    """What :func:`port` made.

    Attributes:
        module: the module on the target host.
        folder: where it was written.
        prepared: source, target, task and why this strategy.
        plan: what went where.
        library: whose format the folder is in.
        remark: why it is not in the source's format; empty where it is.
    """

    module: Module
    folder: Path
    prepared: Prepared
    plan: PortPlan
    library: str
    remark: str

    @property
    def facts(self) -> Mapping[str, Any]:
        """How it was made and what was measured, as in ``peftport.json``."""
        facts: Mapping[str, Any] = self.module.notes["ported"]
        return facts

    @property
    def growth(self) -> float | None:
        """How many times larger the effect of the site that grew most is, relative to what it is
        added to, than on the source; None where no effect was measured."""
        ratios = [
            row["effect_ported"][part] / before
            for row in self.facts["norms"].values()
            for part, before in row.get("effect_source", {}).items()
            if before > 0
        ]
        return max(ratios, default=None)

    @property
    def may_match(self) -> bool:
        """Whether a norm match could still be asked for."""
        return not self.plan.norm_match and not strategies.get(self.plan.strategy).fits_effect

    def to_json(self) -> dict[str, Any]:
        return {
            **self.prepared.to_json(),
            "plan": self.plan.to_json(),
            "folder": str(self.folder),
            "written_as": self.library,
            "remark": self.remark,
            "ported": dict(self.facts),
        }


def port(
    adapter: str | Path,
    target: str,
    output: str | Path,
    *,
    source: str | None = None,
    strategy: str = AUTO,
    texts: str | Sequence[str] | None = None,
    text_column: str = COLUMN,
    text_count: int = COUNT,
    layers: str = "depth",
    rank: int | None = None,
    norm_match: bool = False,
    options: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Ported:
    """Port an adapter's folder to another host and write the result as a folder.

    Args:
        adapter: folder of PEFT, AdapterHub or peftport, or a Hub id with revision.
        target: host by packaged name, folder, or Hub id with revision.
        output: a new folder.
        source: the adapter's own host; None: what its folder says.
        strategy: a registered name, or ``auto``.
        texts: unlabelled texts, or where they are: a file with one text a line, a table, a
            dataset. Labels are never looked at.
        text_column: column of the texts in a table.
        text_count: how many different texts are used at most, the first ones.
        layers: how layers correspond: by relative ``depth``, or by ``cka`` on the texts.
        rank: inner size of the result; None: the source's.
        norm_match: scale each site's effect to the relative size that it has in the source.
        options: of the strategy, where they are not to be its own.
        task: template, verbalisers, max_tokens where the adapter does not record them.
        base_model: how the folder names its host; None: ``target`` without its revision.
        overwrite: replace a folder that peftport wrote.
        progress: called with (texts done, texts).

    Returns:
        :class:`Ported`. The result is deterministic.

    Raises:
        InputError: anything given that cannot be used; nothing is written then.
        HostMismatch: the adapter was not trained on ``source``.
        RunError: the result is not finite.
    """
    prepared = prepare(
        adapter,
        target,
        output,
        source=source,
        strategy=strategy,
        texts=texts,
        layers=layers,
        rank=rank,
        norm_match=norm_match,
        options=options,
        overwrite=overwrite,
        task=task,
    )
    found = wanted_texts(prepared, texts, column=text_column, count=text_count)
    return carry_out(prepared, found, base_model=base_model, overwrite=overwrite, progress=progress)


def wanted_texts(
    prepared: Prepared,
    texts: str | Sequence[str] | None,
    *,
    column: str = COLUMN,
    count: int = COUNT,
) -> list[str]:
    """The texts that a port needs: read, or told apart; none where it needs none."""
    if not prepared.needs_texts or texts is None:
        return []
    if isinstance(texts, str):
        return read_texts(texts, column=column, count=count)
    return unlike(texts, count, "texts")


def carry_out(
    prepared: Prepared,
    texts: Sequence[str] = (),
    *,
    base_model: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Ported:
    """Port and write what was prepared with an output; as :func:`port`."""
    assert prepared.output is not None, "prepare it with an output"
    hosts = both_hosts(prepared, texts, progress) if prepared.needs_texts else None
    made, plan = carried(prepared, hosts)
    return write(
        prepared,
        plan,
        with_notes(prepared, made),
        prepared.output,
        base_model=base_model,
        overwrite=overwrite,
    )


def with_notes(prepared: Prepared, made: Module) -> Module:
    """The ported module named after its new host, with notes that say where it comes from."""
    notes = {name: value for name, value in made.notes.items() if name in _TRAVEL}
    notes["source_notes"] = {
        name: value for name, value in prepared.module.notes.items() if name not in _TRAVEL
    }
    notes["ported"] = {
        **made.notes["ported"],
        "why": prepared.why,
        "target": {
            "host": prepared.target.name,
            "revision": prepared.target.revision,
            "fingerprint": prepared.target.spec.fingerprint,
        },
    }
    return replace(made, host=prepared.target.name, notes=notes)


def write(
    prepared: Prepared,
    plan: PortPlan,
    made: Module,
    output: Path,
    *,
    base_model: str | None = None,
    overwrite: bool = False,
    worth: Worth | None = None,
) -> Ported:
    """Write a ported module as a folder of its library, with a card.

    Args:
        prepared, plan: the port.
        made: from :func:`with_notes`; it may have been trained since.
        output: the folder.
        base_model, overwrite: as :func:`port`.
        worth: what was measured with labels, for the card.
    """
    library, reasons = library_for(made, prepared.target.spec)
    remark = ""
    if library != prepared.library:
        because = "; ".join(reasons) or f"{library} runs it"
        remark = f"written as a {library} folder, not as {prepared.library}: {because}"
    name = base_model or prepared.target.library_name
    card = port_card(prepared, plan, made, library, remark, name, worth)
    save_module(
        made,
        output,
        spec=prepared.target.spec,
        base_model=name,
        overwrite=overwrite,
        extra={"README.md": card},
    )
    return Ported(made, output, prepared, plan, library, remark)


def carried(prepared: Prepared, hosts: Correspondence | None) -> tuple[Module, PortPlan]:
    """The module on the target, in memory, and the plan that was followed.

    Args:
        prepared: with or without an output.
        hosts: :func:`both_hosts`; needed where ``prepared.needs_texts``.

    Raises:
        RunError: the result is not finite.
    """
    plan = prepared.plan
    if prepared.layers == "cka":
        assert hosts is not None
        plan = prepared.plan_with(cka_layers(hosts))
    given: dict[str, Any] = {"hosts": hosts} if plan.needs_texts else {}
    if plan.needs_weights:
        given["source_folder"] = prepared.source.folder
        given["target_folder"] = prepared.target.folder
    return apply_port(plan, prepared.module, **given), plan


def both_hosts(
    prepared: Prepared, texts: Sequence[str], progress: Progress | None = None
) -> Correspondence:
    """Both hosts loaded, with their activations on the texts to come."""
    source, target = (_load(prepared, host) for host in (prepared.source, prepared.target))
    return Correspondence(source, target, texts, prepared.task, progress=progress)


def _load(prepared: Prepared, named: Named) -> Host:
    module, task = prepared.module, prepared.task
    words = None
    if not module.head:  # an encoder without a head to port needs no pooler either
        labels, head = 2, "mean"
        words = task.verbalisers
    else:
        labels = min(t.shape[0] for t in module.head.values())
        head = module.notes.get("head") or "pooler"
    host = load_host(str(named.folder), labels=labels, head=head, verbalisers=words)
    check_length(named.name, host.longest, task.max_tokens, module.config.shift)
    return host
