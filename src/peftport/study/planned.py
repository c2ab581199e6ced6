"""What a store is told before the first bank, and what it is given after each. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftport.study.expand import Run
from peftport.study.grid import Study


@dataclass(frozen=True)
class Planned:
    """A study with everything that its numbers depend on.

    Attributes:
        study: the grid.
        rows: its runs, each with the key of the training that answers it; runs may share one.
        ingredients: key to everything that can move its numbers.
        facts: hosts, data and numerics of the plan; a resumed study must find them unchanged.
        sentences: (id, class) of every sentence that is measured on, in the order of the scores.
        environment: what was decided once (``threads``, ``bank``, ``kernel``), versions, machine;
            recorded when the store is made and kept when resumed.
        guard: what the leak guard looked at and dropped.
    """

    study: Study
    rows: tuple[tuple[Run, str], ...]
    ingredients: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]
    sentences: tuple[tuple[str, int], ...]
    environment: Mapping[str, Any]
    guard: Mapping[str, int]


@dataclass(frozen=True)
class Measure:
    """Class logits  [N, C] after ``budget`` steps, and the digest of the module that gave them."""

    budget: int
    scores: np.ndarray
    module: str


@dataclass(frozen=True)
class Outcome:
    """What one training gave: measures and its last module, or an error with its traceback.

    ``seconds`` is its share of its bank's; ``split`` says that the bank was not done whole.
    """

    key: str
    seconds: float
    measures: tuple[Measure, ...] = ()
    parameters: int = 0
    module: bytes | None = None
    error: str | None = None
    traceback: str | None = None
    split: bool = False


def by_dotted_name(facts: Mapping[str, Any], start: str = "") -> dict[str, str]:
    """Nested facts side by side: the dotted way to each, and what is there as JSON."""
    found: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            found |= by_dotted_name(value, f"{start}{key}.")
        else:
            found[f"{start}{key}"] = json.dumps(value)
    return found
