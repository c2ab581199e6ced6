"""Runs a study: what is missing, in order, one transaction a bank."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from peftport.errors import InputError
from peftport.formats import save_module
from peftport.hosts.load import inspect_host
from peftport.methods.attach import check_host
from peftport.methods.base import Module
from peftport.study.banks import Keys, compose
from peftport.study.checkpoints import CHECKPOINT_S, Checkpoints
from peftport.study.chosen import Trial, choose
from peftport.study.estimate import cost_s
from peftport.study.executors.base import BankJob, Executor, Job, Place, executors
from peftport.study.grid import Study
from peftport.study.materials import Materials, gather, located
from peftport.study.modules import from_bytes
from peftport.study.plan import NUMERICS, Plan, make_plan
from peftport.study.planned import Outcome, Planned
from peftport.study.progress import Progress
from peftport.study.rates import Search
from peftport.study.runner import Runner
from peftport.study.sizing import Wish, decide, recorded_device, recorded_kernel
from peftport.study.store import Store
from peftport.study.verify import COPY, verify
from peftport.train.metrics import metrics

_PACKAGES = ("peftport", "torch", "transformers", "tokenizers", "numpy", "safetensors")


@dataclass(frozen=True)
class Prepared:
    """A study that can run: materials, plan, and what its store is told."""

    materials: Materials
    plan: Plan
    planned: Planned

    @property
    def estimate_s(self) -> float:
        """Rough seconds on two cores for all trainings."""
        return sum(cost_s(self.materials, t) for t in self.plan.trainings.values())


@dataclass
class Options:
    """How to run, which never moves a number beyond rounding.

    Attributes:
        executor: where banks are done.
        address: of a cluster, for an executor that works on one.
        checkpoint_s: seconds of work on a bank after which its next budget is a checkpoint.
        limit: do at most so many trainings, rounded up to whole banks.
        retry_failed: do failed trainings again.
        retry_damaged: read the store again, and do what is damaged again.
        quiet: print no progress.
        sizing: how large banks are; used when the store is made.
    """

    executor: str = "local"
    limit: int | None = None
    retry_failed: bool = False
    quiet: bool = False
    sizing: Wish = field(default_factory=Wish)
    retry_damaged: bool = False
    address: str | None = None
    checkpoint_s: float = CHECKPOINT_S


def prepare(study: Study, dtype: str = "float32") -> Prepared:
    """Find and check everything; computes nothing. Raises InputError.

    Args:
        study: the grid.
        dtype: of the hosts' weights while modules are trained on them.
    """
    materials = gather(study, dtype)
    plan = make_plan(materials)
    planned = Planned(
        study=study,
        rows=plan.rows,
        ingredients=plan.ingredients,
        facts=_facts(materials),
        sentences=tuple(zip(materials.measured.ids, materials.measured.labels, strict=True)),
        environment=_environment(),
        guard=materials.guard,
    )
    return Prepared(materials, plan, planned)


def run_study(prepared: Prepared, folder: Path, options: Options) -> dict[str, Any]:
    """Do what is missing, and return the store's status.

    Raises:
        InputError: the store cannot be used; RunError: it is full, or workers keep dying.
    """
    make_executor = executors.get(options.executor)
    materials, plan, planned = prepared.materials, prepared.plan, prepared.planned
    if not Store.is_there(folder):
        chosen = decide(materials, options.sizing)
        planned = replace(planned, environment={**planned.environment, **chosen})
    with Store.write(folder, planned) as store:
        options.sizing.check(store.environment)
        if options.retry_damaged:
            _put_back(store)
        threads, kernel = int(store.environment["threads"]), recorded_kernel(store)
        device, _ = recorded_device(store.environment)
        place = Place(options.address, threads, int(device == "cuda"))

        def make_worker() -> Runner:
            return Runner(materials, threads, kernel, device, options.checkpoint_s)

        todo = _todo(store, plan, options)
        banks = [keys for wave in todo for keys in wave]
        costs = {keys: sum(cost_s(materials, plan.trainings[k]) for k in keys) for keys in banks}
        with (
            make_executor(make_worker, place) as executor,
            Progress(sum(costs.values()), len(banks), quiet=options.quiet) as progress,
        ):
            for wave in todo:
                for keys, outcomes in _outcomes(store, plan, executor, wave):
                    store.commit(*_wanted(store, outcomes, options))
                    _note_split(store, outcomes)
                    failed = sum(outcome.error is not None for outcome in outcomes)
                    progress.step(costs[keys], _name(plan, keys), failed)
        status = store.status()
        if not status["missing"]:
            Checkpoints(folder).clear()
        return status


def _put_back(store: Store) -> None:
    """Results that are damaged are missing from now on. Raises InputError where that is not
    enough."""
    found = verify(store)
    if found.lasting:
        raise InputError(f"store '{store.folder}': {found.lasting[0]}; {COPY}")
    store.mark_damaged(found.trainings)


def _todo(store: Store, plan: Plan, options: Options) -> list[list[Keys]]:
    """Banks of each wave in which something is missing."""
    states = store.states()
    keep = _kept(options)
    left = math.inf if options.limit is None else options.limit
    todo: list[list[Keys]] = []
    for wave in compose(plan, int(store.environment["bank"])):
        todo.append([])
        for keys in wave:
            missing = sum(states.get(key) not in keep for key in keys)
            if missing and left > 0:
                todo[-1].append(keys)
                left -= missing
    return todo


def _kept(options: Options) -> set[str]:
    """States of what is not done again."""
    return {"done"} if options.retry_failed else {"done", "failed"}


def _wanted(store: Store, outcomes: list[Outcome], options: Options) -> list[Outcome]:
    """Only what is missing: a bank is done whole even where some of it is there already."""
    states, keep = store.states(), _kept(options)
    return [outcome for outcome in outcomes if states.get(outcome.key) not in keep]


def _note_split(store: Store, outcomes: list[Outcome]) -> None:
    keys = [outcome.key[:12] for outcome in outcomes if outcome.split]
    if keys:
        store.note(f"a bank did not fit and was done in parts; its trainings: {' '.join(keys)}")


def _outcomes(
    store: Store, plan: Plan, executor: Executor, banks: list[Keys]
) -> Iterator[tuple[Keys, list[Outcome]]]:
    """Each bank with its outcomes; what has no source module fails without being done."""
    checkpoints = Checkpoints(store.folder)
    lost: dict[str, list[Outcome]] = {}
    whole: dict[str, Keys] = {}
    barren: list[tuple[Keys, list[Outcome]]] = []

    def ready() -> Iterator[BankJob]:
        for keys in banks:
            bank = bank_job(store, plan, keys)
            there = {job.key for job in bank.jobs}
            gone = [
                Outcome(key, 0.0, error="its source module failed", traceback="")
                for key in keys
                if key not in there
            ]
            if there:
                whole[bank.id], lost[bank.id] = keys, gone
                yield replace(bank, checkpoint=checkpoints.get(bank.id))
            else:
                barren.append((keys, gone))

    def keep(bank: BankJob, content: bytes) -> None:
        checkpoints.keep(bank.id, content)

    for outcomes in executor.run(ready(), keep):
        bank = outcomes[0].key
        yield whole.pop(bank), [*outcomes, *lost.pop(bank)]
        checkpoints.drop(bank)  # its outcomes are stored
    yield from barren


def bank_job(store: Store, plan: Plan, keys: Keys) -> BankJob:
    """A bank with the modules that it carries over, without those jobs that lack one."""
    jobs: list[Job] = []
    sources: dict[str, bytes] = {}
    for key in keys:
        training = plan.trainings[key]
        if not training.sources:
            jobs.append(Job(key, training))
            continue
        best = best_source(store, plan, key)
        if best is not None:
            if best not in sources:
                sources[best] = store.module(best)
            jobs.append(Job(key, training, sources[best]))
    return BankJob(tuple(jobs))


def best_source(store: Store, plan: Plan, key: str) -> str | None:
    """Key of the module that a training carries over: the only one, or the best candidate of a
    search; None where all failed."""
    states, labels = store.states(), store.labels()
    named = {source: plan.keys[source] for source in plan.trainings[key].sources}
    done = {source: name for source, name in named.items() if states.get(name) == "done"}
    rates = store.study.rates
    if len(done) < 2 or not isinstance(rates, Search):
        return next(iter(done.values()), None)
    trials = []
    for source, name in done.items():
        scores = store.scores(name, source.steps)
        value = None if scores is None else metrics(scores, labels)[rates.metric]
        trials.append(Trial("", "", "", source.lr, source.head_lr, value))
    best = choose(trials)[("", "", "")]
    return next(n for s, n in done.items() if (s.lr, s.head_lr) == (best.lr, best.head_lr))


def recompute(store: Store, key: str, budget: int) -> Module:
    """The module of a training after ``budget`` steps, made again where only a later one is kept.

    Raises:
        InputError: no such budget, or hosts or data that are no longer what they were.
    """
    kept = store.module_digest(key, budget)
    if not kept:
        raise InputError(f"run {key} has no module at budget {budget}; it is not finished there")
    module = from_bytes(store.module(key))
    if module.digest == kept:
        return module
    device, dtype = recorded_device(store.environment)
    prepared = prepare(store.study, dtype)
    if key not in prepared.plan.trainings:
        raise InputError(
            f"run {key} cannot be made again: hosts, data or peftport are not what they were"
        )
    plan, environment = prepared.plan, store.environment
    threads, kernel = int(environment["threads"]), recorded_kernel(store)
    runner = Runner(prepared.materials, threads, kernel, device)
    banks = [keys for wave in compose(plan, int(environment["bank"])) for keys in wave]
    whole = next(keys for keys in banks if key in keys)
    # alone is cheap, and often bit for bit what it is in its bank
    for keys in dict.fromkeys([(key,), whole]):
        bank = bank_job(store, plan, keys)
        at = [job.key for job in bank.jobs].index(key)
        for steps, made in runner.modules(bank):
            found = made[at]
            if steps == budget and isinstance(found, Module) and found.digest == kept:
                return found
    raise InputError(
        f"run {key} gives another module at budget {budget} than the one that was "
        "measured; make it on the machine and with the versions of the store"
    )


def save(store: Store, key: str, budget: int, folder: Path) -> None:
    """Write a module of a study as a folder in its library's format, with what it is in its notes.

    Raises:
        InputError: it cannot be had (see :func:`recompute`), or its host is not what it was.
    """
    module, study = recompute(store, key, budget), store.study
    ref = located(study, module.host)
    spec = inspect_host(ref)
    check_host(module, spec, module.host)
    facts = store.ingredients(key)
    notes = {"head": study.head, "study": study.digest, "run": key, "budget": budget}
    notes = {**notes, "task": facts["task"], "answer": facts["answer"]}
    save_module(replace(module, notes={**module.notes, **notes}), folder, spec=spec, base_model=ref)


def _name(plan: Plan, keys: Keys) -> str:
    """What a bank is, for people."""
    t = plan.trainings[keys[0]]
    way = f"{t.source_host} → {t.host}" if t.sources else t.host
    more = f"and {len(keys) - 1} more" if len(keys) > 1 else ""
    return " ".join(filter(None, [t.method, t.init, way, f"seed {t.seed}", more]))


def _facts(materials: Materials) -> dict[str, Any]:
    hosts = {
        name: {
            "fingerprint": spec.fingerprint,
            "tokenizer": spec.tokenizer,
            "family": spec.family,
            "decides_by": "word" if name in materials.words else "class",
            "layers": dict(spec.layers),
            "d_model": spec.d_model,
            "shape": spec.shape_digest,
        }
        for name, spec in materials.specs.items()
    }
    data = {name: part.digest for name, part in materials.parts.items()}
    return {
        "hosts": hosts,
        "data": {**data, "measured": materials.measured.digest},
        "numerics": NUMERICS,
    }


def _environment() -> Mapping[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
