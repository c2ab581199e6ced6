"""One job after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from peftport.study.executors.base import Executor, Job, Worker, executors
from peftport.study.planned import Outcome


@executors.register("local")
class Local(Executor):
    """Does the next job when the outcome before it was taken."""

    name = "local"

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        super().__init__(make_worker)
        self._worker: Worker | None = None

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        for job in jobs:
            if self._worker is None:
                self._worker = self.make_worker()
            yield self._worker.do(job)
