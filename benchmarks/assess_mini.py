"""Does `assess` say what the committed full study says of the same pairs?

    python benchmarks/assess_mini.py --pair lora:minilm-base:minilm-base-tuned --json out.json

Twice the same question. Once of docs/results/mini/export.csv: its seeds' balanced accuracies, put
to the same rules (seeds are resampled only, since the export has no single sentences). Once of
`peftport assess` itself: a module trained as the study trains its sources, ported with the study's
strategy, on other sentences, seeds and one source module instead of five. Two answers agree where
they are equal, or where one cannot tell; they contradict each other where one is ahead of scratch
(or works) and the other is not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peftport.assessing import Judgement, Settings, assess, judge
from peftport.assessing.statistics import Curves
from peftport.assessing.verdict import AFTER, AHEAD, UNKNOWN, WORKS
from peftport.cli.main import run
from peftport.study.files import find_study
from peftport.study.rates import Table

EXPORT = Path(__file__).parents[1] / "docs/results/mini/export.csv"
PAIRS = ("lora:minilm-base:minilm-base-tuned", "bottleneck:minilm-base:minilm-base-tuned")
BUDGETS = (0, 10, 30)


def from_study(method: str, source: str, target: str) -> Judgement:
    """The answer that the study's own numbers give; seeds are all there is to resample."""
    rows = pd.read_csv(EXPORT)
    rows = rows[(rows.metric == "balanced_accuracy") & (rows.data == "same")]
    rows = rows[rows.method == method]
    grid = rows[(rows.kind == "grid") & (rows.source == source) & (rows.target == target)]
    native = rows[rows.kind.isin(["native", "source"]) & (rows.target == target)]
    native = native.drop_duplicates("key").sort_values("seed")

    def seeds(init: str, budget: int) -> np.ndarray:
        own = grid[(grid.init == init) & (grid.budget == budget)].sort_values("seed")
        return own.value.to_numpy(float)[:, None]  # [S, 1]

    values = {i: {b: seeds(i, b) for b in BUDGETS} for i in ("ported", "sampled", "scratch")}
    one = np.ones(1)
    top = native.value.to_numpy(float)[:, None]
    return judge(Curves(values, top, 0.5 * one, 0 * one, one))


def from_assess(method: str, source: str, target: str, folder: Path) -> Judgement:
    """The answer of the command, for a module trained as the study trains its sources."""
    table = find_study("mini").rates
    assert isinstance(table, Table)
    adapter = folder / f"{method}-{source}"
    if not adapter.exists():
        rate = table.find(method, source, "native")
        line = f"train {method} --host {source} --data rotten-tomatoes -o {adapter} --steps 150 -q"
        if run([*line.split(), "--lr", str(rate.lr), "--head-lr", str(rate.head_lr)]):
            sys.exit(f"the source module of {method} on {source} could not be trained")
    alike = source.removesuffix("-tuned") == target.removesuffix("-tuned")
    found = assess(
        adapter,
        target,
        "rotten-tomatoes",
        strategy="copy" if alike else "ridge",
        settings=Settings(budgets=BUDGETS, test=300),
        progress=lambda what, count: print(f"  training {what} ({count})", flush=True),
    )
    return found.judgement


def facts(judgement: Judgement) -> dict[str, Any]:
    rows = {
        row.budget: {i: round(x.point, 3) for i, x in row.scores.items()} for row in judgement.rows
    }
    return {"answer": judgement.short, "why": judgement.why, "scores": rows}


def agree(one: Judgement, other: Judgement) -> str:
    ahead = (WORKS, AFTER, AHEAD)
    if one.answer == other.answer:
        return "agree"
    if UNKNOWN in (one.answer, other.answer):
        return "one cannot tell"
    if (one.answer in ahead) == (other.answer in ahead):
        return "same side"
    return "CONTRADICT"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", action="append", metavar="METHOD:SOURCE:TARGET")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for pair in given.pair or PAIRS:
            method, source, target = pair.split(":")
            print(f"{method}, {source} to {target}", flush=True)
            study = from_study(method, source, target)
            print(f"  study:  {study.short}: {study.why}", flush=True)
            own = from_assess(method, source, target, Path(folder))
            verdict = agree(study, own)
            print(f"  assess: {own.short}: {own.why}\n  {verdict}", flush=True)
            found[pair] = {"study": facts(study), "assess": facts(own), "verdict": verdict}
            if given.json:
                given.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if any(row["verdict"] == "CONTRADICT" for row in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
