"""What becomes of a bank whose workers die, without Ray: a stand-in says who dies."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from peftport.errors import RunError
from peftport.study.executors.base import BankJob, Job
from peftport.study.executors.ray import RayExecutor, _Part
from peftport.study.planned import Outcome
from peftport.testing.contracts_executor import ToyWorker, one_bank

Death = Callable[[tuple[str, ...], int], str | None]


class Acted(RayExecutor):
    """One worker after the other; ``death`` is told the keys and how many calls there were."""

    def __init__(self, death: Death) -> None:
        super().__init__(ToyWorker)
        self._death, self._room, self._queue = death, 2, list[_Part]()
        self.calls: list[str] = []

    def _has_room(self) -> bool:
        return len(self._queue) < self._room

    def _give(self, part: _Part) -> None:
        self._queue.append(part)
        self._busy = {"there": (None, part)}

    def _take(self) -> tuple[_Part, list[Outcome], str | None]:
        part = self._queue.pop(0)
        if not self._queue:
            self._busy = {}
        keys = tuple(job.key for job in part.jobs)
        self.calls.append(" ".join(keys))
        death = self._death(keys, len(self.calls))
        return part, [] if death else ToyWorker().do(BankJob(part.jobs)), death


def done(death: Death, *banks: BankJob) -> tuple[list[list[Outcome]], list[str]]:
    executor = Acted(death)
    executor._ray = type("Ray", (), {"kill": staticmethod(lambda actor: None)})
    return list(executor.run(iter(banks))), executor.calls


def flags(outcomes: list[Outcome]) -> list[bool]:
    return [outcome.split for outcome in outcomes]


@pytest.mark.parametrize("poison", ["k0", "k3", "k4"])
def test_halving_finds_the_one_that_kills(poison: str) -> None:
    kinds = ["good"] * 5
    (outcomes,), calls = done(lambda keys, _: "died" if poison in keys else None, one_bank(*kinds))
    assert [o.key for o in outcomes if o.error] == [poison]
    assert [o.key for o in outcomes] == [f"k{n}" for n in range(5)]
    assert all(flags(outcomes))
    assert calls[:2] == ["k0 k1 k2 k3 k4"] * 2
    assert calls.count(poison) == 2


def test_one_death_changes_nothing() -> None:
    (outcomes,), calls = done(lambda _, n: "died" if n == 1 else None, one_bank("good", "good"))
    assert calls == ["k0 k1"] * 2
    assert flags(outcomes) == [False, False]


def test_what_died_waits_for_all_others() -> None:
    banks = [BankJob((Job(f"b{n}", "good"),)) for n in range(6)]
    lists, calls = done(lambda _, n: "died" if n == 1 else None, *banks)
    assert calls == ["b0", "b1", "b2", "b3", "b4", "b5", "b0"]
    assert [outcomes[0].key for outcomes in lists][-1] == "b0"


def test_deaths_by_chance_leave_a_whole_bank() -> None:
    (outcomes,), calls = done(lambda _, n: "died" if n <= 2 else None, one_bank("good", "good"))
    assert calls == ["k0 k1", "k0 k1", "k0", "k1", "k0 k1"]
    assert flags(outcomes) == [False, False]


def test_what_dies_whole_alone_is_kept_in_parts() -> None:
    death: Death = lambda keys, _: "died" if len(keys) > 2 else None  # noqa: E731
    (outcomes,), calls = done(death, one_bank(*["good"] * 4))
    assert calls == ["k0 k1 k2 k3"] * 2 + ["k0 k1", "k2 k3", "k0 k1 k2 k3"]
    assert all(flags(outcomes))
    assert not any(o.error for o in outcomes)


@pytest.mark.parametrize(
    "death",
    [
        "ActorDiedError: Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: ...",
        "Task was killed due to the node running low on memory.",
    ],
)
def test_a_bank_that_takes_too_much_memory_is_halved_at_once(death: str) -> None:
    (outcomes,), calls = done(
        lambda keys, _: death if len(keys) > 1 else None, one_bank("good", "good")
    )
    assert calls == ["k0 k1", "k0", "k1"]
    assert flags(outcomes) == [True, True]


def test_a_killed_worker_is_not_taken_for_one_without_memory() -> None:
    death = "The process is killed by SIGKILL by OOM killer due to high memory usage, or ..."
    _, calls = done(lambda _, n: death if n == 1 else None, one_bank("good", "good"))
    assert calls == ["k0 k1"] * 2


def test_a_cluster_on_which_everything_dies_ends_the_run_with_no_row() -> None:
    numbers: Iterator[int] = itertools.count()
    everything: list[Any] = [one_bank("good", "good") for _ in range(40)]
    with pytest.raises(RunError, match="died in a row and none finished a bank"):
        done(lambda *_: f"died {next(numbers)}", *everything)
    assert next(numbers) == 9  # 2 * (log2(2) + 1 + two workers) were allowed


def test_every_bank_comes_once_whoever_dies() -> None:
    rng = random.Random(0)
    banks = [one_bank(*["good"] * 3) for _ in range(30)]
    banks = [BankJob(tuple(Job(f"b{n}-{j.key}", "good") for j in b.jobs)) for n, b in
             enumerate(banks)]  # fmt: skip
    lists, _ = done(lambda *_: "died" if rng.random() < 0.4 else None, *banks)
    assert sorted(o.key for x in lists for o in x) == sorted(j.key for b in banks for j in b.jobs)
    for outcomes in lists:
        assert [o.key for o in outcomes] == [
            j.key for b in banks if b.id == outcomes[0].key for j in b.jobs
        ]
