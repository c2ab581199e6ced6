"""Banks on the machines of a Ray cluster, or as several processes of this one.

A pool of long-lived actors, each with its hosts loaded, does one bank a call. The driver hands the
next bank to whoever is free, takes outcomes as they come, and is the only one that writes. Ray
itself retries nothing: a bank whose worker dies is done again, after all others; when that one dies
too, its halves are done apart, down to the training that kills, which becomes a failed outcome.
Where no training kills, two workers died by chance, and the bank is done whole after all: its
numbers do not depend on who died. A long bank's checkpoints reach the driver as they are made, and
whoever does it again begins with the last one.

Nothing of Ray is imported before the first bank.

Source: Moritz et al. 2018, arXiv 1712.05889; fault tolerance of actors, Ray's documentation.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from peftport.errors import InputError, PeftportError, RunError
from peftport.study.executors.base import (
    BankJob,
    Executor,
    Job,
    Keep,
    Place,
    Worker,
    executors,
    forget,
)
from peftport.study.planned import Outcome

#: deaths of its worker after which a bank is cut, and a training alone fails
DEATHS = 2
log = logging.getLogger(__name__)


@dataclass
class _Whole:
    """A bank that was drawn, with the outcomes that are there.

    Attributes:
        jobs: of the bank.
        outcomes: one a job, as far as they are there.
        spare: outcomes of its parts, while it is done whole once more.
        explained: whether something is known that killed workers (a training, or memory).
    """

    jobs: tuple[Job, ...]
    outcomes: list[Outcome | None]
    spare: list[Outcome | None] | None = None
    explained: bool = False

    @property
    def is_done(self) -> bool:
        return None not in self.outcomes

    @property
    def died_by_chance(self) -> bool:
        """Whether it was done in parts without a reason that was found."""
        split = any(outcome is not None and outcome.split for outcome in self.outcomes)
        return split and not self.explained and self.spare is None

    def once_more(self) -> _Part:
        """The whole bank again; if that dies, its parts' outcomes stand."""
        self.spare, self.outcomes = self.outcomes, [None] * len(self.jobs)
        return _Part(self, 0, self.jobs)

    @property
    def all(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome is not None]


@dataclass(frozen=True)
class _Part:
    """Jobs that one worker does together: a bank, or some of it since its workers died."""

    whole: _Whole = field(repr=False)
    start: int
    jobs: tuple[Job, ...]
    deaths: int = 0
    checkpoint: bytes | None = field(default=None, repr=False)

    @property
    def split(self) -> bool:
        return len(self.jobs) < len(self.whole.outcomes)

    def enter(self, outcomes: list[Outcome]) -> None:
        for at, outcome in enumerate(outcomes):
            self.whole.outcomes[self.start + at] = replace(
                outcome, split=outcome.split or self.split
            )

    def halves(self) -> tuple[_Part, _Part]:
        middle = len(self.jobs) // 2
        return (
            _Part(self.whole, self.start, self.jobs[:middle]),
            _Part(self.whole, self.start + middle, self.jobs[middle:]),
        )


