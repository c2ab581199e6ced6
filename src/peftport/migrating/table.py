"""Which adapter is measured on which data: one dataset for all, or a table with a line for each."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from peftport.data.columns import Columns
from peftport.errors import InputError, UnknownName
from peftport.plain_yaml import read_yaml

_KEYS = ("adapter", "dataset", "labels", "task", "text", "label")


@dataclass(frozen=True)
class Assigned:
    """Data of the adapters whose path matches a pattern.

    Attributes:
        pattern: a path below the folder, with ``*`` and ``?``.
        dataset: name, file, folder or Hub id.
        labels: which class of the data is which of the adapter's; None: by name or order.
        task: template, verbalisers, max_tokens; None: what the adapter records.
        columns: which column is what; None: ``text`` and ``label``.
    """

    pattern: str
    dataset: str
    labels: Mapping[str, int | str] | None = None
    task: Mapping[str, Any] | None = None
    columns: Columns | None = None


def read_assigned(data: str, columns: Columns | None = None) -> list[Assigned]:
    """``--data``: a table (csv with a column ``adapter``, or YAML), or one dataset for all.

    Args:
        data: what was given.
        columns: of the one dataset.

    Raises:
        InputError: a table that cannot be read, or a line of it.
    """
    path = Path(data).expanduser()
    rows: list[tuple[int, Mapping[str, Any]]] | None = None
    if path.suffix.lower() in (".yaml", ".yml"):
        rows = _yaml(path)
    elif path.suffix.lower() == ".csv" and path.is_file():
        rows = _csv(path)
    if rows is None:
        return [Assigned("*", data, columns=columns)]
    return [_assigned(row, f"'{data}' line {at}", path.parent) for at, row in rows]


def assigned_to(name: str, table: Sequence[Assigned]) -> Assigned:
    """The first line that matches. Raises InputError where none does."""
    for line in table:
        if fnmatchcase(name, line.pattern):
            return line
    raise InputError(f"the table of --data has no line for '{name}'; add one")


def _csv(path: Path) -> list[tuple[int, Mapping[str, Any]]] | None:
    """Lines of a csv table; None where it is a dataset."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            if "adapter" not in (lines.fieldnames or ()):
                return None
            return [(lines.line_num, {k: v for k, v in row.items() if v}) for row in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the table '{path}': {error}") from None


def _yaml(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    rows = read_yaml(path, "the table")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"the table '{path}' must be a list of lines with adapter and dataset")
    return list(enumerate(rows, start=1))


def _assigned(row: Mapping[str, Any], where: str, base: Path) -> Assigned:
    for key in row:
        if key not in _KEYS:
            raise UnknownName(f"key of {where}", str(key), _KEYS)
    for key in ("adapter", "dataset"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise InputError(f"{where} has no {key}; every line needs adapter and dataset")
    usual = Columns()
    columns = None
    if row.get("text") or row.get("label"):
        columns = Columns(str(row.get("text") or usual.text), str(row.get("label") or usual.label))
    dataset = row["dataset"].strip()
    beside = base / dataset
    if not Path(dataset).expanduser().exists() and beside.exists():
        dataset = str(beside)  # a path may be relative to the table
    return Assigned(
        row["adapter"].strip(),
        dataset,
        _labels(row.get("labels"), where),
        _task(row.get("task"), where, base),
        columns,
    )


def _labels(given: Any, where: str) -> dict[str, int | str] | None:
    """A mapping, or ``neg=0;pos=1`` in a csv."""
    if given is None or given == "":
        return None
    if isinstance(given, str):
        pairs = [part.rpartition("=") for part in given.split(";") if part.strip()]
        if not all(equals and name.strip() and value.strip() for name, equals, value in pairs):
            raise InputError(f"{where}: labels must be DATA=ADAPTER;DATA=ADAPTER, got '{given}'")
        return {name.strip(): value.strip() for name, _, value in pairs}
    if isinstance(given, dict) and all(isinstance(v, int | str) for v in given.values()):
        return {str(name): value for name, value in given.items()}
    raise InputError(f"{where}: labels must be a mapping from the data's classes, got {given!r}")


def _task(given: Any, where: str, base: Path) -> dict[str, Any] | None:
    """A mapping, or the path of a YAML file that holds one."""
    if given is None or given == "":
        return None
    if isinstance(given, str):
        given = read_yaml(base / given, f"the task of {where}")
    if not isinstance(given, dict):
        raise InputError(f"{where}: a task must be a mapping or a YAML file, got {given!r}")
    return given
