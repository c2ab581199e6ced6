"""What is a ported module worth? Every strategy, method and pair of benchmarks/port_quality.yaml.

    python benchmarks/port_quality.py run --rows out/port-quality.jsonl
    python benchmarks/port_quality.py table --rows out/port-quality.jsonl -o docs/results/port

``choose`` does the same on the pairs, seeds and training sentences that settings are chosen on.
Each cell (pair x method) trains the source modules, the native ones and scratch on the target,
ports with every strategy, goes on for the budgets and measures on the same test sentences. A cell
that is there already is not done again. ual-adapter, where it is compared with:
pip install --no-deps ual-adapter==0.1.0 loguru
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from port_table import tables
from port_work import Cell, Data, Pair, labels, timed

from peftport.errors import InputError, PeftportError, UnknownName
from peftport.train.reference import fresh_module

CONFIG = Path(__file__).with_name("port_quality.yaml")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["run", "table", "choose"])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--pairs", nargs="*", help="of the config's; default all")
    parser.add_argument("--methods", nargs="*", help="default all")
    parser.add_argument("--strategies", nargs="*", help="of the config's; default all")
    parser.add_argument("-o", "--output", type=Path, help="folder of the tables")
    args = parser.parse_args()
    config = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    try:
        if args.what == "table":
            tables(config, read(args.rows), args.output)
        else:
            config = choosing(config) if args.what == "choose" else config
            pairs = asked("pair", args.pairs, config["confirm"])
            methods = asked("method", args.methods, config["seeds"])
            config["strategies"] = asked("strategy", args.strategies, config["strategies"])
            run(config, args.rows, pairs, methods)
    except PeftportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def choosing(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of ``choose`` in the places of those that confirm."""
    own = config["choose"]
    return {
        **config,
        "confirm": {f"{p['source']}-{p['target']}": p for p in own["pairs"]},
        "seeds": dict.fromkeys(config["seeds"], own["seeds"]),
        "strategies": [*own["strategies"], *own["starts"]],
        "data": {**config["data"], "choose": own["sentences"]},
    }


def asked(kind: str, given: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """What is asked for of the config's, in its order; default all."""
    names = list(known)
    for name in given or ():
        if name not in names:
            raise UnknownName(kind, name, names)
    return [name for name in names if not given or name in given]


def read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def run(
    config: Mapping[str, Any],
    file: Path,
    pairs: Sequence[str],
    methods: Sequence[str],
) -> None:
    """Do the cells that are missing, each to its end before its rows are written."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    done = {(row["pair"], row["method"]) for row in read(file)}
    for name in pairs:
        given = config["confirm"][name]
        measured = given.get("methods", methods)
        wanted = [m for m in methods if m in measured and (name, m) not in done]
        if not wanted:
            continue
        own = {**config, **given.get("settings", {})}
        pair = Pair(own, given, Data(own["data"], own["texts"]))
        for method in wanted:
            rows = [{"pair": name, "method": method, **row} for row in cell(pair, method)]
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows)


def cell(pair: Pair, method: str) -> list[dict[str, Any]]:
    """All rows of a pair and method."""
    one = Cell(pair, method)
    sources, _ = timed(lambda: one.natives(pair.source))
    natives, _ = timed(lambda: one.natives(pair.target))
    steps, head_rate = pair.config["source"]["steps"], pair.config["source"]["head-rate"]
    rates = (one.rate, head_rate)
    found = list(one.measured("source", sources, steps, rates, 0.0, pair.source))
    say(pair, method, "source", found)
    found += list(one.measured("native", natives, steps, rates, 0.0))
    say(pair, method, "native", found)
    rates = one.scratch_rates(natives[0].config)
    fresh = [fresh_module(pair.target, natives[0].config, s) for s in one.seeds]
    found += list(one.rows("scratch", fresh, rates, 0.0))
    say(pair, method, "scratch", found)
    for init, make in one.inits(sources):
        try:
            starts, seconds = timed(make)
        except InputError as error:
            print(f"{method} {init}: {error}", flush=True)
            continue
        found += list(one.rows(init, starts, (one.rate, one.rate), seconds))
        say(pair, method, init, found)
    facts = {
        "source": pair.source.ref,
        "target": pair.target.ref,
        "labels": "".join(map(str, labels(pair.data.test))),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": f"torch {version('torch')}, transformers {version('transformers')}",
    }
    return [{**facts, **asdict(row)} for row in found]


def say(pair: Pair, method: str, init: str, rows: Sequence[Any]) -> None:
    own = [row for row in rows if row.init == init]
    budgets = sorted({row.budget for row in own})
    means = [np.mean([r.balanced_accuracy for r in own if r.budget == b]) for b in budgets]
    told = " ".join(f"{b}: {m:.3f}" for b, m in zip(budgets, means, strict=True))
    where = f"{pair.source.ref} -> {pair.target.ref}"
    print(f"{where} {method} {init}: {told} ({own[0].port_seconds:.1f} s a port)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
