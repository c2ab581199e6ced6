"""Compare the memory that a plan predicts for a bank with what a fresh process takes (Linux).

    python benchmarks/memory_prediction.py --shape large --banks 1 4 --json out.json

A host of a T5 v1.1 shape with random weights in float32 on the CPU, LoRA, batches of 16 texts of
one length, two steps. Measured is the most resident memory of the process, less what it held before
the host was made. A plan assumes the kernel that takes most memory, onednn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_work import SHAPES, Settings, Work, by_bank, make_host

from peftport.hosts.packed.kernels import KERNELS, use_kernel
from peftport.study.estimate import host_bytes
from peftport.train.sizing import bank_bytes


def measure(shape: str, bank: int, tokens: int, kernel: str) -> dict[str, Any]:
    """In this process: what is predicted and what is taken."""
    torch.set_num_threads(1)
    use_kernel(kernel)
    before = _resident("VmRSS")
    host = make_host(shape, torch.float32, torch.device("cpu"))
    settings = Settings(
        shape, "lora", 2, 16, tokens, 1e-4, False, torch.float32, torch.device("cpu")
    )
    work = Work(settings, host)
    by_bank(work, [work.slot(seed) for seed in range(bank)])
    taken = _resident("VmHWM") - before
    predicted = host_bytes(host.spec) + bank_bytes(host.spec, bank, 16 * tokens)
    return {
        "shape": shape, "bank": bank, "tokens": tokens, "kernel": kernel,
        "predicted_bytes": predicted, "taken_bytes": taken, "ratio": predicted / taken,
    }  # fmt: skip


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="large")
    parser.add_argument("--banks", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--tokens", type=int, default=28)
    parser.add_argument("--kernel", choices=KERNELS, default="onednn")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    found = []
    for bank in given.banks:  # each in a process of its own: memory is not all given back
        call = f"{given.shape!r}, {bank}, {given.tokens}, {given.kernel!r}"
        code = f"import json, memory_prediction as m; print(json.dumps(m.measure({call})))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        own = json.loads(done.stdout.splitlines()[-1])
        found.append(own)
        predicted, taken = (own[f"{n}_bytes"] / 2**30 for n in ("predicted", "taken"))
        print(
            f"t5-v1_1-{own['shape']} shape, bank of {bank}: predicted "
            f"{predicted:.2f} GiB, taken {taken:.2f} GiB, ratio {own['ratio']:.2f}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
