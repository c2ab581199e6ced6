"""How far a study is: a bar with its end in sight on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

#: seconds between two plain lines
EVERY_S = 10.0


def duration(seconds: float) -> str:
    """``0:42``, ``12:05``, ``3:04:10``"""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Progress:
    """Counts banks weighted by their cost.

    Args:
        total: cost of all banks still to do.
        banks: their number.
        quiet: print nothing.
        stream: where to print; stderr, so that stdout carries data alone.
    """

    def __init__(
        self, total: float, banks: int, *, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._total, self._banks, self._quiet = max(total, 1e-9), banks, quiet
        self._done, self._cost, self._failed = 0, 0.0, 0
        self._begin = self._last = time.monotonic()
        self._bar: Any = None
        if not quiet and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                file=self._stream,
                bar_format="{percentage:3.0f}% |{bar}| {desc} [{elapsed}<{remaining}]",
            )

    def step(self, cost: float, what: str, failed: int) -> None:
        """One bank is finished and stored; so many of its trainings failed."""
        self._done += 1
        self._cost += cost
        self._failed += failed
        text = f"{self._done}/{self._banks} banks"
        text += f", {self._failed} trainings failed" if self._failed else ""
        if self._bar is not None:
            self._bar.set_description_str(f"{text} · {what}", refresh=False)
            self._bar.update(cost)
        elif not self._quiet:
            now = time.monotonic()
            if self._done == self._banks or now - self._last >= EVERY_S or self._done == 1:
                self._last = now
                left = (now - self._begin) * (self._total / max(self._cost, 1e-9) - 1)
                print(
                    f"{text} · {duration(now - self._begin)} so far, about {duration(left)} left "
                    f"· {what}",
                    file=self._stream,
                    flush=True,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
