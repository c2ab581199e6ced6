"""Two pico hosts of one shape and a sound adapter folder of each library, made once; and what
hostile inputs are watched by: the memory that they take and the places that they write to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peftport.formats import save_module
from peftport.hosts.load import inspect_host
from peftport.methods.base import Module, config_from_json, method_of
from peftport.testing.pico import pico_bert

CONFIGS = {
    "peft": {"method": "lora", "r": 4},
    "prefix": {"method": "prefix", "length": 3, "positions": "past"},
    "hub": {"method": "bottleneck", "reduction": 4},
    "phm": {"method": "compacter", "reduction": 4},
    "pairs": {"method": "prefix", "length": 3, "positions": "none"},
}


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``host``, ``other`` and one adapter of each kind, with a head."""
    root = tmp_path_factory.mktemp("sound")
    pico_bert(root / "host", 0)
    pico_bert(root / "other", 1)
    spec = inspect_host(str(root / "host"))
    for kind, facts in CONFIGS.items():
        config = config_from_json(facts)
        rng = torch.Generator().manual_seed(3)
        state = method_of(config).init(spec, config, rng)
        state = {
            site: {n: torch.randn(t.shape, generator=rng) for n, t in tensors.items()}
            for site, tensors in state.items()
        }
        head = {
            "classifier.weight": torch.randn(2, spec.d_model, generator=rng),
            "classifier.bias": torch.randn(2, generator=rng),
        }
        module = Module(config, state, head, spec.fingerprint, "host")
        save_module(replace(module, notes={"head": "pooler"}), root / kind, spec=spec)
    return root


MIB = 1 << 20
#: what one hostile input may add to this process' memory while it is read, and what a whole test
#: may leave behind; the inputs themselves are a few kB
PEAK_BYTES, LEFT_BYTES = 32 * MIB, 128 * MIB
#: inputs after which what libraries load and keep is there
WARM_UP = 10
PROC = Path("/proc/self")


@dataclass
class Watch:
    """What hostile inputs did, all tests together.

    Attributes:
        inputs: how many there were.
        peak: most memory that one of them added while it was read, in bytes.
        resident: most memory that the process had, in bytes.
        began: when the first one came.
        folder: where the input at hand may write; None outside of inputs.
        outside: files that it wrote elsewhere, and programs that it started.
    """

    inputs: int = 0
    peak: int = 0
    resident: int = 0
    began: float = 0.0
    folder: Path | None = None
    outside: list[str] = field(default_factory=list)

    def audit(self, event: str, given: tuple[Any, ...]) -> None:
        """A hook of :func:`sys.addaudithook`."""
        if self.folder is None:
            return
        if event in STARTS:
            self.outside.append(f"{event} {given[0]}")
        elif event in WRITES and (event != "open" or _for_writing(given)):
            for path in given[: WRITES[event]]:
                if isinstance(path, int) or path in (None, ":memory:"):
                    continue  # opened before, and seen then; or SQLite without a file
                name = os.fsdecode(path).removeprefix("file:").partition("?")[0]  # SQLite's URIs
                real = Path(os.path.realpath(name))
                if not real.is_relative_to(self.folder):
                    self.outside.append(f"{event} {real}")

    @contextmanager
    def reading(self, folder: Path) -> Iterator[None]:
        """One input is read; nothing may be written outside of ``folder``."""
        self.began = self.began or time.monotonic()
        before = resident("VmRSS")
        if before:
            (PROC / "clear_refs").write_text("5")  # VmHWM begins anew
        self.outside.clear()
        self.folder = folder.resolve()
        try:
            yield
        finally:
            self.folder = None
        most = resident("VmHWM")
        self.inputs += 1
        self.resident = max(self.resident, most)
        assert self.outside == [], "written outside of the output folder"
        if self.inputs > WARM_UP:
            self.peak = max(self.peak, most - before)
            assert most - before < PEAK_BYTES, f"an input took {(most - before) / MIB:.0f} MiB"


#: audit events and how many of their first arguments are paths that are written
WRITES = {
    "open": 1, "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.rename": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "sqlite3.connect": 1,
}  # fmt: skip
WRITES |= dict.fromkeys(("os.link", "os.symlink"), 2)
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")


def _for_writing(given: tuple[Any, ...]) -> bool:
    _, mode, flags = given
    asked = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    return asked or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def resident(name: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (its peak) of this process in bytes; 0 where Linux is not."""
    try:
        lines = (PROC / "status").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


_WATCH = Watch()


@pytest.fixture(scope="session")
def watch() -> Watch:
    """The one watch; its hook stays until the process ends, as hooks do."""
    sys.addaudithook(_WATCH.audit)
    return _WATCH


@pytest.fixture
def hostile(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """The watch for one test, which may leave little memory behind."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    begin, inputs = resident("VmRSS"), watch.inputs
    yield watch
    assert watch.inputs > inputs, "the test watched no input"
    if inputs > WARM_UP:
        assert resident("VmRSS") - begin < LEFT_BYTES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What docs/security.md states of a long run."""
    w = _WATCH
    if w.inputs:
        terminalreporter.write_line(
            f"{w.inputs} hostile inputs: one added at most {w.peak / MIB:.1f} MiB, the process had "
            f"at most {w.resident / MIB:.0f} MiB, {(time.monotonic() - w.began) / 60:.1f} minutes"
        )
