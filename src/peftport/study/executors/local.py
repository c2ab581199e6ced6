"""One bank after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from peftport.study.executors.base import BankJob, Executor, Worker, executors
from peftport.study.planned import Outcome


@executors.register("local")
class Local(Executor):
    """Does the next bank when the outcomes before it were taken."""

    name = "local"

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        super().__init__(make_worker)
        self._worker: Worker | None = None

    def run(self, banks: Iterable[BankJob]) -> Iterator[list[Outcome]]:
        for bank in banks:
            if self._worker is None:
                self._worker = self.make_worker()
            yield self._worker.do(bank)