class _Host:
    """An actor's body: makes its worker at the first bank, so that what goes wrong there is an
    error of that call and not a death."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def work(self, bank: BankJob) -> Iterator[bytes | list[Outcome]]:
        if self._worker is None:
            self._worker = self._make_worker()
        yield from self._worker.work(bank)


@executors.register("ray")
class RayExecutor(Executor):
    """Does as many banks at a time as the cluster has room for workers."""

    name = "ray"

    def __init__(self, make_worker: Callable[[], Worker], place: Place = Place()) -> None:  # noqa: B008
        super().__init__(make_worker, place)
        self._ray: Any = None
        self._started = False
        self._room = 0
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, _Part]] = {}  # by the stream of what a worker hands out
        self._keep: Keep = forget

    def run(self, banks: Iterable[BankJob], keep: Keep = forget) -> Iterator[list[Outcome]]:
        self._keep = keep
        source, again = iter(banks), deque[_Part]()
        deaths_in_a_row, widest = 0, 1
        finished: _Whole | None = None
        try:
            while True:
                while self._has_room():
                    # what died waits for all others: what kills may be over by then
                    part = _draw(source) or (again.popleft() if again else None)
                    if part is None:
                        break
                    widest = max(widest, len(part.jobs))
                    self._give(part)
                if finished is not None:  # every worker is at work again before this is stored
                    yield finished.all
                    finished = None
                if not self._busy:
                    return
                part, outcomes, death = self._take()
                if death is None:
                    deaths_in_a_row = 0
                    part.enter(outcomes)
                else:
                    deaths_in_a_row += 1
                    self._bury(part, death, again)
                    if deaths_in_a_row > DEATHS * (math.log2(widest) + 1 + self._room):
                        raise RunError(
                            f"{deaths_in_a_row} workers died in a row and none finished a bank "
                            f"(the last: {_short(death)}); see to the cluster and run the same "
                            "command again"
                        )
                if not part.whole.is_done:
                    continue
                if part.whole.died_by_chance:
                    again.append(part.whole.once_more())
                else:
                    finished = part.whole
        finally:
            for actor, _ in self._busy.values():  # nobody takes what they are doing
                self._ray.kill(actor)
            self._busy = {}

    def close(self) -> None:
        if self._ray is None:
            return
        for actor in self._idle:
            self._ray.kill(actor)
        self._idle = []
        if self._started:
            self._ray.shutdown()
        self._ray = None

    # -- banks --------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        """Whether a worker is free, or another one fits. Before the first bank nobody knows."""
        return bool(self._idle) or self._ray is None or len(self._busy) < self._room

    def _give(self, part: _Part) -> None:
        if self._ray is None:
            self._start()
        actor = self._idle.pop() if self._idle else self._actor()
        stream = actor.work.options(num_returns="streaming").remote(
            BankJob(part.jobs, part.checkpoint)
        )
        self._busy[stream] = (actor, part)

    def _take(self) -> tuple[_Part, list[Outcome], str | None]:
        """The next part that is over: its outcomes, or how its worker died."""
        ray = self._ray
        while True:
            (stream,), _ = ray.wait(list(self._busy), num_returns=1)
            actor, part = self._busy.pop(stream)
            try:
                found = ray.get(next(stream))
            except ray.exceptions.RayTaskError as error:  # the worker could not be made
                raise error.cause from None
            except (ray.exceptions.RayError, OSError) as error:
                ray.kill(actor)  # it may be alive behind a broken network, and would hold its place
                return part, [], f"{type(error).__name__}: {error}"
            if not isinstance(found, bytes):
                self._idle.append(actor)
                return part, found, None
            self._busy[stream] = (actor, replace(part, checkpoint=found))
            if not part.split:
                self._keep(BankJob(part.jobs), found)

    def _bury(self, part: _Part, death: str, again: deque[_Part]) -> None:
        """What becomes of jobs whose worker died: once more, in halves, or failed."""
        part = replace(part, deaths=part.deaths + 1)
        whole, memory = part.whole, _was_memory(death)
        log.warning("a worker died with %d trainings: %s", len(part.jobs), _short(death))
        if whole.spare is not None:
            whole.outcomes = whole.spare
        elif len(part.jobs) > 1 and (part.deaths == DEATHS or memory):
            whole.explained |= memory
            again.extend(part.halves())
        elif part.deaths < DEATHS:
            again.append(part)
        else:
            whole.explained = True
            (job,) = part.jobs
            text = f"its worker died {DEATHS} times; the last time: {_short(death)}"
            part.enter([Outcome(job.key, 0.0, error=text, traceback=death)])

    # -- the cluster --------------------------------------------------------------------------

    def _start(self) -> None:
        """Reach the cluster, and see how many workers it has room for.

        Raises:
            InputError: no Ray, no cluster there, or a worker fits none of its machines.
        """
        try:
            import ray
        except ImportError:
            raise InputError(
                "the executor 'ray' needs Ray; install it with: pip install 'peftport[ray]'"
            ) from None
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports home by default
            os.environ.setdefault("RAY_worker_niceness", "0")  # and its workers yield to all others
            own: dict[str, Any] = {"include_dashboard": False} if self.place.address is None else {}
            try:
                ray.init(
                    # without an address Ray would join whatever cluster it finds on this machine
                    address=self.place.address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **own,
                )
            except Exception as error:  # a start that takes too long is a plain Exception
                raise _unreachable(self.place.address, str(error)) from None
            self._started = True
        self._ray = ray
        self._make = ray.put(self.make_worker)
        self._room = sum(self._fits(node["Resources"]) for node in ray.nodes() if node["Alive"])
        if self._room == 0:
            raise InputError(
                f"a worker takes {self.place.cpus} cores and {self.place.gpus} GPUs, and no "
                "machine of the Ray cluster has as many; make the store with fewer threads "
                "(OMP_NUM_THREADS), or add machines"
            )

    def _fits(self, resources: dict[str, float]) -> int:
        """How many workers a machine has room for."""
        room = resources.get("CPU", 0) // max(self.place.cpus, 1)
        if self.place.gpus:
            room = min(room, resources.get("GPU", 0) // self.place.gpus)
        return int(room)

    def _actor(self) -> Any:
        """A new worker. Ray restarts and retries nothing: what became of a call is then certain."""
        options = {"num_cpus": self.place.cpus, "num_gpus": self.place.gpus}
        made = self._ray.remote(max_restarts=0, max_task_retries=0, **options)(_Host)
        return made.remote(self._make)


def _draw(source: Iterator[BankJob]) -> _Part | None:
    bank = next(source, None)
    if bank is None:
        return None
    whole = _Whole(bank.jobs, [None] * len(bank.jobs))
    return _Part(whole, 0, bank.jobs, checkpoint=bank.checkpoint)


def _unreachable(address: str | None, why: str) -> PeftportError:
    if address is None:
        return RunError(f"Ray did not start here: {_short(why)}; try the same command again")
    return InputError(
        f"no Ray cluster at '{address}': {_short(why)}; start one with 'ray start --head', or "
        "leave --address out to use this machine"
    )


def _was_memory(death: str) -> bool:
    """Whether Ray ended the worker because its machine ran out of memory. (Of a worker that the
    kernel killed Ray only guesses why.)"""
    return "OUT_OF_MEMORY" in death or "low on memory" in death


def _short(death: str) -> str:
    text = " ".join(death.split())
    return text if len(text) <= 200 else text[:197] + "..."
