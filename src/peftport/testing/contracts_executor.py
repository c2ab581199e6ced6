"""What every executor must do. Subclass :class:`ExecutorContract` to test a new one.

class TestMine(ExecutorContract):
    executor = "mine"

One whose workers are processes of their own passes :class:`IsolatedExecutorContract` as well.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from peftport.errors import InputError, RunError, UnknownName
from peftport.study.executors.base import BankJob, Executor, Job, Worker, executors
from peftport.study.planned import Measure, Outcome

#: most banks that may be drawn ahead of the outcomes taken
WINDOW = 64


#: checkpoints of a bank with a ``long`` job
STEPS = 3


class ToyWorker(Worker):
    """Scores that follow from the job alone; ``bad`` jobs fail, ``die`` jobs end the process, and
    those with a path and a number end it so many times (the file's size counts). A bank whose first
    job is ``long`` hands out how many steps are done, and its module says where it began."""

    def work(self, bank: BankJob) -> Iterator[bytes | list[Outcome]]:
        if bank.jobs[0].training != "long":
            yield [self._outcome(job) for job in bank.jobs]
            return
        begin, others = int(bank.checkpoint or b"0"), list[Outcome]()
        for step in range(begin, STEPS):
            if step == STEPS - 1:  # whoever ends the process does it before the last step
                time.sleep(0.5)  # what was handed out arrives
                others = [self._outcome(job) for job in bank.jobs[1:]]
            yield b"%d" % (step + 1)
        yield [Outcome(bank.jobs[0].key, 0.0, module=b"from %d" % begin), *others]

    def _outcome(self, job: Job) -> Outcome:
        if isinstance(job.training, tuple):
            path, times = job.training
            if path.stat().st_size < times:
                with path.open("ab") as file:
                    file.write(b".")
                os.kill(os.getpid(), signal.SIGKILL)
        if job.training == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.training == "bad":
            return Outcome(job.key, 0.0, error="bad job", traceback="Traceback: bad job")
        digest = hashlib.sha256(job.key.encode() + (job.source or b"")).digest()
        scores = np.frombuffer(digest, dtype=np.uint8).astype(np.float32).reshape(-1, 2)
        return Outcome(job.key, 0.0, (Measure(0, scores, "m"),), 1, b"module")


def broken_worker() -> Worker:
    raise InputError("no such host")


def one_bank(*trainings: object) -> BankJob:
    return BankJob(tuple(Job(f"k{at}", training) for at, training in enumerate(trainings)))


def banks(count: int, bad: tuple[int, ...] = ()) -> Iterator[BankJob]:
    """Banks of one to three jobs, numbered through."""
    number = 0
    for at in range(count):
        jobs = []
        for _ in range(1 + at % 3):
            jobs.append(Job(f"k{number}", "bad" if number in bad else "good", b"source"))
            number += 1
        yield BankJob(tuple(jobs))


class ExecutorContract:
    """Tests that any executor passes."""

    executor: ClassVar[str]

    def make(self, make_worker: Callable[[], Worker] = ToyWorker) -> Executor:
        return executors.get(self.executor)(make_worker)

    def test_it_is_registered_by_its_name(self) -> None:
        assert executors.get(self.executor).name == self.executor
        with pytest.raises(UnknownName):
            executors.get(self.executor + "x")

    def test_every_bank_gives_one_outcome_per_job_in_order(self) -> None:
        found = {o[0].key: [x.key for x in o] for o in self.make().run(banks(20))}
        assert found == {bank.id: [job.key for job in bank.jobs] for bank in banks(20)}

    def test_no_bank_is_done_twice(self) -> None:
        keys = [outcome.key for outcomes in self.make().run(banks(20)) for outcome in outcomes]
        assert sorted(keys) == sorted(job.key for bank in banks(20) for job in bank.jobs)

    def test_a_failing_job_stops_nobody(self) -> None:
        lists = self.make().run(banks(6, bad=(0, 4, 9)))
        outcomes = {o.key: o for outcomes in lists for o in outcomes}
        assert sorted(k for k, o in outcomes.items() if o.error) == ["k0", "k4", "k9"]
        assert all(o.traceback for o in outcomes.values() if o.error)
        assert len(outcomes) == 12

    def test_numbers_are_those_of_the_worker(self) -> None:
        expected = {o.key: o for bank in banks(10) for o in ToyWorker().do(bank)}
        for outcomes in self.make().run(banks(10)):
            for outcome in outcomes:
                own = expected[outcome.key]
                assert outcome.measures[0].scores.tobytes() == own.measures[0].scores.tobytes()
                assert outcome.module == own.module

    def test_checkpoints_are_kept_and_gone_on_from(self) -> None:
        kept: list[tuple[str, bytes]] = []
        given = [one_bank("long", "good"), one_bank("good")]
        given.append(replace(given[0], checkpoint=b"2"))
        with self.make() as executor:
            lists = [
                next(executor.run([bank], lambda bank, content: kept.append((bank.id, content))))
                for bank in given
            ]
        assert kept == [("k0", b"1"), ("k0", b"2"), ("k0", b"3"), ("k0", b"3")]
        assert [outcomes[0].module for outcomes in lists] == [b"from 0", b"module", b"from 2"]

    def test_whoever_cannot_keep_a_checkpoint_ends_the_run(self) -> None:
        def full(bank: BankJob, content: bytes) -> None:
            raise RunError("the disk is full")

        with self.make() as executor, pytest.raises(RunError, match="disk is full"):
            list(executor.run([one_bank("long")], full))

    def test_banks_are_drawn_as_they_are_needed(self) -> None:
        drawn: list[str] = []

        def watched() -> Iterator[BankJob]:
            for bank in banks(10 * WINDOW):
                drawn.append(bank.id)
                yield bank

        results = self.make().run(watched())
        for _ in range(3):
            next(results)
        assert len(drawn) <= 3 + WINDOW
        results.close()  # type: ignore[attr-defined]

    def test_one_executor_runs_twice(self) -> None:
        executor = self.make()
        first = {outcomes[0].key for outcomes in executor.run(banks(3))}
        assert first == {outcomes[0].key for outcomes in executor.run(banks(3))}

    def test_no_banks_no_outcomes(self) -> None:
        assert list(self.make().run(iter(()))) == []

    def test_a_worker_that_cannot_be_made_ends_the_run(self) -> None:
        with self.make(broken_worker) as executor, pytest.raises(InputError, match="no such host"):
            list(executor.run(banks(2)))


class IsolatedExecutorContract(ExecutorContract):
    """Tests that any executor passes whose workers are processes of their own."""

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_bank_whose_workers_die_is_done_whole(self, tmp_path: Path, times: int) -> None:
        (tmp_path / "deaths").touch()
        bank = one_bank("good", (tmp_path / "deaths", times), "good")
        with self.make() as executor:
            (outcomes,) = executor.run([bank])
        assert [(o.key, o.error, o.split) for o in outcomes] == [
            (f"k{n}", None, False) for n in range(3)
        ]

    def test_a_bank_whose_worker_dies_goes_on_from_its_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "deaths").touch()
        kept: list[bytes] = []
        with self.make() as executor:
            (outcomes,) = executor.run(
                [one_bank("long", (tmp_path / "deaths", 1))],
                lambda bank, content: kept.append(content),
            )
        assert outcomes[0].module == b"from 2"
        assert [o.error for o in outcomes] == [None, None]
        assert kept == [b"1", b"2", b"3"]

    def test_a_job_that_kills_its_worker_fails_and_no_other(self) -> None:
        kinds = ["die", "good", "good"]
        with self.make() as executor:
            (outcomes,) = executor.run([one_bank(*kinds)])
        assert [o.key for o in outcomes] == [f"k{n}" for n in range(len(kinds))]
        assert [o.error is not None for o in outcomes] == [kind != "good" for kind in kinds]
        assert "its worker died" in str(outcomes[0].error)
        assert outcomes[0].traceback
        assert all(o.split for o in outcomes)

    def test_workers_that_keep_dying_end_the_run(self) -> None:
        with self.make() as executor, pytest.raises(RunError, match="died in a row"):
            list(executor.run(one_bank("die") for _ in range(50)))
