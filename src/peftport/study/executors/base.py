"""The contract of an executor: it does jobs, somewhere, and hands back their outcomes.

Tested by :class:`peftport.testing.contracts_executor.ExecutorContract`:

- every job gives exactly one outcome, in any order; a job that fails gives an outcome with its
  error and traceback and stops nobody else;
- jobs are drawn as they are needed, so that stopping early does little for nothing;
- a job's numbers do not depend on the jobs done before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from peftport.registry import Registry
from peftport.study.planned import Outcome


@dataclass(frozen=True)
class Job:
    """A unit of work that may travel to another process.

    Attributes:
        key: the training's key.
        training: what to train, :class:`peftport.study.plan.Training`.
        source: bytes of the module that is carried over, where there is one.
    """

    key: str
    training: Any
    source: bytes | None = None


class Worker(Protocol):
    """Does one job after another; keeps what they share (hosts, encoded sentences)."""

    def do(self, job: Job) -> Outcome:
        """The outcome of a job; an error becomes an outcome, only interrupts are raised."""
        ...


class Executor(ABC):
    """Where jobs are done.

    Args:
        make_worker: makes a worker; called where the work is done, as often as there are workers.
    """

    name: ClassVar[str]

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self.make_worker = make_worker

    @abstractmethod
    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Outcomes of all jobs, as they come."""


executors: Registry[type[Executor]] = Registry("executor", "peftport.study.executors")
