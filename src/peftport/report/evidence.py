"""What a report knows: the export of one study, in the shape that statistics need.

Nothing here computes a statistic, and nothing in this package imports torch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

#: a grid run is identified by these; two runs that differ only in ``init`` form a pair
PAIR = ["method", "source", "target", "data", "seed"]
INITS = ("ported", "sampled", "scratch")
CONTROLS = ("scratch", "sampled")
ABLATIONS = ("head-only", "body-only", "probe")
#: shown in this order; the first is the one that answers follow
METRICS = ("balanced_accuracy", "accuracy", "auc")
METRIC_NAMES = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "auc": "AUC"}


@dataclass(frozen=True)
class Evidence:
    """A study as its store tells it.

    Attributes:
        cells: one line per run and budget: ``kind`` (grid, ablation, native, source, floor),
            ``method``, ``source``, ``target``, ``data``, ``seed``, ``init``, ``budget``, ``key``
            and one column per metric. Runs that share one training share its ``key``.
        scores: ``(key, budget)`` to the class logits ``[N, C]`` on the test sentences, or None
            where the store has none.
        labels: true class of every test sentence ``[N]``.
        sizes: host name to what makes two hosts the same size, e.g. ``"6x384"``; hosts that are
            absent have an unknown size.
        floors: target host to how its floor is defined: ``constant`` (the constant prediction) or
            ``host`` (the host alone, run ``init == "host"``).
        facts: label and text of what was run, in the order of the page.
        one_source: whether all target seeds of a method and host share one source module, so that
            every interval is conditional on it.
        planned: number of runs that the grid asks for, by kind.
        missing: one line per planned run that is not finished.
        failed: one line per failed run with its ``error``.
        guard: lines of the leak guard: what was checked and how much was found.
        digest: digest of the grid file: what was planned before anything ran.
        volumes: host name to layers x width², which orders hosts by size; absent where unknown.
        costs: one line per training that a run of the grid needs: ``key``, ``kind``, ``method``,
            ``init``, trained ``parameters`` and ``seconds`` (NaN where not recorded).
        constants: metric to the score of a constant prediction, where ``labels`` is empty.
        complete: whether ``planned``, ``missing`` and ``failed`` are known.
    """

    cells: pd.DataFrame
    scores: Callable[[str, int], np.ndarray | None]
    labels: np.ndarray
    name: str = "study"
    sizes: Mapping[str, str] = field(default_factory=dict)
    floors: Mapping[str, str] = field(default_factory=dict)
    facts: Sequence[tuple[str, str]] = ()
    one_source: bool = True
    planned: Mapping[str, int] = field(default_factory=dict)
    missing: pd.DataFrame = field(default_factory=pd.DataFrame)
    failed: pd.DataFrame = field(default_factory=pd.DataFrame)
    guard: Sequence[tuple[str, str]] = ()
    digest: str = ""
    volumes: Mapping[str, float] = field(default_factory=dict)
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)
    constants: Mapping[str, float] = field(default_factory=dict)
    complete: bool = True

    @cached_property
    def grid(self) -> pd.DataFrame:
        """The study's own runs: ported, sampled and scratch, one line per run and budget."""
        return self._of(("grid",), INITS)

    @cached_property
    def ablations(self) -> pd.DataFrame:
        """Half modules and probes, whether beside the grid or a grid of their own."""
        return self._of(("grid", "ablation"), ABLATIONS)

    def _of(self, kinds: Sequence[str], inits: Sequence[str]) -> pd.DataFrame:
        mask = self.cells["kind"].isin(list(kinds)) & self.cells["init"].isin(list(inits))
        return self.cells[mask]

    def at(self, budget: int) -> pd.DataFrame:
        """Grid and ablation runs at one budget."""
        if budget not in self._at:
            cells = self.cells[self.cells["kind"].isin(["grid", "ablation"])]
            self._at[budget] = cells[cells["budget"] == budget]
        return self._at[budget]

    @cached_property
    def _at(self) -> dict[int, pd.DataFrame]:
        return {}

    def native(self, method: str, host: str) -> pd.DataFrame:
        """Modules of a method trained at length on a host and the target's own data: native ones,
        and source modules of that host, each training once."""
        cells = self.cells[self.cells["kind"].isin(["native", "source"])]
        own = (cells["method"] == method) & (cells["target"] == host) & (cells["data"] == "same")
        return cells[own].drop_duplicates("key")

    @cached_property
    def budgets(self) -> list[int]:
        return sorted(int(budget) for budget in self.grid["budget"].unique())

    @cached_property
    def claim_budgets(self) -> list[int]:
        """Zero-shot and the smallest budget above it: where the claims are answered."""
        above = [budget for budget in self.budgets if budget > 0]
        return [budget for budget in self.budgets if budget == 0] + above[:1]

    @cached_property
    def methods(self) -> list[str]:
        return sorted(self.grid["method"].unique())

    @property
    def metrics(self) -> list[str]:
        return [metric for metric in METRICS if metric in self.cells.columns]

    def floor(self, target: str, metric: str) -> tuple[str, float]:
        """Name and value of the floor of a target host.

        For encoder hosts the constant prediction: balanced accuracy 1/C, accuracy the share of the
        most frequent class, AUC 0.5. For hosts that decide by a word, the host alone.
        """
        if self.floors.get(target, "constant") == "host":
            alone = self.cells[(self.cells["init"] == "host") & (self.cells["target"] == target)]
            value = float(alone[metric].mean()) if len(alone) else float("nan")
            return "host alone", value
        if not len(self.labels):
            return "constant prediction", float(self.constants.get(metric, float("nan")))
        return "constant prediction", constant_score(self.labels, metric)


