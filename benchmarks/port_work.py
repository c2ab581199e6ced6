"""What port_quality.py does for one pair of hosts and one method."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftport.cli.options import parse_settings
from peftport.data.datasets import load_dataset
from peftport.data.examples import Example
from peftport.data.splits import hash_unit
from peftport.data.tasks import Encoded, Task, encode
from peftport.errors import InputError
from peftport.hosts.load import Host, load_host
from peftport.methods.base import Module, method_of, methods
from peftport.porting import Correspondence, apply_port, plan_port
from peftport.porting.carriers.base import Carried, carrier_of
from peftport.porting.strategies.base import Job
from peftport.porting.strategies.effect import fit_head
from peftport.train.evaluate import bank_scores, class_scores
from peftport.train.fused import Slot, train_bank, trains_in_banks
from peftport.train.metrics import metrics
from peftport.train.reference import TrainSpec, fresh_module, train

Modules = list[Module]


@dataclass(frozen=True)
class Row:
    """One measurement: predicted classes of the test sentences, in their order."""

    init: str
    seed: int
    budget: int
    balanced_accuracy: float
    auc: float
    predicted: str
    port_seconds: float
    rate: float
    head_rate: float


class Data:
    """Sentences of the benchmark; every part in the order of its texts' hashes."""

    def __init__(self, facts: Mapping[str, Any], texts: int) -> None:
        dataset = load_dataset(facts["dataset"])

        def part(name: str, most: int | None = None) -> list[Example]:
            found = sorted(dataset.split(name), key=lambda e: (hash_unit(e.text), e.text))
            return found[:most]

        self.source, self.target = part("source-train"), part("target-train")
        self.validation = part("validation", facts["validation"])
        self.test = part("test", facts["test"])
        if "choose" in facts:  # sentences that no port sees and nothing is trained on
            first, rest = texts, texts + facts["choose"]
            self.test = self.target[first:rest]
            self.target = self.target[:first] + self.target[rest:]
        self.unlabelled = [e.text for e in self.target[:texts]]


def labels(examples: Sequence[Example]) -> np.ndarray:
    return np.array([e.label for e in examples])


class Pair:
    """Two loaded hosts and the benchmark's settings."""

    def __init__(self, config: Mapping[str, Any], names: Mapping[str, str], data: Data) -> None:
        self.config, self.data = config, data
        self.task = Task(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in names.get("task", {}).items()}
        )  # type: ignore[attr-defined]
        words = self.task.verbalisers
        self.source = load_host(names["source"], verbalisers=words)
        self.target = load_host(names["target"], verbalisers=words)
        self._encoded: dict[tuple[str, str], Encoded] = {}

    @cached_property
    def hosts(self) -> Correspondence:
        return Correspondence(self.source, self.target, self.data.unlabelled, self.task)

    def encoded(self, host: Host, part: str) -> tuple[Encoded, np.ndarray]:
        examples: list[Example] = getattr(self.data, part)
        key = (host.ref, part)
        if key not in self._encoded:
            self._encoded[key] = encode(host.tokenizer, [e.text for e in examples], self.task)
        return self._encoded[key], labels(examples)

    def trained(
        self,
        host: Host,
        starts: Modules,
        part: str,
        specs: Sequence[TrainSpec],
        budgets: Sequence[int],
    ) -> Iterator[tuple[int, Modules]]:
        """Modules at every budget; one that diverged is an error."""
        encoded, truth = self.encoded(host, part)
        if trains_in_banks(host, starts[0].config):
            slots = [Slot(m, encoded, truth, s) for m, s in zip(starts, specs, strict=True)]
            for budget, found in train_bank(host, slots, budgets):
                for one in found:
                    if isinstance(one, Exception):
                        raise one
                yield budget, [m for m in found if isinstance(m, Module)]
            return
        runs = [
            train(host, m, encoded, truth, s, budgets) for m, s in zip(starts, specs, strict=True)
        ]
        for steps in zip(*runs, strict=True):
            yield steps[0][0], [module for _, module in steps]

    def scores(self, host: Host, modules: Modules, part: str) -> np.ndarray:
        """[K, N, C]"""
        encoded, _ = self.encoded(host, part)
        if trains_in_banks(host, modules[0].config):
            return bank_scores(host, modules, encoded)
        return np.stack([class_scores(host, m, encoded) for m in modules])


