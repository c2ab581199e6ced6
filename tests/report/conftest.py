"""A study with known truth: class logits are drawn so that each run has a chosen accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from peftport.report.evidence import Evidence, tidy
from peftport.study.expand import Run
from peftport.study.grid import parse_study
from peftport.study.planned import Measure, Outcome, Planned
from peftport.study.store import Store
from peftport.train.metrics import metrics

BUDGETS = (0, 10)
TRUTH = {"ported": 0.75, "sampled": 0.5, "scratch": 0.52, "head-only": 0.65, "body-only": 0.6,
         "probe": 0.62, "native": 0.8}  # fmt: skip
Truth = Callable[[Mapping[str, Any]], float]


class Study:
    """Rows and scores of a synthetic study; ``truth`` gives the expected accuracy of a run."""

    def __init__(
        self,
        truth: Truth | None = None,
        *,
        methods: Sequence[str] = ("lora", "prefix"),
        pairs: Sequence[tuple[str, str]] = (("big", "big-tuned"), ("big", "small")),
        seeds: Sequence[int] = (0, 1, 2),
        settings: Sequence[str] = ("same",),
        budgets: Sequence[int] = BUDGETS,
        sentences: int = 200,
        noise: float = 0.01,
        ablations: bool = True,
        seed: int = 0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth = truth or (lambda run: TRUTH[run["init"]] + 0.001 * run["budget"])
        self.labels = np.arange(sentences) % 2
        self.noise = noise
        self.scores: dict[tuple[str, int], np.ndarray] = {}
        self.lines: list[dict[str, Any]] = []
        self.hosts = sorted({host for pair in pairs for host in pair})
        for method in methods:
            for source, target in pairs:
                for data in settings:
                    for s in seeds:
                        for init in ("ported", "sampled", "scratch"):
                            self.add("grid", method, source, target, data, s, init, budgets)
                    for init in ("head-only", "body-only", "probe") if ablations else ():
                        self.add("ablation", method, source, target, data, 0, init, budgets)
            for host in self.hosts:
                self.add("native", method, host, host, "same", 0, "native", (100,))

    def add(
        self, kind: str, method: str, source: str, target: str, data: str, seed: int, init: str,
        budgets: Sequence[int],
    ) -> None:  # fmt: skip
        parts = {
            "scratch": (method, target, seed, init),
            "probe": (target, seed, init),
            "native": (method, target, seed, init),
        }.get(init, (method, source, target, data, seed, init))
        key = "/".join(map(str, parts))
        run = {"kind": kind, "method": method, "source": source, "target": target, "data": data,
               "seed": seed, "init": init}  # fmt: skip
        for budget in budgets:
            if (key, budget) not in self.scores:
                accuracy = self.truth({**run, "budget": budget}) + self.rng.normal(0, self.noise)
                self.scores[key, budget] = self.draw(accuracy)
            for metric, value in metrics(self.scores[key, budget], self.labels).items():
                self.lines.append(
                    {**run, "budget": budget, "key": key, "metric": metric, "value": value}
                )

    def draw(self, accuracy: float) -> np.ndarray:
        """Class logits ``[N, 2]`` whose argmax is right with that probability."""
        right = self.rng.random(len(self.labels)) < accuracy
        predicted = np.where(right, self.labels, 1 - self.labels)
        margin = (2 * predicted - 1) * self.rng.exponential(1.0, len(self.labels))
        return np.stack([-margin / 2, margin / 2], axis=1).astype(np.float32)

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.lines)

    def evidence(self, **changes: Any) -> Evidence:
        given: dict[str, Any] = {
            "cells": tidy(self.frame()),
            "scores": lambda key, budget: self.scores.get((key, budget)),
            "labels": self.labels,
            "name": "synthetic",
            "sizes": {h: "small" if h.startswith("small") else "big" for h in self.hosts},
            "facts": [("Hosts", ", ".join(self.hosts)), ("Machine", "2 cores")],
            "guard": [("sentences compared", "1,234"), ("leaks found", "0")],
        }
        return Evidence(**{**given, **changes})

    def store(self, folder: Path, skip: Sequence[str] = (), fail: Sequence[str] = ()) -> Path:
        """The same study as a store; trainings whose key begins with an entry of ``skip`` are
        missing, with one of ``fail`` failed."""
        runs: dict[tuple[Any, ...], str] = {}
        budgets: dict[str, dict[int, None]] = {}
        names = ("kind", "method", "source", "target", "data", "seed", "init", "key")
        for line in self.lines:
            runs.setdefault(tuple(line[n] for n in names), line["key"])
            budgets.setdefault(line["key"], {})[line["budget"]] = None
        rows = tuple(
            (
                Run(
                    kind,
                    method,
                    source,
                    target,
                    data,
                    seed,
                    0,
                    init,
                    tuple(budgets[key]),
                    1e-3,
                    None,
                ),
                key,
            )
            for kind, method, source, target, data, seed, init, key in runs
        )
        hosts = {
            name: {"fingerprint": f"weights of {name}", "family": "bert", "decides_by": "class",
                   "layers": {"encoder": 2}, "d_model": 8, "shape": name.split("-")[0]}
            for name in self.hosts
        }  # fmt: skip
        planned = Planned(
            study=parse_study(STUDY.format(hosts=list(self.hosts))),
            rows=rows,
            ingredients={key: {"key": key} for key in budgets},
            facts={"hosts": hosts, "numerics": 1},
            sentences=tuple((f"s{i}", int(label)) for i, label in enumerate(self.labels)),
            environment={"threads": 1, "machine": "x", "versions": {"numpy": "2"}},
            guard={"validation and test": 1234},
        )
        with Store.write(folder, planned) as store:
            for key in budgets:
                if key.startswith(tuple(skip)) and skip:
                    continue
                if key.startswith(tuple(fail)) and fail:
                    store.commit(Outcome(key, 1.0, error="diverged", traceback="Traceback"))
                    continue
                measures = [Measure(b, self.scores[key, b], "") for b in budgets[key]]
                store.commit(Outcome(key, 1.0, tuple(measures), 100, key.encode()))
        return folder


STUDY = """
name: synthetic
hosts: {hosts}
pairs: all
data: {{target: rotten-tomatoes}}
methods: {{lora: {{}}}}
source: {{steps: 100, seeds: [0]}}
target: {{budgets: [0, 10]}}
seeds: [0, 1, 2]
rates: {{provenance: invented, table: {{lora: {{any: {{any: {{lr: 0.001}}}}}}}}}}
"""


@pytest.fixture(scope="session")
def study() -> type[Study]:
    return Study
