"""The contract of an exporter: a store's results, for a tracker of experiments.

A tracker's run is one training: its parameters say what it was, and its metrics stand at the steps
of its budgets. Everything comes from the store's long table, so a study can be exported at any
time, from a copy, and again: what a tracker has already is left alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peftport.errors import InputError
from peftport.registry import Registry
from peftport.study.export import long_frame
from peftport.study.store import Store

#: what identifies a row, beside its key; runs may share a training
_PARAMETERS = (
    "kind", "method", "source", "target", "data", "seed", "source_seed", "init", "lr", "head_lr",
    "parameters", "split",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One finished row of a study.

    Attributes:
        name: for people, e.g. ``lora minilm-large to minilm-base ported same seed 0``.
        id: unique within the study and the same at every export.
        parameters: what it was, values as text or numbers; absent ones are left out.
        metrics: budget to metric to value.
    """

    name: str
    id: str
    parameters: Mapping[str, Any]
    metrics: Mapping[int, Mapping[str, float]]


def records(store: Store) -> Iterator[Record]:
    """Every finished row, in the order of the export; metrics that are not numbers are left out."""
    frame = long_frame(store)
    names = [*_PARAMETERS, "key"]
    for values, rows in frame.groupby(names, sort=False, dropna=False):
        facts = {n: v for n, v in zip(names, values, strict=True) if v == v and v != ""}
        metrics: dict[int, dict[str, float]] = {}
        for budget, metric, value in zip(
            rows["budget"], rows["metric"], rows["value"], strict=True
        ):
            if math.isfinite(value):
                metrics.setdefault(int(budget), {})[str(metric)] = float(value)
        way = facts["target"]
        if facts["source"] != facts["target"]:
            way = f"{facts['source']} to {facts['target']}"
        name = f"{facts.get('method', 'host')} {way} {facts['init']} {facts['data']}"
        name += f" seed {facts['seed']}"
        places = [str(facts.get(n, "")) for n in ("kind", "source", "data", "seed", "init")]
        yield Record(
            f"{name} seed {facts['seed']}", "/".join([facts["key"], *places]), facts, metrics
        )


class Exporter(ABC):
    """Writes a study's results into a tracker. Its library is imported when it is used."""

    name: ClassVar[str]
    #: what to install, for the message where it is missing
    package: ClassVar[str]
    #: what ``--place`` is there
    place: ClassVar[str]

    @abstractmethod
    def export(self, store: Store, project: str, place: str | None) -> int:
        """Write what is not there yet.

        Args:
            store: the study.
            project: the tracker's project or experiment.
            place: where the tracker keeps it; None: its own default.

        Returns:
            How many rows were written.
        """

    def missing(self) -> InputError:
        return InputError(
            f"exporter '{self.name}' needs the package {self.package}; install it with: "
            f"pip install {self.package}"
        )


exporters: Registry[type[Exporter]] = Registry("exporter", "peftport.study.exporters")
