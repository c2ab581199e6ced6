"""Does `assess` find something where there is nothing, and do its intervals hold what they promise?

    python benchmarks/assess_null.py --json out.json

Simulated: 200 ported modules that are noise (drawn as their sampled control is, also where noise
trains better or worse than scratch), and 200 runs whose true recovery and lead over scratch are
known. Every text has a difficulty that all modules share, every seed a quality of its own, every
hit is drawn anew.

With `--host` also real ones: modules of pure noise on that host, trained and measured as `assess`
does it. That takes minutes to hours.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from peftport.assessing.statistics import Curves, Resampled
from peftport.assessing.verdict import AFTER, WORKS, Thresholds, judge

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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--texts", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    print(f"{given.runs} runs each; thresholds: {Thresholds()}")
    tables: list[dict[str, Any]] = []
    for seeds in given.seeds:
        for texts in given.texts:
            world = World(seeds, texts)
            began = time.perf_counter()
            nulls, covered = null(world, given.runs), coverage(world, given.runs)
            tables.append({"world": asdict(world), "null": nulls, "coverage": covered})
            print(f"\n{seeds} seeds, {texts} texts ({time.perf_counter() - began:.0f} s)")
            for name, row in nulls.items():
                print(f"  noise {name:<18} works in {row['works']:.1%}: {row['answers']}")
            for name, share in covered.items():
                print(f"  covers {name:<22} {share:.1%}")
    if given.json:
        given.json.write_text(json.dumps(tables, indent=2) + "\n")
    worst = max(row["works"] for t in tables for row in t["null"].values())
    least = min(share for t in tables for share in t["coverage"].values())
    print(f"\nworks at most {worst:.1%} (5% allowed); covers at least {least:.1%} (93% asked)")
    return 0 if worst <= 0.05 and least >= 0.93 else 1


if __name__ == "__main__":
    sys.exit(main())
