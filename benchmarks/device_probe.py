"""Measure this device in about a minute, for ``peftport study plan --probe FILE``.

    python benchmarks/device_probe.py --json device.json

Matrix products in float32 and bfloat16, memory bandwidth, free memory, and the time and memory of a
bank's training step on hosts of T5 v1.1 shapes with random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_bank_vs_peft import about
from gpu_work import SHAPES, Settings, Work, by_bank, make_host, timed

from peftport.errors import PeftportError
from peftport.hosts.packed.device import DEVICES, DTYPES, dtype_named, free_bytes, use_device
from peftport.study.estimate import body_parameters
from peftport.study.sizing import available_bytes

#: what :func:`peftport.study.probe.read_probe` understands
FORMAT = 1


def rate(device: torch.device, work: Callable[[], Any], amount: float, tries: int = 5) -> float:
    """Amount a second, best of some tries."""
    timed(device, work)
    return amount / min(timed(device, work)[0] for _ in range(tries))


def matmul_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    x, y = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return rate(device, lambda: x @ y, 2 * size**3)


def bandwidth(device: torch.device, size_bytes: int) -> float:
    """Bytes a second of a copy, read and written."""
    x = torch.randint(0, 255, (size_bytes,), dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return rate(device, lambda: y.copy_(x), 2 * size_bytes)


def bank_step(work: Work, bank: int) -> dict[str, Any]:
    """Seconds and memory of a step, and the arithmetic a second that makes of it."""
    own = work.settings
    slots = [work.slot(seed) for seed in range(bank)]
    warm = Work(replace(own, steps=3), work.host)
    by_bank(warm, [warm.slot(seed) for seed in range(bank)])
    if own.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(own.device)
    seconds = by_bank(work, slots)[0] / own.steps
    tokens = work.tokens_a_step(slots)
    weights = body_parameters(work.host.spec)
    peak = torch.cuda.max_memory_reserved(own.device) if own.device.type == "cuda" else None
    return {
        "shape": own.shape,
        "weights": weights,
        "dtype": str(own.dtype).removeprefix("torch."),
        "bank": bank,
        "tokens": tokens,
        "step_s": seconds,
        "flop_per_s": 4 * weights * tokens * bank / seconds,
        "peak_bytes": peak,
    }


def probe(given: argparse.Namespace) -> dict[str, Any]:
    device = use_device(given.device)
    size = given.size or (8192 if device.type == "cuda" else 1024)
    found: dict[str, Any] = {
        "format": FORMAT,
        "about": about(device),
        "kind": device.type,
        "free_bytes": free_bytes(device) if device.type == "cuda" else available_bytes(),
        "matmul_flops": {n: matmul_flops(device, t, size) for n, t in DTYPES.items()},
        "bytes_per_s": bandwidth(device, (1 << 32) if device.type == "cuda" else (1 << 26)),
        "banks": [],
    }
    for shape in given.shape:
        host = make_host(shape, dtype_named(given.dtype), device)
        settings = Settings(shape, "lora", given.steps, 16, 64, 1e-3, True, host.dtype, device)
        work = Work(settings, host)
        for bank in given.banks:
            found["banks"].append(bank_step(work, bank))
        del work, host
    return found


def show(found: dict[str, Any]) -> None:
    print(found["about"]["device"])
    for name, flops in found["matmul_flops"].items():
        print(f"  matrix product, {name:<9}{flops / 1e12:10.2f} TFLOP/s")
    print(
        f"  copy {found['bytes_per_s'] / 1e9:.0f} GB/s; free {found['free_bytes'] / 2**30:.1f} GiB"
    )
    for own in found["banks"]:
        peak = f", peak {own['peak_bytes'] / 2**30:.1f} GiB" if own["peak_bytes"] else ""
        print(
            f"  lora on t5-v1_1-{own['shape']} shape, {own['dtype']}, bank of {own['bank']}: "
            f"{1000 * own['step_s']:.1f} ms a step, {own['flop_per_s'] / 1e12:.2f} TFLOP/s{peak}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["base", "large"])
    parser.add_argument("--banks", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--size", type=int, help="of the matrices; default 8192, on a CPU 1024")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        found = probe(given)
    except PeftportError as error:
        print(error, file=sys.stderr)
        return 2
    show(found)
    print(f"  measured in {time.perf_counter() - began:.0f} s")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
