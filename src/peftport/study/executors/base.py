"""The contract of an executor: it does banks, somewhere, and hands back their outcomes.

Tested by :class:`peftport.testing.contracts_executor.ExecutorContract`:

- every bank gives exactly one list, in any order, with one outcome per job in the bank's order; a
  job that fails gives an outcome with its error and traceback and stops nobody else;
- banks are drawn as they are needed, so that stopping early does little for nothing and memory
  does not grow with their number;
- a bank's numbers do not depend on the banks done before it.
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
    """One training; it may travel to another process.

    Attributes:
        key: the training's key.
        training: what to train, :class:`peftport.study.plan.Training`.
        source: bytes of the module that is carried over, where there is one.
    """

    key: str
    training: Any
    source: bytes | None = None


@dataclass(frozen=True)
class BankJob:
    """The unit of work: trainings that are done together on one host."""

    jobs: tuple[Job, ...]

    @property
    def id(self) -> str:
        """The first training's key; no two banks of a study share one."""
        return self.jobs[0].key


class Worker(Protocol):
    """Does one bank after another; keeps what they share (hosts, encoded sentences)."""

    def do(self, bank: BankJob) -> list[Outcome]:
        """An outcome per job, in order; an error becomes one, only interrupts are raised."""
        ...


class Executor(ABC):
    """Where banks are done.

    Args:
        make_worker: makes a worker; called where the work is done, as often as there are workers.
    """

    name: ClassVar[str]

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self.make_worker = make_worker

    @abstractmethod
    def run(self, banks: Iterable[BankJob]) -> Iterator[list[Outcome]]:
        """Outcomes bank by bank, as they come."""


executors: Registry[type[Executor]] = Registry("executor", "peftport.study.executors")
