"""Runs a study: what is missing, in order, one transaction a unit."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from peftport.errors import InputError
from peftport.formats import save_module
from peftport.hosts.load import inspect_host
from peftport.methods.attach import check_host
from peftport.methods.base import Module
from peftport.study.chosen import Trial, choose
from peftport.study.estimate import cost_s
from peftport.study.executors.base import Executor, Job, executors
from peftport.study.grid import Study
from peftport.study.materials import Materials, gather, located
from peftport.study.modules import from_bytes
from peftport.study.plan import NUMERICS, Plan, Training, make_plan
from peftport.study.planned import Outcome, Planned
from peftport.study.progress import Progress
from peftport.study.rates import Search
from peftport.study.runner import Runner
from peftport.study.store import Store
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
        """Rough seconds on two cores for all units."""
        return sum(cost_s(self.materials, t) for t in self.plan.trainings.values())


@dataclass
class Options:
    """How to run, which never moves a number."""

    executor: str = "local"
    limit: int | None = None
    retry_failed: bool = False
    quiet: bool = False


def prepare(study: Study) -> Prepared:
    """Find and check everything; computes nothing. Raises InputError."""
    materials = gather(study)
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
        InputError: the store cannot be used; RunError: it is full.
    """
    make_executor = executors.get(options.executor)
    with Store.write(folder, prepared.planned) as store:
        threads = int(store.environment["threads"])
        executor = make_executor(lambda: Runner(prepared.materials, threads))
        todo = _todo(store, prepared.plan, options.retry_failed)[: options.limit]
        costs = {key: cost_s(prepared.materials, prepared.plan.trainings[key]) for key in todo}
        with Progress(sum(costs.values()), len(todo), quiet=options.quiet) as progress:
            for wave in prepared.plan.waves:
                keys = [key for key in wave if key in costs]
                for outcome in _outcomes(store, prepared.plan, executor, keys):
                    store.commit(outcome)
                    training = prepared.plan.trainings[outcome.key]
                    progress.step(costs[outcome.key], _name(training), outcome.error is not None)
        return store.status()


def _todo(store: Store, plan: Plan, retry_failed: bool) -> list[str]:
    states = store.states()
    keep = {"done"} if retry_failed else {"done", "failed"}
    return [key for wave in plan.waves for key in wave if states.get(key) not in keep]


def _outcomes(store: Store, plan: Plan, executor: Executor, keys: list[str]) -> Iterator[Outcome]:
    ready: list[tuple[str, str | None]] = []
    for key in keys:
        sources = plan.trainings[key].sources
        best = best_source(store, plan, key) if sources else None
        if sources and best is None:
            yield Outcome(key, 0.0, error="its source module failed", traceback="")
        else:
            ready.append((key, best))
    yield from executor.run(
        Job(key, plan.trainings[key], None if best is None else store.module(best))
        for key, best in ready
    )


def best_source(store: Store, plan: Plan, key: str) -> str | None:
    """Key of the module that a training carries over: the only one, or the best candidate of a
    search; None where all failed."""
    keys = {training: name for name, training in plan.trainings.items()}
    states, labels = store.states(), store.labels()
    done = {s: keys[s] for s in plan.trainings[key].sources if states.get(keys[s]) == "done"}
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
    prepared = prepare(store.study)
    if key not in prepared.plan.trainings:
        raise InputError(
            f"run {key} cannot be made again: hosts, data or peftport are not what they were"
        )
    best = best_source(store, prepared.plan, key)
    source = None if best is None else store.module(best)
    runner = Runner(prepared.materials, int(store.environment["threads"]))
    for at, made in runner.modules(Job(key, prepared.plan.trainings[key], source)):
        if at == budget and made is not None:
            if made.digest != kept:
                raise InputError(
                    f"run {key} gives another module at budget {budget} than the one that was "
                    "measured; make it on the machine and with the versions of the store"
                )
            return made
    raise InputError(f"run {key} has no budget {budget}")


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


def _name(t: Training) -> str:
    way = f"{t.source_host} → {t.host}" if t.sources else t.host
    return " ".join(filter(None, [t.method, t.init, way, f"seed {t.seed}"]))


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
