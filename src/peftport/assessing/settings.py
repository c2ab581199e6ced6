"""How an adapter is assessed: everything that moves its numbers beside host, adapter and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from peftport.assessing.verdict import Thresholds
from peftport.errors import InputError, UnknownName
from peftport.porting.controls import KINDS
from peftport.report.resample import MIN_LEVELS

#: the seed that learning rates are chosen on; those of the trainings are 0, 1, ...
SEARCH_SEED = 1000
_MOST_SEEDS = 100


@dataclass(frozen=True)
class Settings:
    """Frozen, and refuses nonsense when it is made.

    Attributes:
        budgets: steps at which modules are measured, ascending.
        seeds: trainings of every init, at least three: with fewer, nothing is known of how much
            they differ.
        native_steps: steps of native modules; 0: none are trained, and recovery is not known.
        rates, head_rates: the short lists that every init's learning rates are chosen from.
        batch: examples a step.
        sampled: how the sampled control is drawn.
        train, validation, test: use at most so many texts of each part, chosen by their hashes.
        bank: most modules that are trained together.
        thresholds: where the answers begin.
    """

    budgets: tuple[int, ...] = (0, 10, 30, 100)
    seeds: int = 5
    native_steps: int = 150
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    head_rates: tuple[float, ...] = (1e-3, 1e-2)
    batch: int = 16
    sampled: str = "gaussian"
    train: int = 8000
    validation: int = 300
    test: int = 1000
    bank: int = 16
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        budgets = tuple(sorted(set(self.budgets)))
        object.__setattr__(self, "budgets", budgets)
        if not budgets or budgets[0] != 0:
            raise InputError(
                f"budgets must begin with 0, the module as it is, got {list(self.budgets)}"
            )
        for name, low in (("native_steps", 0), ("batch", 1), ("train", 1), ("validation", 1),
                          ("test", 2), ("bank", 1), ("seeds", MIN_LEVELS)):  # fmt: skip
            if getattr(self, name) < low:
                raise InputError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if self.seeds > _MOST_SEEDS:
            raise InputError(f"seeds must be <= {_MOST_SEEDS}, got {self.seeds}")
        for name in ("rates", "head_rates"):
            if not getattr(self, name) or not all(rate > 0 for rate in getattr(self, name)):
                raise InputError(f"{name} must be numbers > 0, got {list(getattr(self, name))}")
        if self.sampled not in KINDS:
            raise UnknownName("kind of sampled control", self.sampled, KINDS)

    def to_json(self) -> Mapping[str, Any]:
        return asdict(self)
