"""Trains and scores what is compared: ported, sampled, scratch and native modules of one form.

What starts alike is trained in one bank, side by side: every init, seed and adapter is a slot.
Where a host or method has no bank, modules are trained one by one with the reference trainer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from peftport.assessing.data import UserData, constant
from peftport.assessing.settings import SEARCH_SEED, Settings
from peftport.assessing.statistics import Curves
from peftport.data.tasks import Encoded, Task, encode
from peftport.errors import RunError
from peftport.hosts.load import Host
from peftport.methods.base import Module
from peftport.porting.controls import sampled
from peftport.study.chosen import Trial, choose
from peftport.study.materials import Part
from peftport.study.rates import Rate
from peftport.train.evaluate import bank_scores, class_scores
from peftport.train.fused import Slot, train_bank, trains_in_banks
from peftport.train.metrics import metrics
from peftport.train.reference import TrainSpec, fresh_module, train

#: called with (what, trainings that it takes)
Progress = Callable[[str, int], None]
#: logits [S, N, C] by budget; NaN where a training failed
Logits = dict[int, np.ndarray]


@dataclass(frozen=True)
class Controls:
    """What does not depend on the adapter, so that adapters of one form and data share it.

    Attributes:
        scratch: logits of modules by the method's own initialisation.
        native: logits  [S, N, C] of modules trained at length; None where none were.
        floor: logits  [N, C] of the host alone.
        rates: chosen learning rates of ``scratch`` and ``native``.
    """

    scratch: Logits
    native: np.ndarray | None
    floor: np.ndarray
    rates: Mapping[str, Rate]


@dataclass(frozen=True)
class Measured:
    """What one adapter gave.

    Attributes:
        ported, sampled: logits by budget.
        rates: chosen learning rates of the two.
        seconds: its share of the time.
        best: by budget the seed whose ported module scored best on validation texts, and it.
    """

    ported: Logits
    sampled: Logits
    rates: Mapping[str, Rate]
    seconds: float
    best: Mapping[int, tuple[int, Module]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """One training: whose, which init, where it starts, how."""

    name: str
    init: str
    start: Module
    lr: float
    head_lr: float | None
    seed: int


class Bench:
    """One target host with one user's data.

    Args:
        host: the target, as the task needs it.
        data: the user's texts.
        task: how a text is put to the host.
        settings: budgets, seeds, rates.
        progress: told before every round of training.
    """

    def __init__(
        self,
        host: Host,
        data: UserData,
        task: Task,
        settings: Settings,
        progress: Progress | None = None,
    ) -> None:
        self.host, self.data, self.settings = host, data, settings
        self._task = task
        self._tell = progress or (lambda what, count: None)

    def run(
        self,
        ported: Mapping[str, Module],
        controls: Controls | None = None,
        keep: Sequence[int] = (),
    ) -> tuple[Controls, dict[str, Measured]]:
        """Choose rates, train and score.

        Args:
            ported: adapters on the target by name; all of one form.
            controls: what an earlier call gave for this form and data; trained if None.
            keep: budgets at which the best ported module is kept.

        Raises:
            RunError: every learning rate of some init diverged.
        """
        began = time.perf_counter()
        settings = self.settings
        steps = settings.budgets[-1]
        names = list(ported)
        rates: dict[tuple[str, str], Rate] = {}
        if steps:
            short = [(n, i) for n in names for i in ("ported", "sampled")]
            if controls is None:
                short.append(("", "scratch"))
            rates |= self._search(ported, short, steps)
        native: np.ndarray | None = None
        if controls is None and settings.native_steps:
            rates |= self._search(ported, [("", "native")], settings.native_steps)
            runs = self._runs(ported, [("", "native")], rates)
            self._tell("native", len(runs))
            at = (settings.native_steps,)
            native = self._scored(runs, at, self._parts["test"])[0][("", "native")][at[0]]
        wanted = [(n, i) for n in names for i in ("ported", "sampled")]
        if controls is None:
            wanted.append(("", "scratch"))
        runs = self._runs(ported, wanted, rates)
        self._tell("ported, sampled, scratch" if controls is None else "ported, sampled", len(runs))
        logits, kept = self._scored(runs, settings.budgets, self._parts["test"], keep)
        if controls is None:
            own = {init: rate for (name, init), rate in rates.items() if not name}
            controls = Controls(logits[("", "scratch")], native, self._floor(), own)
        share = (time.perf_counter() - began) / len(names)
        return controls, {
            name: Measured(
                logits[(name, "ported")],
                logits[(name, "sampled")],
                {i: rates[(name, i)] for i in ("ported", "sampled") if (name, i) in rates},
                share,
                {b: self._best(modules) for (n, b), modules in kept.items() if n == name},
            )
            for name in ported
        }

    def curves(self, controls: Controls, measured: Measured) -> Curves:
        """What :func:`peftport.assessing.verdict.judge` reads."""
        labels = np.asarray(self._parts["test"][1].labels)
        inits = {
            "ported": measured.ported, "sampled": measured.sampled, "scratch": controls.scratch,
        }  # fmt: skip
        values = {i: {b: self._values(x) for b, x in by.items()} for i, by in inits.items()}
        native = None if controls.native is None else self._values(controls.native)
        floor = self._values(controls.floor[None])[0]
        sizes = np.ones(len(labels))
        if not self.data.classes:
            sizes = controls.floor[:, 1].astype(float)  # tokens of every text
        elif self.host.head:  # an untrained head decides nothing: the constant prediction
            floor = constant(labels)
        return Curves(values, native, floor, labels, sizes)

    def _values(self, logits: np.ndarray) -> np.ndarray:
        """Hits, or the negative loss of a token  [S, N, C] -> [S, N]; NaN where it failed."""
        if not self.data.classes:
            return np.asarray(-logits[..., 0] / logits[..., 1], dtype=float)
        labels = np.asarray(self._parts["test"][1].labels)
        hits = (logits.argmax(axis=-1) == labels).astype(float)
        hits[np.isnan(logits).any(axis=-1)] = np.nan
        return np.asarray(hits)

    def validated(self, logits: np.ndarray) -> float:
        """Score of validation logits  [N, C], larger is better."""
        if not self.data.classes:
            return float(-logits[:, 0].sum() / logits[:, 1].sum())
        labels = np.asarray(self.data.validation.labels)
        return metrics(logits, labels)["balanced_accuracy"]

    # -- inside -----------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> dict[str, tuple[Encoded, Part]]:
        parts = {n: getattr(self.data, n) for n in ("train", "validation", "test")}
        encoded = {
            n: (encode(self.host.tokenizer, p.texts, self._task), p) for n, p in parts.items()
        }
        return encoded if self.data.classes else {n: _long(*both) for n, both in encoded.items()}

    def _floor(self) -> np.ndarray:
        return class_scores(self.host, None, self._parts["test"][0])

    def _start(self, ported: Mapping[str, Module], name: str, init: str, seed: int) -> Module:
        if init == "ported":
            return ported[name]
        if init == "sampled":
            generator = torch.Generator().manual_seed(seed)
            return sampled(ported[name], self.settings.sampled, generator)
        return fresh_module(self.host, next(iter(ported.values())).config, seed)

    def _runs(
        self,
        ported: Mapping[str, Module],
        wanted: Sequence[tuple[str, str]],
        rates: Mapping[tuple[str, str], Rate],
    ) -> list[_Run]:
        """Every seed of these inits at the rates that were chosen."""
        found = []
        for name, init in wanted:
            rate = rates.get((name, init), Rate(self.settings.rates[0]))  # unused at 0 steps
            for seed in range(self.settings.seeds):
                start = self._start(ported, name, init, seed)
                found.append(_Run(name, init, start, rate.lr, rate.head_lr, seed))
        return found

    def _search(
        self, ported: Mapping[str, Module], wanted: Sequence[tuple[str, str]], steps: int
    ) -> dict[tuple[str, str], Rate]:
        """The best rates of the short list for each init, on validation texts and a seed of its
        own."""
        runs = []
        for name, init in wanted:
            start = self._start(ported, name, init, SEARCH_SEED)
            heads = self.settings.head_rates if start.head else (None,)
            for lr in self.settings.rates:
                runs += [_Run(name, init, start, lr, head, SEARCH_SEED) for head in heads]
        self._tell("rates of " + ", ".join(dict.fromkeys(i for _, i in wanted)), len(runs))
        trials = []
        for run, logits in zip(runs, self._last(runs, steps), strict=True):
            bad = bool(np.isnan(logits).any())
            score = None if bad else self.validated(logits)
            trials.append(Trial("", run.name, run.init, run.lr, run.head_lr, score))
        sound = {(t.host, t.init) for t in trials if t.score is not None}
        for name, init in wanted:
            if (name, init) not in sound:
                raise RunError(
                    f"every learning rate of {init} modules diverged; give smaller --rate"
                )
        return {(host, init): rate for (_, host, init), rate in choose(trials).items()}

    def _last(self, runs: Sequence[_Run], steps: int) -> np.ndarray:
        """Validation logits  [R, N, C] of every training after its last step."""
        encoded, _ = self._parts["validation"]
        out = np.full((len(runs), len(encoded), self.host.labels), np.nan, np.float32)
        for rows, _, modules in self._trained(runs, (steps,)):
            self._put(out, rows, modules, encoded)
        return out

    def _scored(
        self,
        runs: Sequence[_Run],
        budgets: Sequence[int],
        part: tuple[Encoded, Part],
        keep: Sequence[int] = (),
    ) -> tuple[dict[tuple[str, str], Logits], dict[tuple[str, int], list[tuple[int, Module]]]]:
        """Logits of every name and init at every budget; ported modules at the budgets in
        ``keep``, by name and budget."""
        encoded, _ = part
        shape = (len(runs), len(encoded), self.host.labels)
        out = {b: np.full(shape, np.nan, np.float32) for b in budgets}
        kept: dict[tuple[str, int], list[tuple[int, Module]]] = {}
        for rows, budget, modules in self._trained(runs, budgets):
            self._put(out[budget], rows, modules, encoded)
            for row, module in zip(rows, modules, strict=True):
                if budget in keep and runs[row].init == "ported" and isinstance(module, Module):
                    own = kept.setdefault((runs[row].name, budget), [])
                    own.append((runs[row].seed, module))
        places: dict[tuple[str, str], list[int]] = {}
        for at, run in enumerate(runs):
            places.setdefault((run.name, run.init), []).append(at)
        logits = {who: {b: values[at] for b, values in out.items()} for who, at in places.items()}
        return logits, kept

    def _best(self, kept: Sequence[tuple[int, Module]]) -> tuple[int, Module]:
        """The one with the best validation score; of equals the first."""
        encoded, _ = self._parts["validation"]
        out = np.full((len(kept), len(encoded), self.host.labels), np.nan, np.float32)
        self._put(out, range(len(kept)), [module for _, module in kept], encoded)
        return kept[int(np.argmax([self.validated(logits) for logits in out]))]

    def _put(
        self,
        out: np.ndarray,
        rows: Sequence[int],
        modules: Sequence[Module | Exception],
        encoded: Encoded,
    ) -> None:
        """Logits of the sound ones among modules, into their rows."""
        sound = [(r, m) for r, m in zip(rows, modules, strict=True) if isinstance(m, Module)]
        if not sound:
            return
        own = [module for _, module in sound]
        if all(trains_in_banks(self.host, module.config) for module in own):
            found = list(bank_scores(self.host, own, encoded))
        else:
            found = [class_scores(self.host, module, encoded) for module in own]
        for (row, _), logits in zip(sound, found, strict=True):
            if np.isfinite(logits).all():
                out[row] = logits

    def _trained(
        self, runs: Sequence[_Run], budgets: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], int, Sequence[Module | Exception]]]:
        """(rows of ``runs``, budget, their modules) as they come."""
        encoded, part = self._parts["train"]
        for rows in self._banks(runs):
            slots = [
                Slot(
                    runs[row].start,
                    encoded,
                    part.labels,
                    TrainSpec(
                        steps=max(budgets),
                        lr=runs[row].lr,
                        head_lr=runs[row].head_lr,
                        batch_size=self.settings.batch,
                        seed=runs[row].seed,
                    ),
                )
                for row in rows
            ]
            if all(trains_in_banks(self.host, slot.module.config) for slot in slots):
                for budget, made in train_bank(self.host, slots, budgets):
                    yield rows, budget, made
            else:
                for row, slot in zip(rows, slots, strict=True):
                    yield from self._alone(row, slot, budgets)

    def _alone(
        self, row: int, slot: Slot, budgets: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], int, Sequence[Module]]]:
        try:
            for budget, module in train(
                self.host, slot.module, slot.encoded, slot.labels, slot.spec, budgets
            ):
                yield [row], budget, [module]
        except RunError:  # diverged: what is missing says so
            return

    def _banks(self, runs: Sequence[_Run]) -> Iterator[list[int]]:
        """Rows of like modules, in banks of sizes that differ by at most one."""
        groups: dict[object, list[int]] = {}
        for row, run in enumerate(runs):
            shapes = tuple((name, tuple(t.shape)) for name, t in run.start.tensors())
            groups.setdefault((run.start.config, shapes), []).append(row)
        for rows in groups.values():
            count = math.ceil(len(rows) / self.settings.bank)
            bounds = [len(rows) * at // count for at in range(count + 1)]
            yield from (rows[a:b] for a, b in pairwise(bounds))


def _long(encoded: Encoded, part: Part) -> tuple[Encoded, Part]:
    """Without texts of one token, which predict nothing."""
    keep = [at for at, ids in enumerate(encoded.ids) if len(ids) > 1]
    return (
        Encoded([encoded.ids[at] for at in keep]),
        Part(tuple(part.texts[at] for at in keep), tuple(part.labels[at] for at in keep)),
    )
