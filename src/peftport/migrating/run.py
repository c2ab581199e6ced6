"""A folder of adapters to a new host: port, assess, repair, write what is worth it, say why."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from peftport.assessing.bench import Bench, Controls, Measured
from peftport.assessing.run import PORT_TEXTS, target_host, with_head
from peftport.assessing.settings import Settings
from peftport.assessing.verdict import Judgement, judge
from peftport.data.columns import Columns
from peftport.errors import InputError
from peftport.hosts.packed.kernels import kernel, use_kernel
from peftport.methods.base import Module
from peftport.migrating.find import find_adapters
from peftport.migrating.jobs import Job, Request, plan_jobs, units
from peftport.migrating.store import Done, Store
from peftport.migrating.table import read_assigned
from peftport.migrating.triage import KEEP, REFUSED, REPAIRED, RETRAIN, Line, worth, write_triage
from peftport.port_folder import both_hosts, carried, with_notes, write
from peftport.port_folder.hosts import find
from peftport.port_folder.prepare import AUTO
from peftport.porting import Correspondence, PortPlan
from peftport.study.progress import Progress
from peftport.study.runner import Recent

ADAPTERS, STORE = "adapters", "store"


@dataclass(frozen=True)
class Migration:
    """What a migration came to: a line for every adapter, and where everything lies."""

    lines: tuple[Line, ...]
    folder: Path

    def count(self, triage: str) -> int:
        return sum(line.triage == triage for line in self.lines)


def migrate(
    folder: str | Path,
    target: str,
    data: str,
    output: str | Path,
    *,
    source: str | None = None,
    strategy: str = AUTO,
    repair: int = 0,
    columns: Columns | None = None,
    language_model: bool = False,
    settings: Settings | None = None,
    limit: int | None = None,
    quiet: bool = True,
) -> Migration:
    """Port and assess every adapter below a folder, and write those that pass.

    The same call goes on where a killed one stopped. An adapter that fails stops no other.

    Args:
        folder: where the adapters lie; PEFT's, AdapterHub's and peftport's, mixed.
        target: host by packaged name, folder, or Hub id with revision.
        data: one dataset for all, or a table (csv with a column ``adapter``, YAML) with adapter,
            dataset, labels and task.
        output: folder of the results: ``triage.csv``, ``triage.html``, ``adapters/``, ``store/``.
        source: the adapters' own host; None: what each folder says.
        strategy: a registered name, or ``auto``.
        repair: steps of training that an adapter may take to pass; 0: none.
        columns: which column is what, where ``data`` is one dataset.
        language_model: the data has no labels; measure the loss of held-out text.
        settings: as for ``assess``; its ``thresholds.accept`` decides what is written.
        limit: do at most so many adapters now, rounded up to whole units.
        quiet: print no progress.

    Raises:
        InputError: the folder, target, table or output cannot be used.
    """
    wanted = settings or Settings(budgets=(0, 10, 30), seeds=3)
    if repair < 0:
        raise InputError(f"--repair must be >= 0 steps, got {repair}")
    wanted = replace(wanted, budgets=(*wanted.budgets, repair))
    if not wanted.native_steps:
        raise InputError("a migration accepts by recovery, which needs native modules; train some")
    place = Path(output).absolute()
    _check_output(place)
    adapters = find_adapters(Path(folder).expanduser(), place)
    there = find(target)
    request = Request(target, source, strategy, language_model, wanted)
    jobs, refused = plan_jobs(adapters, read_assigned(data, columns), request)
    plan = {
        "adapters": {job.name: job.to_json() for job in jobs},
        "refused adapters": sorted(refused),
        "target": there.spec.fingerprint,
        "settings": wanted.to_json(),
        "repair": repair,
    }
    machine = {"kernel": kernel(), "threads": torch.get_num_threads()}
    with Store.write(place / STORE, plan, machine) as store:
        use_kernel(store.machine["kernel"])
        torch.set_num_threads(store.machine["threads"])
        worker = _Worker(store, wanted, repair, place / ADAPTERS)
        worker.do(units(jobs, wanted), limit, quiet)
        found = store.outcomes()
    lines = [Line(**found[job.name]) for job in jobs if job.name in found]
    lines += [Line.refused(name, why) for name, why in refused.items()]
    result = Migration(tuple(sorted(lines, key=lambda line: line.adapter)), place)
    write_triage(result.lines, place, there.name, wanted.thresholds)
    return result


def _check_output(place: Path) -> None:
    """Raises InputError where a folder is in use for something else."""
    if place.exists() and (
        not place.is_dir() or (any(place.iterdir()) and not (place / STORE).is_dir())
    ):
        raise InputError(f"'{place}' is in use and is no migration's; give a new folder to -o")


class _Worker:
    """Does units; keeps hosts, texts and controls between them."""

    def __init__(self, store: Store, settings: Settings, repair: int, output: Path) -> None:
        self._store, self._settings = store, settings
        self._repair, self._output = repair, output
        self._pairs = Recent(1)
        self._benches = Recent(1)

    def do(self, todo: Sequence[list[Job]], limit: int | None, quiet: bool) -> None:
        """All units in which an adapter is missing."""
        done = self._store.outcomes()
        missing = [unit for unit in todo if any(job.name not in done for job in unit)]
        left = sum(map(len, todo)) if limit is None else limit
        with Progress(sum(map(len, missing)), len(missing), quiet=quiet) as progress:
            for unit in missing:
                if left <= 0:
                    return
                left -= len(unit)
                found = self._unit(unit)
                bad = sum(one.outcome["triage"] == REFUSED for one in found.values())
                progress.step(len(unit), f"{unit[0].name} and {len(unit) - 1} more", bad)

    def _unit(self, unit: list[Job]) -> dict[str, Done]:
        """Do and store one unit; its folders are written before its rows."""
        form = unit[0].form
        earlier = self._store.controls(form)
        controls, done = self._assessed(unit, earlier)
        self._store.commit(form, controls if earlier is None else None, done)
        return done

    def _assessed(
        self, unit: Sequence[Job], controls: Controls | None
    ) -> tuple[Controls | None, dict[str, Done]]:
        """Results of a unit. Where one adapter spoils it, each is done alone."""
        done: dict[str, Done] = {}
        ported: dict[str, tuple[Module, PortPlan]] = {}
        for job in unit:
            try:
                ported[job.name] = self._port(job)
            except Exception as error:
                done[job.name] = _failed(job, error)
        own = [job for job in unit if job.name in ported]
        if not own:
            return controls, done
        try:
            bench = self._bench(own[0])
            keep = (self._repair,) if self._repair else ()
            modules = {job.name: ported[job.name][0] for job in own}
            controls, measured = bench.run(modules, controls, keep)
            for job in own:
                one = measured[job.name]
                judged = judge(bench.curves(controls, one), self._settings.thresholds)
                done[job.name] = self._written(job, ported[job.name], bench, one, judged)
        except Exception as error:
            if len(own) == 1:
                return controls, {**done, own[0].name: _failed(own[0], error)}
            for job in own:
                controls, alone = self._assessed([job], controls)
                done |= alone
        return controls, done

    def _port(self, job: Job) -> tuple[Module, PortPlan]:
        prepared = job.prepared
        hosts = self._hosts(job) if prepared.needs_texts else None
        made, plan = carried(prepared, hosts)
        return with_head(with_notes(prepared, made), self._bench(job).host), plan

    def _hosts(self, job: Job) -> Correspondence:
        """Both hosts on the training texts; made once for all adapters of a pair and task."""
        prepared, head = job.prepared, job.prepared.module.head
        key = (
            prepared.source.spec.fingerprint,
            job.data.train.digest,
            str(prepared.task.to_json()),
            min((t.shape[0] for t in head.values()), default=0),
            prepared.module.notes.get("head"),
        )
        texts = job.data.train.texts[:PORT_TEXTS]
        return self._pairs.get(key, lambda: both_hosts(prepared, texts))

    def _bench(self, job: Job) -> Bench:
        return self._benches.get(
            job.form,
            lambda: Bench(
                target_host(job.prepared, job.data), job.data, job.prepared.task, self._settings
            ),
        )

    def _written(
        self,
        job: Job,
        ported: tuple[Module, PortPlan],
        bench: Bench,
        measured: Measured,
        judged: Judgement,
    ) -> Done:
        """Decide, and write what passes."""
        module, plan = ported
        triage, steps, seed = RETRAIN, 0, 0
        if judged.accepted(0):
            triage = KEEP
        elif self._repair and judged.accepted(self._repair) and self._repair in measured.best:
            triage, steps = REPAIRED, self._repair
            seed, module = measured.best[steps]
        line = Line.assessed(job.name, job.prepared, plan, triage, steps, judged)
        if triage != RETRAIN:
            own = measured.ported[steps][seed : seed + 1]
            shown = worth(job.data, judged, plan, steps, own, self._settings)
            where = self._output / job.name
            write(job.prepared, plan, module, where, overwrite=True, worth=shown)
            line = replace(line, folder=f"{self._output.name}/{job.name}")
        arrays = {f"ported_{b}": x for b, x in measured.ported.items()}
        arrays |= {f"sampled_{b}": x for b, x in measured.sampled.items()}
        return Done(line.to_json(), arrays)


def _failed(job: Job, error: Exception) -> Done:
    why = " ".join(str(error).split()) or type(error).__name__
    trace = "".join(traceback.format_exception(error))
    return Done(Line.refused(job.name, why).to_json(), traceback=trace)
