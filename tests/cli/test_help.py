"""Every command explains itself, and the top level does it without loading torch."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import click
import pytest

from peftport.cli.main import peftport, run


def tree(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from tree(inner, (*path, name))


COMMANDS = dict(tree(peftport))
LEAVES = [path for path, command in COMMANDS.items() if not isinstance(command, click.Group)]


def options(path: str) -> set[str]:
    return {flag for parameter in COMMANDS[path].params for flag in parameter.opts}


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_an_example_that_calls_it(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path.split(), "--help"]) == 0
    out = capsys.readouterr().out
    example = out.split("Example:")[1]
    assert f"peftport {path}".strip() in example


@pytest.mark.parametrize("path", LEAVES)
def test_every_option_is_explained_and_quiet_exists(path: str) -> None:
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts}"
    assert {"-q", "--quiet"} <= options(path)


def test_the_promised_commands_exist() -> None:
    promised = [
        "study run", "study status", "study export", "study module", "report", "train", "port",
        "hosts list", "hosts info", "hosts build",
        "list methods", "list strategies", "list datasets", "list families",
    ]  # fmt: skip
    assert set(promised) <= set(LEAVES)
    assert {"--store", "--executor", "--dry-run", "--limit", "--json"} <= options("study run")
    assert {"--format", "-o"} <= options("study export")
    for path in ("study status", "hosts list", "hosts info", *[p for p in LEAVES if "list " in p]):
        assert "--json" in options(path), path
    for path in ("train", "port", "report", "study module", "hosts build"):
        assert "-o" in options(path), path


def test_top_level_help_is_fast_and_imports_no_torch() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "peftport", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - began < 2, "0.1 s on an idle core"
    assert " torch" not in done.stderr and " pandas" not in done.stderr
    for name in ("study", "train", "port", "report", "hosts", "list"):
        assert f"\n  {name} " in done.stdout


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage: peftport" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from peftport import __version__

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"peftport {__version__}\n"
