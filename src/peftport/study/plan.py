"""Runs to distinct trainings: what they need, in which order, and their keys.

Source modules are trained once and ported to every target; a scratch training is shared by all
sources; budgets are checkpoints of one trajectory. :mod:`peftport.study.banks` says which
trainings are done together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from peftport.methods.base import MethodConfig, Module, methods
from peftport.methods.lora import LoraConfig
from peftport.porting.plan import plan_port
from peftport.porting.strategies.base import strategies
from peftport.study.expand import Run, candidate_rates, expand, native_rates
from peftport.study.grid import Study
from peftport.study.materials import OTHER, SAME, TARGET, Materials
from peftport.study.rates import Search

#: raised when a change of the code moves numbers that the ingredients do not name
NUMERICS = 2
#: inits that begin with a module of the source host
CARRIED = ("ported", "sampled", "head-only", "body-only")
#: a fresh lora changes nothing, so a probe's head reads frozen features
PROBE = LoraConfig()


@dataclass(frozen=True)
class Training:
    """One trajectory: where it starts, what it reads, how long.

    Attributes:
        init: as in :class:`~peftport.study.expand.Run`.
        method: empty for the probe and for the host alone.
        host: where it is trained.
        part: which training sentences it reads.
        seed: fresh parameters and order of sentences.
        budgets: steps at which it is measured, ascending; the last one ends it.
        batch: sentences a step.
        lr, head_lr: learning rates; None where nothing of the kind is trained.
        sources: the module that is carried over; in a search all its candidates, of which the
            best on the validation sentences is taken.
    """

    init: str
    method: str
    host: str
    part: str
    seed: int
    budgets: tuple[int, ...]
    batch: int
    lr: float | None
    head_lr: float | None
    sources: tuple[Training, ...] = ()

    @property
    def steps(self) -> int:
        return self.budgets[-1]

    @property
    def source_host(self) -> str:
        return self.sources[0].host if self.sources else ""


@dataclass(frozen=True)
class Plan:
    """Rows, and the trainings that answer them in two waves: nothing in the second is needed by
    anything, and nothing in the first needs anything. In each wave the trainings of a host follow
    each other. ``configs`` are those of the modules they start with; None for the host alone."""

    rows: tuple[tuple[Run, str], ...]
    trainings: Mapping[str, Training]
    waves: tuple[tuple[str, ...], tuple[str, ...]]
    ingredients: Mapping[str, Mapping[str, Any]]
    configs: Mapping[str, MethodConfig | None]

    @cached_property
    def keys(self) -> dict[Training, str]:
        """Training to its key."""
        return {training: key for key, training in self.trainings.items()}


def make_plan(materials: Materials) -> Plan:
    """The plan of a study. Deterministic: it depends on the study and its materials alone."""
    carried = check_fit(materials)
    study, words = materials.study, materials.words
    pairs = [(run, training_of(study, run, words)) for run in expand(study, words)]
    distinct = dict.fromkeys(t for _, training in pairs for t in (*training.sources, training))
    facts = {training: ingredients(materials, training) for training in distinct}
    keys = {training: _digest(facts[training]) for training in distinct}
    needed = {source for training in distinct for source in training.sources}
    order = sorted(distinct, key=lambda t: _order(study, t))
    return Plan(
        rows=tuple((run, keys[training]) for run, training in pairs),
        trainings={keys[training]: training for training in order},
        waves=(
            tuple(keys[t] for t in order if t in needed),
            tuple(keys[t] for t in order if t not in needed),
        ),
        ingredients={keys[training]: facts[training] for training in order},
        configs={keys[training]: _config(materials, carried, training) for training in order},
    )


def training_of(study: Study, run: Run, words: frozenset[str]) -> Training:
    """The training that answers a run; runs that cannot differ get the same one."""
    if run.init in ("native", "host"):
        return Training(
            run.init, run.method, run.target, SAME if run.data == "same" else OTHER, run.seed,
            run.budgets, study.source.batch, run.lr, run.head_lr,
        )  # fmt: skip
    sources: tuple[Training, ...] = ()
    if run.init in CARRIED:
        rates = (
            candidate_rates(study.rates, "native", run.source in words)
            if isinstance(study.rates, Search)
            else [native_rates(study.rates, run.method, run.source, run.source in words)]
        )
        sources = tuple(
            Training(
                "native", run.method, run.source, SAME if run.data == "same" else OTHER,
                run.source_seed, (study.source.steps,), study.source.batch, lr, head_lr,
            )
            for lr, head_lr in rates
        )  # fmt: skip
    return Training(
        run.init, "" if run.init == "probe" else run.method, run.target, TARGET, run.seed,
        run.budgets, study.target.batch, run.lr, run.head_lr, sources,
    )  # fmt: skip


def strategy_of(materials: Materials, source: str, target: str) -> str:
    """Name of the strategy that the study uses from one host to another."""
    same = materials.specs[source].shape_digest == materials.specs[target].shape_digest
    strategy = materials.study.strategy
    return strategy.same_shape if same else strategy.otherwise


def check_fit(materials: Materials) -> dict[tuple[str, str, str], MethodConfig]:
    """What becomes of a method's config from a host to another, by (method, source, target).

    Raises:
        InputError: a method does not fit a host or cannot be ported between a pair.
    """
    study = materials.study
    for (method, host), config in materials.configs.items():
        methods.get(method)().sites(materials.specs[host], config)
    carried: dict[tuple[str, str, str], MethodConfig] = {}
    if not set(CARRIED) & {*study.inits, *study.extras.ablation_inits}:
        return carried
    for method in study.methods:
        for source, target in study.pairs:
            spec, config = materials.specs[source], materials.configs[(method, source)]
            state = methods.get(method)().init(spec, config, torch.Generator().manual_seed(0))
            carried[(method, source, target)] = plan_port(
                spec,
                materials.specs[target],
                Module(config, state, {}, spec.fingerprint, source),
                strategy=strategy_of(materials, source, target),
                layers=study.strategy.layers,
                norm_match=study.strategy.norm_match,
                have_texts=bool(materials.unlabelled),
            ).target_config
    return carried


def _config(
    materials: Materials, carried: Mapping[tuple[str, str, str], MethodConfig], t: Training
) -> MethodConfig | None:
    """The config of the module that a training starts with."""
    if t.init == "host":
        return None
    if t.init == "probe":
        return PROBE
    if t.sources:
        return carried[(t.method, t.source_host, t.host)]
    return materials.configs[(t.method, t.host)]


def ingredients(materials: Materials, training: Training) -> dict[str, Any]:
    """Everything that can move the numbers of a training, and nothing else: no names of studies
    or hosts, no paths, no times. Its digest is the training's key."""
    study, spec, task = materials.study, materials.specs[training.host], materials.task
    word = training.host in materials.words
    facts: dict[str, Any] = {
        "numerics": NUMERICS,
        "init": training.init,
        "host": {"fingerprint": spec.fingerprint, "tokenizer": spec.tokenizer},
        "task": {"template": task.template, "max_tokens": task.max_tokens},
        "answer": list(task.verbalisers) if word else f"{study.head} head, {materials.classes}",
        "budgets": list(training.budgets),
        "measured": materials.measured.digest,
    }
    if materials.dtype != "float32":  # an older store's keys hold
        facts["dtype"] = materials.dtype
    if training.init != "host":
        facts["train"] = {
            "sentences": materials.parts[training.part].digest,
            "batch": training.batch,
            "seed": training.seed,
            "lr": training.lr,
            "head_lr": training.head_lr,
        }
    if training.init in ("native", "scratch"):
        facts["method"] = materials.configs[(training.method, training.host)].to_json()
    if training.sources:
        facts["sources"] = [ingredients(materials, source) for source in training.sources]
        facts["strategy"] = _strategy(materials, training)
    if training.init == "sampled":
        facts["sampled"] = study.sampled
    if len(training.sources) > 1 and isinstance(study.rates, Search):
        facts["best by"] = study.rates.metric
    return facts


def _strategy(materials: Materials, training: Training) -> dict[str, Any]:
    name = strategy_of(materials, training.source_host, training.host)
    facts = asdict(materials.study.strategy)
    kept = {"name": name, "layers": facts["layers"], "norm_match": facts["norm_match"]}
    if strategies.get(name).needs_texts or facts["norm_match"]:
        kept["texts"] = _digest(list(materials.unlabelled))
    return kept


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _order(study: Study, training: Training) -> tuple[Any, ...]:
    """A host is loaded once, a pair of hosts once for all that is ported between them; what reads
    the same sentences in the same order stands together."""
    place = {host: at for at, host in enumerate(study.hosts)}
    names = list(study.methods)
    return (
        place[training.host],
        place.get(training.source_host, -1),
        names.index(training.method) if training.method else -1,
        training.seed,
        training.sources[0].part if training.sources else training.part,
        training.init,
        training.lr or 0.0,
        training.head_lr or 0.0,
    )
