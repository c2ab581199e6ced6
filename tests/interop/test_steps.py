"""The two steps of ``make interop`` that run in peftport's own environment, and that they can fail.

What AdapterHub and PEFT on transformers 4.57 read and write is checked by ``make interop``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "golden" / "interop.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120
    )


def test_peftport_reads_what_it_wrote_and_a_changed_number_is_noticed(tmp_path: Path) -> None:
    done = run("write", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (tmp_path / "ours").rename(tmp_path / "theirs")
    good = run("check", str(tmp_path))
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.count("equal") == done.stdout.count("written") > 10
    file = tmp_path / "theirs" / "bert-compacter" / "expected.safetensors"
    save_file({"logits": load_file(file)["logits"] + 1e-3 * torch.eye(3, 2)}, file)
    bad = run("check", str(tmp_path))
    assert bad.returncode == 1
    assert bad.stdout.count("DIFFERS") == 1


def test_a_step_without_the_one_before_it_fails(tmp_path: Path) -> None:
    done = run("check", str(tmp_path))
    assert done.returncode == 1
    assert "run the step before" in done.stderr
    assert run("nonsense", str(tmp_path)).returncode == 2
