"""What every executor must do. Subclass :class:`ExecutorContract` to test a new one.

class TestMine(ExecutorContract):
    executor = "mine"
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest

from peftport.errors import UnknownName
from peftport.study.executors.base import Executor, Job, executors
from peftport.study.planned import Measure, Outcome

#: most jobs that may be drawn ahead of the outcomes taken
WINDOW = 64


class ToyWorker:
    """Scores that follow from the job alone; ``bad`` jobs fail."""

    def do(self, job: Job) -> Outcome:
        if job.training == "bad":
            return Outcome(job.key, 0.0, error="bad job", traceback="Traceback: bad job")
        digest = hashlib.sha256(job.key.encode() + (job.source or b"")).digest()
        scores = np.frombuffer(digest, dtype=np.uint8).astype(np.float32).reshape(-1, 2)
        return Outcome(job.key, 0.0, (Measure(0, scores, "m"),), 1, b"module")


def jobs(count: int, bad: tuple[int, ...] = ()) -> Iterator[Job]:
    for number in range(count):
        yield Job(f"k{number}", "bad" if number in bad else "good", b"source")


class ExecutorContract:
    """Tests that any executor passes."""

    executor: ClassVar[str]

    def make(self) -> Executor:
        return executors.get(self.executor)(ToyWorker)

    def test_it_is_registered_by_its_name(self) -> None:
        assert executors.get(self.executor).name == self.executor
        with pytest.raises(UnknownName):
            executors.get(self.executor + "x")

    def test_every_job_gives_one_outcome(self) -> None:
        keys = [outcome.key for outcome in self.make().run(jobs(20))]
        assert sorted(keys) == sorted(job.key for job in jobs(20))

    def test_a_failing_job_stops_nobody(self) -> None:
        outcomes = {o.key: o for o in self.make().run(jobs(10, bad=(0, 4, 9)))}
        assert sorted(k for k, o in outcomes.items() if o.error) == ["k0", "k4", "k9"]
        assert all(o.traceback for o in outcomes.values() if o.error)
        assert len(outcomes) == 10

    def test_numbers_are_those_of_the_worker(self) -> None:
        for outcome in self.make().run(jobs(10)):
            expected = ToyWorker().do(Job(outcome.key, "good", b"source"))
            assert outcome.measures[0].scores.tobytes() == expected.measures[0].scores.tobytes()
            assert outcome.module == expected.module

    def test_jobs_are_drawn_as_they_are_needed(self) -> None:
        drawn: list[str] = []

        def watched() -> Iterator[Job]:
            for job in jobs(10 * WINDOW):
                drawn.append(job.key)
                yield job

        results = self.make().run(watched())
        for _ in range(3):
            next(results)
        assert len(drawn) <= 3 + WINDOW
        results.close()  # type: ignore[attr-defined]

    def test_one_executor_runs_twice(self) -> None:
        executor = self.make()
        first = {o.key for o in executor.run(jobs(3))}
        assert first == {o.key for o in executor.run(jobs(3))}

    def test_no_jobs_no_outcomes(self) -> None:
        assert list(self.make().run(iter(()))) == []
