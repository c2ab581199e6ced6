"""How an error looks: one line, an exit code, no traceback unless it is a bug."""

from __future__ import annotations

import errno
import subprocess
import sys

import click
import pytest

from peftport.cli import main
from peftport.errors import HostMismatch, InputError, RunError

raised: list[BaseException] = []


@click.command()
@click.option("--rate", type=float)
def fail(rate: float | None) -> None:
    raise raised[0]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds ``peftport fail``, which raises ``raised``."""
    monkeypatch.setitem(main._COMMANDS, "fail", (f"{__name__}:fail", "Fail."))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("no such\n thing"), 2, "error: no such thing"),
        (HostMismatch("another host"), 2, "error: another host"),
        (RunError("diverged"), 1, "error: diverged"),
        (click.ClickException("bad\n  thing"), 2, "error: bad thing"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "error: '/x': Permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left", "/x"), 1, "error: '/x': No space left"),
    ],
)
@pytest.mark.usefixtures("fails")
def test_foreseen_errors_are_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raised[:] = [error]
    assert main.run(["fail"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == line + "\n"


@pytest.mark.usefixtures("fails")
def test_interrupting_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    raised[:] = [KeyboardInterrupt()]
    assert main.run(["fail"]) == 130
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "same command" in lines[0]


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), OSError("no file name: a bug")])
@pytest.mark.usefixtures("fails")
def test_a_bug_keeps_its_traceback(bug: Exception) -> None:
    raised[:] = [bug]
    with pytest.raises(type(bug), match="a bug"):
        main.run(["fail"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["studdy"], ["unknown command 'studdy'", "did you mean 'study'", "hosts, list"]),
        (["--nosuch"], ["--nosuch", "'peftport --help'"]),
        (
            ["fail", "--rate", "fast"],
            ["--rate", "'fast' is not a valid float", "'peftport fail --help'"],
        ),
        (["train"], ["Missing argument 'METHOD'", "'peftport train --help'"]),
        (["train", "lora"], ["Missing option '--host'"]),
    ],
)
@pytest.mark.usefixtures("fails")
def test_wrong_usage_is_one_line(
    args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m peftport list methods --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
