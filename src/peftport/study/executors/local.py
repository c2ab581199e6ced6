"""One bank after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from peftport.errors import InputError
from peftport.study.executors.base import (
    BankJob,
    Executor,
    Keep,
    Place,
    Worker,
    executors,
    forget,
)
from peftport.study.planned import Outcome


@executors.register("local")
class Local(Executor):
    """Does the next bank when the outcomes before it were taken."""

    name = "local"

    def __init__(self, make_worker: Callable[[], Worker], place: Place = Place()) -> None:  # noqa: B008
        super().__init__(make_worker, place)
        if place.address is not None:
            raise InputError(
                f"the executor 'local' works in this process and has no use for --address "
                f"{place.address}; leave it out, or give --executor ray"
            )
        self._worker: Worker | None = None

    def run(self, banks: Iterable[BankJob], keep: Keep = forget) -> Iterator[list[Outcome]]:
        for bank in banks:
            if self._worker is None:
                self._worker = self.make_worker()
            for found in self._worker.work(bank):
                if isinstance(found, bytes):
                    keep(bank, found)
                else:
                    yield found
