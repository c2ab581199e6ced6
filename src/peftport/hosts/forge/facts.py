"""What is recorded of how a host was made: the manifest and the cards say exactly this."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import __version__ as transformers_version

from peftport.hosts.forge.corpus import Corpus
from peftport.hosts.forge.loop import StageLog


class Stage(Protocol):
    """Result of a training stage: held-out losses by name before and after, and its log."""

    @property
    def before(self) -> dict[str, float]: ...
    @property
    def after(self) -> dict[str, float]: ...
    @property
    def log(self) -> StageLog: ...


def stage_facts(
    parent: str,
    identity: str,
    quick: bool,
    recipe: Mapping[str, Any],
    corpus: Corpus,
    stage: Stage,
) -> dict[str, Any]:
    """Parent, recipe, text, losses, steps, time and machine of one trained host."""
    log = stage.log
    return {
        "identity": identity,
        "parent": parent,
        "quick": quick,
        "recipe": dict(recipe),
        "corpus": {**corpus.counts(), "sha256": corpus.digest},
        "losses": {
            "first_window": log.losses[0],
            "last_window": log.losses[-1],
            "held_out_before": stage.before,
            "held_out_after": stage.after,
        },
        "steps": log.steps,
        "training_s": round(log.wall_s, 1),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """Kind of machine, its cores and the threads in use."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The processor's name where the system says it, else ""."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")


def versions() -> dict[str, str]:
    """Of Python and of the libraries that compute."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers_version,
    }
