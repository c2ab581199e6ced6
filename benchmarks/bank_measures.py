"""What benchmarks/bank_vs_peft.py measures beside the comparison: the machine's matmul peak, and
how time and memory of banks grow.

As a script it is the fresh process whose memory is measured:
``python benchmarks/bank_measures.py '{"settings": {...}, "runs": 80, "bank": 8, "threads": 2}'``
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bank_work import Settings, Work, batches_in, run_banks

from peftport.hosts.packed.kernels import Frozen, has_onednn
from peftport.train.fused import train_bank

#: name of a side -> (median, least, most)
Spread = tuple[float, float, float]


def matmul_peaks(size: int, tries: int = 5) -> dict[str, float]:
    """GFLOPS of float32 products [size, size] @ [size, size], best of some tries: by ``torch.mm``,
    and by the product with frozen weights that packed hosts use, where this torch has it."""
    x, weight = torch.randn(size, size), torch.randn(size, size)
    runs: dict[str, Callable[[], Any]] = {"torch.mm": lambda: torch.mm(x, weight)}
    if has_onednn():
        linear = Frozen(weight, None, "onednn")
        runs["packed"] = lambda: linear.forward(x)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(tries):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: 2 * size**3 / seconds / 1e9 for name, seconds in best.items()}


def step_ms_by_bank(work: Work, banks: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Milliseconds a step and module in banks of each size, once a round."""
    found: dict[int, list[float]] = {bank: [] for bank in banks}
    for number in range(rounds + 1):
        for bank in banks:
            slots = [work.slot(seed) for seed in range(bank)]
            began = time.perf_counter()
            list(train_bank(work.host, slots))
            ms = 1000 * (time.perf_counter() - began) / bank / work.settings.steps
            if number:  # the first round warms up
                found[bank].append(ms)
    return found


def seconds_by_runs(
    work: Work, runs: Sequence[int], bank: int, rounds: int
) -> dict[int, list[float]]:
    """Seconds that so many trainings take in banks of one size, once a round."""
    found: dict[int, list[float]] = {count: [] for count in runs}
    for _ in range(rounds):
        for count in runs:
            began = time.perf_counter()
            run_banks(work, count, bank)
            found[count].append(time.perf_counter() - began)
    return found


def peak_mib(settings: Settings, runs: int, bank: int) -> float:
    """Peak memory of a fresh process that loads the host and does so many trainings in banks."""
    facts = {
        "settings": asdict(settings),
        "runs": runs,
        "bank": bank,
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, __file__, json.dumps(facts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the process whose memory is measured failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def _own_peak_mib() -> float:
    """Linux's VmHWM: getrusage's maximum there begins with that of the process that started this
    one, which is the larger of the two. getrusage elsewhere (macOS: bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    facts = json.loads(sys.argv[1])
    torch.set_num_threads(facts["threads"])
    settings = Settings(**facts["settings"])
    with batches_in(settings.order):
        run_banks(Work(settings), facts["runs"], facts["bank"])
    print(_own_peak_mib())


if __name__ == "__main__":
    main()
