"""Does `assess` find something where there is nothing, and do its intervals hold what they promise?

    python benchmarks/assess_null.py --json out.json
    python benchmarks/assess_null.py --real pico

Simulated: 200 ported modules that are noise (drawn as their sampled control is, also where noise
trains better or worse than scratch); 200 runs whose true recovery and lead over scratch are known;
and how often an adapter as good as a native module is said to work. Every text has a difficulty
that all modules share, every seed a quality of its own, every hit is drawn anew.

`--real HOST` trains instead: 200 modules of pure noise (each a draw from the distribution of a
trained module) on that host, assessed as if they had been ported to it.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from peftport.assessing.bench import Bench
from peftport.assessing.data import labelled
from peftport.assessing.settings import Settings
from peftport.assessing.statistics import Curves, Resampled
from peftport.assessing.verdict import AFTER, WORKS, Thresholds, judge
from peftport.data.datasets import load_dataset
from peftport.data.tasks import Task, encode
from peftport.hosts.load import load_host
from peftport.methods.lora import LoraConfig
from peftport.porting.controls import sampled
from peftport.testing.pico import pico_bert, pico_reviews
from peftport.train.reference import TrainSpec, fresh_module, train

#: how well modules of each kind do at each budget: their chance of a hit, mean over texts
KNOWN = {
    "ported": {0: 0.66, 10: 0.70, 30: 0.72},
    "sampled": {0: 0.50, 10: 0.55, 30: 0.62},
    "scratch": {0: 0.50, 10: 0.58, 30: 0.68},
}
NATIVE = 0.76
#: the same for noise: it does as its own distribution does, whatever scratch does
NULLS = {
    "as scratch": {"noise": {0: 0.50, 10: 0.56, 30: 0.66}, "scratch": KNOWN["scratch"]},
    "ahead of scratch": {"noise": {0: 0.50, 10: 0.68, 30: 0.75}, "scratch": KNOWN["scratch"]},
    "behind scratch": {"noise": {0: 0.50, 10: 0.52, 30: 0.58}, "scratch": KNOWN["scratch"]},
}


@dataclass(frozen=True)
class World:
    """How runs are simulated.

    Attributes:
        seeds, texts: S and N.
        difficulty: spread of texts, in probits, shared by all modules.
        quality: spread of seeds, in probits.
    """

    seeds: int = 5
    texts: int = 300
    difficulty: float = 0.6
    quality: float = 0.1

    def curves(
        self, means: Mapping[str, Mapping[int, float]], rng: np.random.Generator, *, noise: bool
    ) -> Curves:
        """One run. Before the first step all seeds have the same ported module: the adapter in
        question, whose quality is its own, or (``noise``) a draw like the sampled ones."""
        labels = np.arange(self.texts) % 2
        texts = rng.normal(0, self.difficulty, self.texts)
        values: dict[str, dict[int, np.ndarray]] = {}
        for init, by in means.items():
            seeds = rng.normal(0, self.quality, self.seeds)
            values[init] = {b: self._hits(mean, seeds, texts, rng) for b, mean in by.items()}
        alone = np.full(1, rng.normal(0, self.quality) if noise else 0.0)
        one = self._hits(means["ported"][0], alone, texts, rng)
        values["ported"][0] = np.repeat(one, self.seeds, axis=0)
        native = self._hits(NATIVE, rng.normal(0, self.quality, self.seeds), texts, rng)
        return Curves(values, native, (labels == 0).astype(float), labels, np.ones(self.texts))

    def _hits(
        self, mean: float, seeds: np.ndarray, texts: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        spread = (1 + self.difficulty**2 + (self.quality**2 if seeds.any() else 0.0)) ** 0.5
        # the scale makes the mean over texts and seeds what it is said to be
        chance = norm.cdf(norm.ppf(mean) * spread + seeds[:, None] + texts)  # [S, N]
        return (rng.random(chance.shape) < chance).astype(float)


def null(world: World, runs: int, seed: int = 0) -> dict[str, Any]:
    """Answers for ported modules that are noise."""
    found: dict[str, Any] = {}
    for at, (name, means) in enumerate(NULLS.items()):
        rng = np.random.default_rng([seed, at])
        kinds = {"ported": means["noise"], "sampled": means["noise"], "scratch": means["scratch"]}
        answers = Counter(judge(world.curves(kinds, rng, noise=True)).answer for _ in range(runs))
        false = (answers[WORKS] + answers[AFTER]) / runs
        found[name] = {"answers": dict(answers), "works": false}
    return found


def power(world: World, runs: int, seed: int = 2) -> dict[str, float]:
    """How often an adapter is said to work as it is that truly is as good as a native module, or
    recovers a fifth more than one."""
    found: dict[str, float] = {}
    for at, share in enumerate((1.0, 1.2)):
        rng = np.random.default_rng([seed, at])
        best = 0.5 + share * (NATIVE - 0.5)
        means = {**KNOWN, "ported": dict.fromkeys(KNOWN["ported"], best)}
        hits = sum(
            judge(world.curves(means, rng, noise=False)).answer == WORKS for _ in range(runs)
        )
        found[f"recovery {share:g}"] = hits / runs
    return found


def coverage(world: World, runs: int, seed: int = 1) -> dict[str, float]:
    """How often 95% intervals hold the truth."""
    rng = np.random.default_rng(seed)
    hits: Counter[str] = Counter()
    for _ in range(runs):
        curves = world.curves(KNOWN, rng, noise=False)
        drawn = Resampled(curves)
        for budget in curves.budgets:
            ported = curves.values["ported"][budget]
            truth = KNOWN["ported"][budget]
            ratio = drawn.recovery(ported)
            real = (truth - 0.5) / (NATIVE - 0.5)
            hits[f"recovery at {budget}"] += ratio is not None and ratio.low <= real <= ratio.high
            for control in ("scratch", "sampled"):
                lead = drawn.mean(ported - curves.values[control][budget])
                real = truth - KNOWN[control][budget]
                hits[f"ported - {control} at {budget}"] += lead.low <= real <= lead.high
    return {name: count / runs for name, count in sorted(hits.items())}


def real(name: str, runs: int, seeds: int = 3) -> dict[str, Any]:
    """Answers for real modules of noise, trained and measured on a host."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "pico":
            name = str(pico_bert(Path(folder) / "pico"))
            rows = [(text, ("bad", "good")[label]) for text, label in pico_reviews(900)]
            data = str(Path(folder) / "reviews.csv")
            with open(data, "w") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
        else:
            data = "rotten-tomatoes"
        host = load_host(name)
        settings = Settings(
            budgets=(0, 10, 30), seeds=seeds, native_steps=100, rates=(1e-2,), head_rates=(1e-2,),
            test=300,
        )  # fmt: skip
        start = fresh_module(host, LoraConfig(), 0)
        own = labelled(load_dataset(data), start, 2, settings)
        bench = Bench(host, own, Task(), settings)
        encoded = encode(host.tokenizer, own.train.texts, Task())
        spec = TrainSpec(100, 1e-2, seed=0)
        ((_, taught),) = train(host, start, encoded, own.train.labels, spec)
        controls, answers = None, Counter[str]()
        for first in range(0, runs, 8):
            rng = [torch.Generator().manual_seed(5000 + first + at) for at in range(8)]
            noise = {str(at): sampled(taught, "gaussian", drawn) for at, drawn in enumerate(rng)}
            controls, found = bench.run(noise, controls)
            answers.update(judge(bench.curves(controls, one)).answer for one in found.values())
            print(f"  {sum(answers.values())}: {dict(answers)}", flush=True)
    total = sum(answers.values())
    return {"answers": dict(answers), "works": (answers[WORKS] + answers[AFTER]) / total}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--texts", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--real", metavar="HOST", help="train there instead; pico: random weights")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    if given.real:
        found = real(given.real, given.runs)
        print(f"real noise on {given.real} works in {found['works']:.1%}: {found['answers']}")
        return 0 if found["works"] <= 0.05 else 1
    print(f"{given.runs} runs each; thresholds: {Thresholds()}")
    tables: list[dict[str, Any]] = []
    for seeds in given.seeds:
        for texts in given.texts:
            world = World(seeds, texts)
            began = time.perf_counter()
            nulls, covered = null(world, given.runs), coverage(world, given.runs)
            able = power(world, given.runs)
            facts = {"world": asdict(world), "null": nulls, "coverage": covered, "power": able}
            tables.append(facts)
            print(f"\n{seeds} seeds, {texts} texts ({time.perf_counter() - began:.0f} s)")
            for name, row in nulls.items():
                print(f"  noise {name:<18} works in {row['works']:.1%}: {row['answers']}")
            for name, share in covered.items():
                print(f"  covers {name:<22} {share:.1%}")
            for name, share in able.items():
                print(f"  {name:<12} said to work in {share:.1%}")
    if given.json:
        given.json.write_text(json.dumps(tables, indent=2) + "\n")
    worst = max(row["works"] for t in tables for row in t["null"].values())
    least = min(share for t in tables for share in t["coverage"].values())
    print(f"\nworks at most {worst:.1%} (5% allowed); covers at least {least:.1%} (93% asked)")
    return 0 if worst <= 0.05 and least >= 0.93 else 1


if __name__ == "__main__":
    sys.exit(main())
