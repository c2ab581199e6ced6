"""Train and test the same modules with PEFT, with the reference trainer and in a bank.

    python benchmarks/bank_vs_peft.py --host minilm-base --method lora --json out.json

The same host, texts, batches in the same order, initial parameters, rates and clip on every side:
(trainer) PEFT and transformers' Trainer, (loop) PEFT and a plain torch loop, (reference) peftport's
reference trainer, each one module after another; (bank) K modules at once. Both PEFT sides get
batches of 16 padded to their longest by PEFT's collator. Rounds are interleaved, so a busy machine
slows all; the ratios are those of the medians of tokens a second. Sides whose final losses differ
by more than 1% of what training changed did not do the same work: the exit code is then 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bank_measures import matmul_peaks, peak_mib, seconds_by_runs, step_ms_by_bank
from bank_peers import by_bank, held_losses, sides_of
from bank_work import ORDERS, Settings, Work, batches_in

from peftport import __version__
from peftport.errors import PeftportError
from peftport.hosts.load import locate_host, quiet_transformers
from peftport.hosts.packed.kernels import kernel
from peftport.methods.base import methods
from peftport.testing.pico import pico_bert
from peftport.train.evaluate import bank_scores

#: how far a side's final losses may be from the bank's, as a share of how far training moved them
TOLERANCE = 0.01
#: batches of the evaluation loops that banks are compared with
EVAL_ROWS = (16, 64)
LABELS = {
    "trainer": "peft + Trainer",
    "loop": "peft + plain loop",
    "reference": "peftport reference",
    "bank": "peftport bank",
}


@dataclass(frozen=True)
class Plan:
    """Everything but what is trained: bank size, rounds, modules that the others train a round."""

    bank: int
    peers: int
    rounds: int
    peak_gflops: float


def compare(work: Work, plan: Plan) -> dict[str, Any]:
    """All sides on one host and method: speeds, ratios, final losses, evaluation."""
    sides, score = sides_of(work)
    slots = [work.slot(seed) for seed in range(plan.bank)]
    start = held_losses(work, [slot.module for slot in slots])
    _, trained = by_bank(work, slots)
    # Trainer collects garbage at its start: what lives for the whole comparison is not its business
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, dict[int, float]] = {name: {} for name in sides}
    for number in range(plan.rounds + 1):
        chosen = [(number * plan.peers + i) % plan.bank for i in range(plan.peers)]
        for name, side in sides.items():
            which = range(plan.bank) if name == "bank" else chosen
            own = [slots[k] for k in which]
            gc.collect()
            done = side(own)
            losses[name] |= dict(zip(which, done.losses, strict=True))
            if number:  # the first round warms up
                speeds[name].append(work.tokens(own) / done.seconds)
    tokens = {name: _spread(values) for name, values in speeds.items()}
    bank = tokens["bank"][0]
    gap = {
        name: max(abs(loss - losses["bank"][k]) for k, loss in own.items())
        for name, own in losses.items()
        if name != "bank"
    }
    moved = statistics.fmean(abs(losses["bank"][k] - x) for k, x in enumerate(start))
    a_step = work.tokens(slots) / plan.bank / work.settings.steps
    found: dict[str, Any] = {
        f"ratio_{name}": bank / tokens[name][0] for name in sides if name != "bank"
    }
    return found | {
        "peak_share": bank * work.operations / 1e9 / plan.peak_gflops,
        "tokens_per_s": tokens,
        "ms_per_step": {name: 1000 * a_step / own[0] for name, own in tokens.items()},
        "tokens_per_step": a_step,
        "padding": 1 - work.tokens(slots) / work.tokens(slots, padded=True),
        "final_loss": statistics.fmean(losses["bank"].values()),
        "loss_moved": moved,
        "loss_gap": gap,
        "losses_agree": max(gap.values()) <= TOLERANCE * moved,
        **_evaluation(work, plan, trained, score),
    }


def _evaluation(work: Work, plan: Plan, modules: Any, score: Any) -> dict[str, Any]:
    """Scores of the test sentences: the bank against loops over padded batches."""
    names = ["bank", *(f"loop_{rows}" for rows in EVAL_ROWS)]
    ms: dict[str, list[float]] = {name: [] for name in names}
    gap = 0.0
    for number in range(plan.rounds + 1):
        chosen = [(number * plan.peers + i) % plan.bank for i in range(plan.peers)]
        gc.collect()
        began = time.perf_counter()
        ours = bank_scores(work.host, modules, work.test)  # [K, N, C]
        times = {"bank": (time.perf_counter() - began) / plan.bank}
        for rows in EVAL_ROWS:
            spent = 0.0
            for k in chosen:
                began = time.perf_counter()
                theirs = score(modules[k], rows)  # [N, C]
                spent += time.perf_counter() - began
                gap = max(gap, float(np.abs(theirs - ours[k]).max()))
            times[f"loop_{rows}"] = spent / plan.peers
        if number:
            for name, seconds in times.items():
                ms[name].append(1000 * seconds)
    medians = {name: statistics.median(values) for name, values in ms.items()}
    found: dict[str, Any] = {
        f"ratio_eval_{rows}": medians[f"loop_{rows}"] / medians["bank"] for rows in EVAL_ROWS
    }
    return found | {
        "eval_ms": {name: _spread(values) for name, values in ms.items()},
        "score_gap": gap,
    }


def scaling(settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    """How time and memory of banks grow, on one host and method."""
    found: dict[str, Any] = {"method": settings.method, "host": _name(settings.host)}
    work = Work(settings)
    if given.banks:
        by_bank_size = step_ms_by_bank(work, given.banks, given.rounds)
        found["ms_by_bank"] = {str(k): _spread(v) for k, v in by_bank_size.items()}
    if given.runs:
        found["bank"] = given.bank
        by_runs = seconds_by_runs(work, given.runs, given.bank, given.rounds)
        found["seconds_by_runs"] = {str(k): _spread(v) for k, v in by_runs.items()}
    if given.memory_runs:
        found["bank"] = given.bank
        short = replace(settings, steps=min(settings.steps, 4))
        found["peak_mib_by_runs"] = {
            str(runs): peak_mib(short, runs, given.bank) for runs in given.memory_runs
        }
    return found


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _name(host: str) -> str:
    return Path(host).name


def show(name: str, host: str, found: dict[str, Any], plan: Plan) -> None:
    """One comparison as a table."""
    print(
        f"\n{name} on {host}: bank of {plan.bank}, {found['tokens_per_step']:.0f} tokens a step, "
        f"{100 * found['padding']:.0f}% of a padded batch is padding"
    )
    print(f"  {'training':<20}{'ms a step':>10}{'tokens/s (min to max)':>32}{'bank is':>9}")
    for side, (median, low, high) in found["tokens_per_s"].items():
        ratio = f"{found[f'ratio_{side}']:.2f}x" if side != "bank" else ""
        speed = f"{median:,.0f} ({low:,.0f} to {high:,.0f})"
        print(f"  {LABELS[side]:<20}{found['ms_per_step'][side]:>10.1f}{speed:>32}{ratio:>9}")
    verdict = "agree" if found["losses_agree"] else "DISAGREE"
    gaps = ", ".join(f"{side} {gap:.1e}" for side, gap in found["loss_gap"].items())
    print(
        f"  final loss {found['final_loss']:.4f}, moved by {found['loss_moved']:.4f} (means); "
        f"sides {verdict} to {100 * TOLERANCE:g}% of that: {gaps}"
    )
    print(f"  {100 * found['peak_share']:.0f}% of the matmul peak ({plan.peak_gflops:.0f} GFLOPS)")
    for side, (median, low, high) in found["eval_ms"].items():
        label = "bank" if side == "bank" else f"loop, batches of {side.removeprefix('loop_')}"
        ratio = "" if side == "bank" else f"{found[f'ratio_eval_{side[5:]}']:.2f}x"
        spread = f"{median:.0f} ({low:.0f} to {high:.0f})"
        print(f"  {'evaluation: ' + label:<34}{spread:>21} ms{ratio:>9}")
    print(f"  largest difference of a score: {found['score_gap']:.1e}", flush=True)


def show_scaling(found: dict[str, Any]) -> None:
    print(f"\ngrowth, {found['method']} on {found['host']}")
    for bank, (median, low, high) in found.get("ms_by_bank", {}).items():
        print(f"  bank of {bank:>3}: {median:8.1f} ms a step and module ({low:.1f} to {high:.1f})")
    for runs, (median, low, high) in found.get("seconds_by_runs", {}).items():
        print(
            f"  {runs:>4} runs in banks of {found['bank']}: {median:8.1f} s ({low:.1f} to "
            f"{high:.1f}), {median / int(runs):.2f} s a run"
        )
    for runs, mib in found.get("peak_mib_by_runs", {}).items():
        print(f"  {runs:>4} runs in banks of {found['bank']}: peak memory {mib:6.0f} MiB")


def machine(size: int) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "kernel": kernel(),
        "peak_gflops": matmul_peaks(size),
    }


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", action="append", help="repeat for more [minilm-base]")
    parser.add_argument("--method", action="append", choices=methods.names(), help="[all four]")
    parser.add_argument("--order", choices=ORDERS, default="shuffled", help="of the batches")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--bank", type=int, default=8, metavar="K")
    parser.add_argument(
        "--peers", type=int, default=2, help="modules the other sides train a round"
    )
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--banks", type=numbers, default="1,2,4,8,16", help="time by bank size")
    parser.add_argument("--runs", type=numbers, default="8,16,32", help="time by number of runs")
    parser.add_argument("--memory-runs", type=numbers, default="8,80", help="memory by runs")
    parser.add_argument("--no-growth", action="store_true", help="none of these three")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="a host of random weights, seconds")
    given = parser.parse_args(arguments)
    given.host = given.host or ["minilm-base"]
    given.method = given.method or ["lora", "prefix", "bottleneck", "compacter"]
    given.peers = min(given.peers, given.bank)
    return given


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All measurements, printed as they come; what ``--json`` writes."""
    base = Settings("", "", steps=given.steps, order=given.order)
    size = 4096
    if given.quick:
        base, size = replace(base, data="pico", sentences=40), 256
    for host in given.host:
        locate_host(host)  # a wrong name is noticed before anything is measured
    about = machine(size)
    plan = Plan(given.bank, given.peers, given.rounds, max(about["peak_gflops"].values()))
    print(
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, load "
        f"{about['load_before']} at the start; {about['kernel']} kernel; {given.order} batches of "
        f"{base.batch}, {given.steps} steps, {given.rounds} rounds"
    )
    for name, gflops in about["peak_gflops"].items():
        print(f"  matmul peak, {name}: {gflops:.0f} GFLOPS")
    found: dict[str, Any] = {name: {} for name in given.method}
    for host in given.host:
        for name in given.method:
            result = compare(Work(replace(base, host=host, method=name)), plan)
            found[name][_name(host)] = result
            show(name, _name(host), result, plan)
    if given.banks or given.runs or given.memory_runs:
        first = replace(base, host=given.host[0], method=given.method[0])
        found["scaling"] = scaling(first, given)
        show_scaling(found["scaling"])
    libraries = ("torch", "transformers", "peft", "accelerate", "numpy")
    return found | {
        "machine": about,
        "versions": {"python": platform.python_version(), "peftport": __version__}
        | {n: version(n) for n in libraries},
        "settings": {k: v for k, v in asdict(base).items() if k not in ("host", "method")}
        | {"bank": given.bank, "peers": given.peers, "rounds": given.rounds}
        | {"tolerance": TOLERANCE, "operations_per_token": "4 a weight of the linear layers"},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    given = options(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    with tempfile.TemporaryDirectory() as folder, batches_in(given.order):
        if given.quick:
            with quiet_transformers():
                given.host = [str(pico_bert(Path(folder) / "pico", d_model=128))]
            given.steps, given.rounds, given.bank, given.peers = 3, 1, 3, 2
            given.banks, given.runs, given.memory_runs = [1, 2], [3, 6], [6]
        if given.no_growth:
            given.banks = given.runs = given.memory_runs = []
        try:
            found = measure(given)
        except PeftportError as error:
            print(error, file=sys.stderr)
            return 2
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    agree = [r["losses_agree"] for name in given.method for r in found[name].values()]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