def sentence_count(evidence: Evidence) -> str:
    """``300 test sentences``, or that they are unknown."""
    count = len(evidence.labels)
    if not count:
        return "test sentences held fixed"
    return f"{count:,} test sentence{'' if count == 1 else 's'}"


def constant_score(labels: np.ndarray, metric: str) -> float:
    """Score of the best constant prediction on these labels ``[N]``."""
    _, counts = np.unique(labels, return_counts=True)
    if metric == "balanced_accuracy":
        return 1.0 / len(counts)
    return float(counts.max() / counts.sum()) if metric == "accuracy" else 0.5


def visible(text: object) -> str:
    r"""Text whose control, format and direction marks are spelled out, so that a name shows what
    it contains.

    >>> visible("a\u202eb")
    'a\\u202eb'
    """
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char)[0] == "C" else char
        for char in str(text)
    )


def pair_name(source: str, target: str) -> str:
    return f"{source} → {target}"


def tidy(frame: pd.DataFrame, extra: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Long export (one line per run, budget and metric) to one line per run and budget.

    Columns that the export lacks are filled from ``extra`` or left empty; every text is made
    visible. Rate-search runs are left out: they chose the rates and are no evidence.
    """
    index = ["kind", *PAIR, "init", "budget", "key"]
    long = frame.copy()
    for column, value in {"kind": "grid", **(extra or {})}.items():
        if column not in long.columns:
            long[column] = value
    long = long[(long["kind"] != "rate") & long["value"].notna()]
    for column in ["kind", "method", "source", "target", "data", "init", "key"]:
        long[column] = [visible(value) if pd.notna(value) else "" for value in long[column]]
    long["seed"] = [int(value) if pd.notna(value) and value != "" else -1 for value in long["seed"]]
    long["budget"] = long["budget"].astype(int)
    wide = long.pivot_table(index=index, columns="metric", values="value", aggfunc="first")
    wide.columns.name = None
    wide = wide.reset_index().sort_values(index, ignore_index=True)
    # thousands of selections follow, and plain objects are selected several times faster
    return wide.astype(dict.fromkeys(("kind", *PAIR[:4], "init", "key"), object))
