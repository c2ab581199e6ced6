"""Tables of examples: local csv, jsonl and parquet files, folders of them, and Hub datasets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftport.errors import InputError
from peftport.refs import Ref, resolve

Part = Literal["train", "validation", "test"]
SUFFIXES = (".csv", ".jsonl", ".parquet")

_PART_OF: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Table:
    """Rows of one part of a dataset, column by column.

    Attributes:
        where: how messages name it, e.g. ``reviews.csv``.
        names: its columns.
        values: values of a column by name.
        labels: names of the values of a column whose ints have names (Hub ``ClassLabel``).
    """

    where: str
    names: tuple[str, ...]
    values: Callable[[str], Sequence[Any]]
    labels: Callable[[str], Sequence[str] | None] = lambda column: None


def read_tables(ref: str) -> dict[Part, list[Table]]:
    """The tables of a dataset by part; a single file is all ``train``.

    Args:
        ref: a csv, jsonl or parquet file, a folder of them whose file names begin with train,
            validation (or dev) and test, or a Hub id ``org/name@revision``.

    Raises:
        InputError: missing, unreadable or empty files, an unknown Hub dataset.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file() or path.suffix.lower() in SUFFIXES:
        return {"train": [_file(path)]}
    parsed = Ref.parse(ref)
    if parsed.kind == "path":
        raise InputError(
            f"no file or folder at '{ref}'; give a {_known()} file, or a folder of them"
        )
    return _hub(parsed)


def _folder(folder: Path) -> dict[Part, list[Table]]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise InputError(f"folder '{folder}' holds no {_known()} file")
    parts: dict[Part, list[Table]] = {}
    if len(files) == 1 and _part(files[0]) is None:
        return {"train": [_file(files[0])]}
    for path in files:
        part = _part(path)
        if part is None:
            raise InputError(
                f"cannot tell which part '{path.relative_to(folder)}' of '{folder}' is; let file"
                " names begin with train, validation or test, or give one file"
            )
        parts.setdefault(part, []).append(_file(path))
    return parts


def _part(path: Path) -> Part | None:
    return _PART_OF.get(re.split(r"[^a-z]", path.name.lower(), maxsplit=1)[0])


def _file(path: Path) -> Table:
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if not path.is_file():
        raise InputError(f"no file at '{path}'; give an existing {_known()} file")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"'{path}' is not a {_known()} file; convert it to one of them")
    try:
        table = reader(path)
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' is not UTF-8 text ({error.reason} at byte {error.start});"
            " convert it to UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None
    if not table.names:
        raise InputError(f"'{path}' is empty; a line of column names and rows are expected")
    return table


def _csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            names = next(lines, [])
            columns: dict[str, list[str]] = {name: [] for name in names}
            if len(columns) < len(names):
                raise InputError(f"'{path}' names a column twice: {', '.join(names)}")
            for row in lines:
                if not row:
                    continue
                if len(row) != len(names):
                    raise InputError(
                        f"'{path}' line {lines.line_num}: {len(row)} fields, expected"
                        f" {len(names)} ({', '.join(names)}); quote texts that hold commas"
                    )
                for name, value in zip(names, row, strict=True):
                    columns[name].append(value)
        except csv.Error as error:
            raise InputError(
                f"'{path}' line {lines.line_num} is not readable as csv: {error}"
            ) from None
    return Table(path.name, tuple(names), columns.__getitem__)


def _jsonl(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"'{path}' line {number} is not JSON: {error.msg};"
                    " one object per line is expected"
                ) from None
            if not isinstance(row, dict):
                raise InputError(
                    f"'{path}' line {number} is a {type(row).__name__};"
                    " one object per line is expected"
                )
            rows.append(row)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(path.name, names, lambda column: [row.get(column) for row in rows])


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"'{path}' is not readable as parquet: {first}") from None
    return Table(
        path.name,
        tuple(table.column_names),
        lambda name: table.column(name).to_pylist(),
        _class_names(table.schema.metadata or {}).get,
    )


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """Names of the values of ``ClassLabel`` columns, which the Hub's parquet files carry; none
    where something else stands there."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        named = {name: own["names"] for name, own in features.items() if "names" in own}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in named.items()
        if isinstance(names, list) and all(isinstance(one, str) for one in names)
    }


def _hub(ref: Ref) -> dict[Part, list[Table]]:
    """A Hub dataset's parquet files as they are; where it has none, or several sets of them, what
    ``datasets`` makes of it."""
    try:
        found = resolve(ref, allow=("*.parquet",), kind="dataset").path
    except InputError:
        return _by_datasets(ref)
    if len({path.parent for path in found.rglob("*.parquet")}) != 1:
        return _by_datasets(ref)
    return _folder(found)


def _by_datasets(ref: Ref) -> dict[Part, list[Table]]:
    import datasets as hub

    try:
        found = hub.load_dataset(ref.id, revision=ref.revision)
    except Exception as error:  # datasets raises many unrelated types; each is about the user's id
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot get dataset '{ref}' from the Hub: {first}; check id, revision and network, or"
            " give a local file or folder"
        ) from None
    parts: dict[Part, list[Table]] = {}
    for name, rows in found.items():
        part = _PART_OF.get(str(name))
        if part is not None:
            parts.setdefault(part, []).append(_hub_table(f"{ref} {name}", rows))
    if "train" not in parts:
        raise InputError(
            f"dataset '{ref}' has no train split; it has: {', '.join(map(str, found))}"
        )
    return parts


def _hub_table(where: str, rows: Any) -> Table:
    return Table(
        where,
        tuple(rows.column_names),
        lambda column: rows[column][:],
        lambda column: getattr(rows.features[column], "names", None),
    )


def _known() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
