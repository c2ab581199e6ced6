"""The contract of an executor: it does banks, somewhere, and hands back their outcomes.

Tested by :class:`peftport.testing.contracts_executor.ExecutorContract`:

- every bank gives exactly one list, in any order, with one outcome per job in the bank's order; a
  job that fails gives an outcome with its error and traceback and stops nobody else;
- banks are drawn as they are needed, so that stopping early does little for nothing and memory
  does not grow with their number;
- a bank's numbers do not depend on the banks done before it;
- what a worker hands out on the way is kept, and a bank goes on from what it is given;
- a bank whose worker dies is done again; a job that kills its worker every time fails, and the
  others of its bank are done (an executor in this process dies with it).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

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
    """The unit of work: trainings that are done together on one host.

    Attributes:
        jobs: the trainings.
        checkpoint: how far a worker had come with them, in its own format.
    """

    jobs: tuple[Job, ...]
    checkpoint: bytes | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """The first training's key; no two banks of a study share one."""
        return self.jobs[0].key

    @property
    def keys(self) -> list[str]:
        """The trainings' keys, in order."""
        return [job.key for job in self.jobs]


#: told how far a bank is
Keep = Callable[[BankJob, bytes], None]


def forget(bank: BankJob, checkpoint: bytes) -> None:
    """Keeps no checkpoints."""


def last(found: Iterator[bytes | list[Outcome]]) -> list[Outcome]:
    """The outcomes that follow a bank's checkpoints."""
    *_, outcomes = found
    assert not isinstance(outcomes, bytes)
    return outcomes


class Worker(ABC):
    """Does one bank after another; keeps what they share (hosts, encoded sentences)."""

    @abstractmethod
    def work(self, bank: BankJob) -> Iterator[bytes | list[Outcome]]:
        """Checkpoints of a long bank, and last an outcome per job, in order; an error becomes one,
        only interrupts are raised."""

    def do(self, bank: BankJob) -> list[Outcome]:
        """An outcome per job, in order."""
        return last(self.work(bank))


@dataclass(frozen=True)
class Place:
    """Where workers may be, and what one of them takes.

    Attributes:
        address: of a cluster that is there already; None for this machine.
        cpus: cores of a worker.
        gpus: accelerators of a worker.
    """

    address: str | None = None
    cpus: int = 1
    gpus: int = 0


class Executor(ABC):
    """Where banks are done; use it in ``with``, so that its workers end with it.

    Args:
        make_worker: makes a worker; called where the work is done, as often as there are workers.
        place: where that may be.

    Raises:
        InputError: it is no place for this executor.
    """

    name: ClassVar[str]

    def __init__(self, make_worker: Callable[[], Worker], place: Place = Place()) -> None:
        self.make_worker = make_worker
        self.place = place

    @abstractmethod
    def run(self, banks: Iterable[BankJob], keep: Keep = forget) -> Iterator[list[Outcome]]:
        """Outcomes bank by bank, as they come; ``keep`` is given checkpoints of whole banks.

        Raises:
            RunError: workers end again and again without finishing anything.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


executors: Registry[type[Executor]] = Registry("executor", "peftport.study.executors")
