"""Banks against PEFT on one device, on hosts of T5 v1.1 shapes with random weights.

    python benchmarks/gpu_bank_vs_peft.py --shape base --json out.json

The same host, texts, batches in the same order, initial parameters, rates and clip on every side:
(trainer) PEFT and transformers' Trainer, (loop) PEFT and a plain torch loop, each one module after
another; (bank) K modules at once, for several K. Host weights have ``--dtype``, modules and
optimiser are float32 everywhere. Rounds are interleaved, times are medians over rounds, and the
device is waited for at both ends of each. Sides whose final losses differ by more than a share of
what training changed did not do the same work: the exit code is then 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_work import CONFIGS, SHAPES, Settings, Theirs, Work, by_bank, make_host

from peftport import __version__
from peftport.errors import PeftportError
from peftport.hosts.packed.device import (
    DEVICES,
    DTYPES,
    dtype_named,
    use_deterministic,
    use_device,
)
from peftport.train import fused

#: how far a side's final loss may be from the bank's, as a share of how far training moved it
TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.1}
#: steps of the trainings that warm up
_WARM = 3
PEERS = {"trainer": "peft + Trainer", "loop": "peft + plain loop"}


def compare(work: Work, banks: Sequence[int], peers: int, rounds: int) -> dict[str, Any]:
    """All sides on one host and method."""
    own = work.settings
    slots = [work.slot(seed) for seed in range(max(banks))]
    theirs = Theirs(work)
    sides = {"trainer": theirs.by_trainer, "loop": theirs.by_loop}
    ms: dict[str, list[float]] = {name: [] for name in (*sides, *(f"bank {k}" for k in banks))}
    peak: dict[str, int] = {}
    losses: dict[str, list[float]] = {}
    short = [replace(slot, spec=replace(slot.spec, steps=_WARM)) for slot in slots]
    for side in sides.values():
        side(short[0])
    for bank in banks:
        by_bank(work, short[:bank])
    for _ in range(rounds):
        for name, side in sides.items():
            _fresh(own.device)
            losses[name], seconds = [], []
            for slot in slots[:peers]:
                seconds.append(side(slot))
                losses[name].append(theirs.held_loss())
            ms[name].append(1000 * statistics.fmean(seconds) / own.steps)
            peak |= _peak(own.device, name)
        for bank in banks:
            name = f"bank {bank}"
            _fresh(own.device)
            taken, made = by_bank(work, slots[:bank])
            ms[name].append(1000 * taken / bank / own.steps)
            peak |= _peak(own.device, name)
            losses[name] = work.held_losses(made[:peers])
    start = work.held_losses([slot.module for slot in slots[:peers]])
    reference = losses[f"bank {max(banks)}"]
    moved = statistics.fmean(abs(a - b) for a, b in zip(start, reference, strict=True))
    gap = {
        name: max(abs(a - b) for a, b in zip(found, reference, strict=False))
        for name, found in losses.items()
    }
    medians = {name: statistics.median(values) for name, values in ms.items()}
    return {
        "ms_per_step": {n: (medians[n], min(v), max(v)) for n, v in ms.items()},
        "examples_per_s": {n: 1000 * own.batch / value for n, value in medians.items()},
        "ratio": {
            f"bank {k}": {peer: medians[peer] / medians[f"bank {k}"] for peer in sides}
            for k in banks
        },
        "peak_gib": {n: b / 2**30 for n, b in peak.items()},
        "tokens_per_step": work.tokens_a_step(slots[:peers]),
        "loss_start": start,
        "loss": losses,
        "loss_gap": gap,
        "loss_moved": moved,
        "losses_agree": max(gap.values()) <= TOLERANCE[own.dtype] * moved,
    }


def _fresh(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device, name: str) -> dict[str, int]:
    return {name: torch.cuda.max_memory_reserved(device)} if device.type == "cuda" else {}


def show(title: str, found: dict[str, Any], tolerance: float) -> None:
    print(f"\n{title}, {found['tokens_per_step']:.0f} tokens a module and step")
    head = ("", "ms a module and step", "texts/s", "x Trainer", "x loop", "peak GiB")
    print("  {:<18}{:>24}{:>10}{:>11}{:>9}{:>10}".format(*head))
    for name, (median, low, high) in found["ms_per_step"].items():
        ratio = found["ratio"].get(name, {})
        cells = [f"{ratio[p]:.1f}" if p in ratio else "" for p in PEERS]
        peak = f"{found['peak_gib'][name]:.1f}" if name in found["peak_gib"] else "-"
        spread = f"{median:.2f} ({low:.2f} to {high:.2f})"
        speed = f"{found['examples_per_s'][name]:,.0f}"
        label = PEERS.get(name, name)
        print(f"  {label:<18}{spread:>24}{speed:>10}{cells[0]:>11}{cells[1]:>9}{peak:>10}")
    verdict = "agree" if found["losses_agree"] else "DISAGREE"
    gaps = ", ".join(f"{name} {gap:.1e}" for name, gap in found["loss_gap"].items())
    print(
        f"  losses moved by {found['loss_moved']:.4f} and {verdict} to {100 * tolerance:g}% of it: "
        f"{gaps}",
        flush=True,
    )


def about(device: torch.device) -> dict[str, Any]:
    """The device and the versions that numbers belong to."""
    name = platform.processor() or platform.machine()
    facts: dict[str, Any] = {"device": name, "python": platform.python_version()}
    if device.type == "cuda":
        own = torch.cuda.get_device_properties(device)
        facts |= {"device": own.name, "memory_gib": round(own.total_memory / 2**30, 1)}
        facts |= {"cuda": torch.version.cuda, "capability": f"{own.major}.{own.minor}"}
    return facts | {"versions": {"peftport": __version__, **_versions()}}


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "peft", "accelerate", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="[base]")
    parser.add_argument("--method", action="append", choices=list(CONFIGS), help="[lora]")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--banks", default="1,8,32", metavar="K,K,...")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=int, default=1, help="modules PEFT trains a round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--varied", action="store_true", help="texts of 16 tokens and more")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--no-graphs", action="store_true", help="start every kernel of a step")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    given.shape, given.method = given.shape or ["base"], given.method or ["lora"]
    given.banks = [int(part) for part in given.banks.split(",")]
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = options(arguments)
    warnings.filterwarnings("ignore", module="transformers|peft|torch.utils.data")
    try:
        device, dtype = use_device(given.device), dtype_named(given.dtype)
        fused.GRAPHS = not given.no_graphs
        if given.deterministic:
            use_deterministic(device)
        facts = about(device)
        print(json.dumps(facts))
        results: dict[str, Any] = {}
        for shape in given.shape:
            host = make_host(shape, dtype, device)
            for method in given.method:
                settings = Settings(
                    shape, method, given.steps, given.batch, given.tokens, given.lr,
                    given.varied, dtype, device,
                )  # fmt: skip
                found = compare(Work(settings, host), given.banks, given.peers, given.rounds)
                title = f"{method}, t5-v1_1-{shape} shape, {given.dtype}, batch {given.batch}"
                show(title, found, TOLERANCE[dtype])
                results.setdefault(shape, {})[method] = found
            del host
    except PeftportError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        torch.use_deterministic_algorithms(False)
    if given.json:
        kept = {k: v for k, v in vars(given).items() if k != "json"}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": facts, "settings": kept, "results": results}, indent=2)
        given.json.write_text(text + "\n")
    agree = [found["losses_agree"] for own in results.values() for found in own.values()]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
