"""Fifty adapters on one host: trained and measured in banks, and by a loop over PEFT.

    python benchmarks/migrate_fleet.py --json out.json

The trainings of a migration's repair: 50 loras of three ranks, each with its own start and order of
texts, trained for some steps and scored on test sentences. Both sides get the same host, texts,
batches, starting parameters, rate and clip; PEFT's side is a plain torch loop with PEFT's collator.
Rank by rank and round by round the sides take turns, so that a busy machine slows both; the ratio
is that of the medians of whole rounds. Memory is the peak of a fresh process for each side. Final
losses that differ by more than 1% of what training changed end with exit code 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bank_measures import _own_peak_mib
from bank_peers import Theirs, by_bank, held_losses
from bank_work import ORDERS, Settings, Work, batches_in

from peftport.hosts.load import quiet_transformers
from peftport.methods.lora import LoraConfig
from peftport.testing.pico import pico_bert
from peftport.train.evaluate import bank_scores

RANKS = (4, 8, 16)
TOLERANCE = 0.01
#: texts of a batch when PEFT's model scores the test sentences
ROWS = 64


class Fleet:
    """The adapters of one rank."""

    def __init__(self, settings: Settings, rank: int, count: int, bank: int) -> None:
        self.work = Work(settings)
        self.work.config = LoraConfig(r=rank)
        self.slots = [self.work.slot(1000 * rank + seed) for seed in range(count)]
        self._bank = bank

    def _banks(self) -> Iterator[list[Any]]:
        parts = -(-len(self.slots) // self._bank)
        yield from (list(part) for part in _split(self.slots, parts))

    def by_bank(self) -> tuple[float, list[float], np.ndarray]:
        """Seconds, final losses, and test scores [K, N, C]."""
        seconds, losses, scores = 0.0, [], []
        for slots in self._banks():
            began = time.perf_counter()
            done, modules = by_bank(self.work, slots)
            seconds += done.seconds
            began = time.perf_counter()
            scores.append(bank_scores(self.work.host, modules, self.work.test))
            seconds += time.perf_counter() - began
            losses += done.losses
        return seconds, losses, np.concatenate(scores)

    def by_loop(self, theirs: Theirs) -> tuple[float, list[float], np.ndarray]:
        """The same by PEFT, one adapter after another."""
        seconds, losses, scores = 0.0, [], []
        for slot in self.slots:
            done = theirs.by_loop([slot])
            seconds += done.seconds
            losses += done.losses
            began = time.perf_counter()
            scores.append(theirs._score(self.work.test, ROWS).numpy())
            seconds += time.perf_counter() - began
        return seconds, losses, np.stack(scores)


def _split(slots: Sequence[Any], parts: int) -> Iterator[Sequence[Any]]:
    for part in range(parts):
        yield slots[len(slots) * part // parts : len(slots) * (part + 1) // parts]


def fleets(settings: Settings, count: int, bank: int) -> Iterator[Fleet]:
    """One rank after another; together ``count`` adapters."""
    for at, rank in enumerate(RANKS):
        own = count * (at + 1) // len(RANKS) - count * at // len(RANKS)
        yield Fleet(settings, rank, own, bank)


def compare(settings: Settings, count: int, bank: int, rounds: int) -> dict[str, Any]:
    """Seconds of whole rounds by each side, and whether they did the same work."""
    seconds: dict[str, list[float]] = {"bank": [0.0] * rounds, "loop": [0.0] * rounds}
    gap = moved = score_gap = 0.0
    for fleet in fleets(settings, count, bank):
        theirs = Theirs(fleet.work)
        start = held_losses(fleet.work, [slot.module for slot in fleet.slots])
        by_bank(fleet.work, fleet.slots[:2])  # warms up
        theirs.by_loop(fleet.slots[:1])
        for number in range(rounds):
            for side in ("bank", "loop") if number % 2 else ("loop", "bank"):
                gc.collect()
                own = fleet.by_bank() if side == "bank" else fleet.by_loop(theirs)
                seconds[side][number] += own[0]
                if side == "bank":
                    ours = own
                else:
                    peers = own
        gap = max(gap, float(np.abs(np.subtract(ours[1], peers[1])).max()))
        moved = max(moved, float(np.abs(np.subtract(ours[1], start)).mean()))
        score_gap = max(score_gap, float(np.abs(ours[2] - peers[2]).max()))
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "seconds": seconds,
        "ratio": medians["loop"] / medians["bank"],
        "loss_gap": gap,
        "loss_moved": moved,
        "score_gap": score_gap,
        "agree": gap <= TOLERANCE * moved,
    }


def peak_mib(side: str, arguments: Sequence[str]) -> float:
    """Peak memory of a fresh process that does one round of one side."""
    command = [sys.executable, __file__, *arguments, "--only", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the process whose memory is measured failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="minilm-base")
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--bank", type=int, default=16, metavar="K")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--order", choices=ORDERS, default="shuffled")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--quick", action="store_true", help="a host of random weights, seconds")
    parser.add_argument("--only", choices=("bank", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    with tempfile.TemporaryDirectory() as folder, batches_in(given.order), quiet_transformers():
        base = Settings(
            given.host, "lora", steps=given.steps, sentences=given.sentences, order=given.order
        )
        if given.quick:
            host = str(pico_bert(Path(folder) / "pico", d_model=128))
            base = Settings(host, "lora", steps=2, sentences=20, order=given.order, data="pico")
            given.adapters, given.rounds, given.no_memory = 5, 1, True
        if given.only:
            for fleet in fleets(base, given.adapters, given.bank):
                if given.only == "bank":
                    fleet.by_bank()
                else:
                    fleet.by_loop(Theirs(fleet.work))
            print(_own_peak_mib())
            return 0
        load = os.getloadavg()[0]
        found = compare(base, given.adapters, given.bank, given.rounds)
    if not given.no_memory:
        own = ["--host", given.host, "--adapters", str(given.adapters), "--bank", str(given.bank)]
        own += ["--steps", str(min(given.steps, 3)), "--sentences", str(given.sentences)]
        found["peak_mib"] = {side: peak_mib(side, own) for side in ("bank", "loop")}
    print(
        f"{given.adapters} loras of ranks {', '.join(map(str, RANKS))} on {Path(base.host).name}: "
        f"{base.steps} steps of {base.batch}, {base.sentences} test sentences, {given.order} "
        f"batches; banks of at most {given.bank}; {torch.get_num_threads()} threads, load "
        f"{load:.1f} at the start"
    )
    for side, values in found["seconds"].items():
        spread = ", ".join(f"{value:.1f}" for value in values)
        memory = found.get("peak_mib", {}).get(side)
        print(f"  {side:<5}{spread} s" + (f", peak {memory:.0f} MiB" if memory else ""))
    verdict = "agree" if found["agree"] else "DISAGREE"
    print(
        f"  banks are {found['ratio']:.2f} times as fast; losses {verdict}: gap "
        f"{found['loss_gap']:.1e} of {found['loss_moved']:.3f} moved; scores differ by at most "
        f"{found['score_gap']:.1e}"
    )
    if given.json:
        facts = {**found, "settings": {k: str(v) for k, v in vars(given).items()}, "load": load}
        given.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0 if found["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