class Cell:
    """One pair and one method: everything that is measured for it."""

    def __init__(self, pair: Pair, method: str) -> None:
        self.pair, self.method = pair, method
        self.seeds: list[int] = pair.config["seeds"][method]
        self.rate: float = pair.config["rates"][method]

    def natives(self, host: Host) -> Modules:
        """Trained from scratch on a host for as long as a source, on source-train."""
        facts, config = self.pair.config["source"], methods.get(self.method)()
        given = config.default_config(host.spec)
        specs = [
            TrainSpec(facts["steps"], self.rate, facts["head-rate"], facts["batch"], seed=s)
            for s in self.seeds
        ]
        starts = [fresh_module(host, given, s) for s in self.seeds]
        ((_, made),) = self.pair.trained(host, starts, "source", specs, [facts["steps"]])
        return made

    def scratch_rates(self, config: Any) -> tuple[float, float]:
        """The best (rate, head rate) of the list by validation score at the largest budget."""
        pair, facts = self.pair, self.pair.config["scratch"]
        steps, batch = max(pair.config["target"]["budgets"]), pair.config["target"]["batch"]
        heads = facts["head-rates"] if pair.target.head else facts["head-rates"][:1]
        rates = [(r, h) for r in facts["rates"] for h in heads]
        specs = [TrainSpec(steps, r, h, batch, seed=facts["seed"]) for r, h in rates]
        starts = [fresh_module(pair.target, config, facts["seed"]) for _ in rates]
        ((_, made),) = pair.trained(pair.target, starts, "target", specs, [steps])
        truth = pair.encoded(pair.target, "validation")[1]
        found = [
            metrics(s, truth)["balanced_accuracy"]
            for s in pair.scores(pair.target, made, "validation")
        ]
        return rates[int(np.argmax(found))]

    def inits(self, sources: Modules) -> Iterator[tuple[str, Callable[[], Modules]]]:
        """Names of the inits and what makes them, one module a seed."""
        for strategy in self.pair.config["strategies"]:
            if strategy == "ual":
                if self.method == "lora":
                    yield "ual-adapter", lambda: [ual(self.pair, m) for m in sources]
                continue
            yield strategy, lambda s=strategy: [self.ported(m, s) for m in sources]  # type: ignore[misc]
        if self.pair.target.head:
            yield "ridge head alone", lambda: self.heads(sources, refit=False)
            yield "effect head alone", lambda: self.heads(sources, refit=True)

    def ported(self, module: Module, given: str) -> Module:
        """By a strategy and its settings, as ``distil start=silent``."""
        pair, (strategy, *settings) = self.pair, given.split()
        plan = plan_port(
            pair.source.spec,
            pair.target.spec,
            module,
            strategy=strategy,
            options=parse_settings(settings),
        )
        return apply_port(plan, module, hosts=pair.hosts)

    def heads(self, sources: Modules, *, refit: bool) -> Modules:
        """A fresh body under the head that a strategy ports; refitted as ``effect`` does."""
        pair, made = self.pair, []
        plan = plan_port(pair.source.spec, pair.target.spec, sources[0], strategy="ridge")
        for seed, module in zip(self.seeds, sources, strict=True):
            fresh = fresh_module(pair.target, plan.target_config, seed)
            head = apply_port(plan, module, hosts=pair.hosts).head
            if refit:
                config, state = method_of(module.config).finish(
                    pair.source.spec, module.config, module.state
                )
                carrier = carrier_of(config.method)
                job = Job(replace(plan, config=config), module, state, carrier, pair.hosts)
                head, _ = fit_head(job, Carried(fresh.state, head))
            made.append(replace(fresh, head=head))
        return made

    def rows(
        self, init: str, starts: Modules, rates: tuple[float, float], seconds: float
    ) -> Iterator[Row]:
        """Train at the given rates and measure at every budget."""
        pair, facts = self.pair, self.pair.config["target"]
        specs = [
            TrainSpec(max(facts["budgets"]), *rates, facts["batch"], seed=s) for s in self.seeds
        ]
        for budget, modules in pair.trained(pair.target, starts, "target", specs, facts["budgets"]):
            yield from self.measured(init, modules, budget, rates, seconds)

    def measured(
        self,
        init: str,
        modules: Modules,
        budget: int,
        rates: tuple[float, float],
        seconds: float,
        host: Host | None = None,
    ) -> Iterator[Row]:
        """Rows of modules on the test sentences; their host is the target unless given."""
        pair, where = self.pair, host or self.pair.target
        truth = pair.encoded(where, "test")[1]
        for seed, scores in zip(self.seeds, pair.scores(where, modules, "test"), strict=True):
            found = metrics(scores, truth)
            predicted = "".join(map(str, scores.argmax(1)))
            yield Row(
                init,
                seed,
                budget,
                found["balanced_accuracy"],
                found["auc"],
                predicted,
                seconds,
                *rates,
            )


def timed(make: Callable[[], Modules]) -> tuple[Modules, float]:
    """What was made, and seconds a module."""
    begin = time.perf_counter()
    made = make()
    return made, (time.perf_counter() - begin) / len(made)


def ual(pair: Pair, module: Module) -> Module:
    """The same adapter through ual-adapter's own projection, its default ('svd'), site by site; it
    has no layer map and no head, so these are pad's."""
    spec = importlib.util.find_spec("ual_adapter")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("pip install --no-deps ual-adapter==0.1.0 loguru")
    file = Path(spec.submodule_search_locations[0]) / "core" / "projection.py"
    loaded = importlib.util.spec_from_file_location("ual_projection", file)
    assert loaded is not None and loaded.loader is not None
    code = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(code)
    projector = code.DimensionProjector()
    plan = plan_port(pair.source.spec, pair.target.spec, module, strategy="pad")
    padded = apply_port(plan, module)
    state = {}
    for move in plan.moves:
        own, target = module.state[move.source], pair.target.spec.site(move.target)
        a, b = projector.project_adapter(own["A"], own["B"], target.d_in, target.d_out)
        state[move.target] = {"A": a.to(torch.float32), "B": b.to(torch.float32)}
    return replace(padded, state=state)
