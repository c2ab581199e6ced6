"""What all commands share: quiet and JSON options, printing of data, parsing of ``key=value``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from peftport.errors import InputError
from peftport.plain_yaml import parse_yaml, read_yaml

Command = TypeVar("Command", bound=Callable[..., Any])


def quiet_option(command: Command) -> Command:
    """``-q``: only results and errors are printed; passed as ``quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.")(
        command
    )


def json_option(command: Command) -> Command:
    """``--json``: data as one JSON document on stdout; passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def device_options(then: str = "") -> Callable[[Command], Command]:
    """``--device`` and ``--dtype``, None where they are left out; ``then`` goes on after the
    defaults in their help."""

    def both(command: Command) -> Command:
        command = click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16"]),
            help=f"Weights of the hosts there; modules stay float32. Default float32{then}.",
        )(command)
        return click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            help=f"Where modules are trained and measured; default cpu{then}.",
        )(command)

    return both


def push_options(command: Command) -> Command:
    """``--push-to-hub ID`` and ``--public``; passed as ``push_to_hub`` and ``public``."""
    command = click.option(
        "--public", is_flag=True, help="What is pushed may be read by everybody."
    )(command)
    return click.option(
        "--push-to-hub", metavar="ID", help="Upload the result to the Hub as org/name; private."
    )(command)


def echo_json(data: object) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def echo_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns padded to their widest cell; no trailing spaces."""
    lines = [list(map(str, header)), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``("r=8", "roles=[q,v]")`` as a mapping; values are read as YAML.

    Raises:
        InputError: a pair without ``=``, a value that is not YAML, a key given twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set expects key=value, got '{pair}'; for example --set r=4")
        if key in settings:
            raise InputError(f"--set gives '{key}' twice")
        try:
            settings[key] = parse_yaml(value, key)
        except InputError:
            raise InputError(f"--set {key}: '{value}' is not a YAML value") from None
    return settings


def read_mapping(path: Path, what: str) -> Mapping[str, Any]:
    """A YAML or JSON file that holds a mapping. Raises InputError."""
    data = read_yaml(path, what)
    if not isinstance(data, dict):
        raise InputError(f"{what} '{path}' must hold a mapping, got {type(data).__name__}")
    return data


def new_folder(path: Path) -> Path:
    """An output folder that can be made and is not in use; nothing is written yet.

    Raises:
        InputError: it is a file, is not empty, or lies where nothing can be written.
    """
    import os

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"'{path}' exists; give a new or empty folder to -o")
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"'{path}' cannot be written; give a folder you may write to")
    return path
