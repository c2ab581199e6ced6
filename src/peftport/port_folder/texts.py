"""Unlabelled texts for the strategies that need them. Labels are never looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peftport.data.datasets import datasets, load_dataset
from peftport.data.splits import normalise
from peftport.data.tables import SUFFIXES, read_tables
from peftport.errors import InputError, UnknownName

COUNT = 1024
COLUMN = "text"
_LONGEST_LINE = 1 << 20  # characters


def check_texts(ref: str) -> None:
    """Raises InputError where nothing can be read; what lies on the Hub is not asked for yet."""
    if _is_name(ref):
        return
    if "/" not in ref and not Path(ref).suffix and not Path(ref).exists():
        raise UnknownName("dataset", ref, datasets.names())
    path = Path(ref).expanduser()
    if not path.exists() and (path.suffix.lower() in (".txt", *SUFFIXES) or ref[0] in "./~"):
        raise InputError(f"no file or folder at '{ref}'; give --texts a file or a dataset")


def read_texts(ref: str, *, column: str = COLUMN, count: int = COUNT) -> list[str]:
    """The first ``count`` different texts, in their order.

    Args:
        ref: a file with one text a line; a csv, jsonl or parquet file, a folder of them or a Hub
            dataset (its train part); or the name of a dataset (its training splits).
        column: where the texts are in a table.
        count: how many.

    Raises:
        InputError: no such file, column or dataset, or no text in it.
    """
    check_texts(ref)
    path = Path(ref).expanduser()
    if _is_name(ref):
        found = load_dataset(ref)
        parts = (*found.parts["target-train"], *found.parts["source-train"])
        texts: Iterable[str] = (example.text for example in parts)
    elif path.is_dir() or path.suffix.lower() in SUFFIXES or not path.exists():
        texts = _column(ref, column)
    else:
        texts = _lines(path)
    return unlike(texts, count, ref)


def unlike(texts: Iterable[str], count: int, name: str) -> list[str]:
    """The first ``count`` texts that differ after normalisation. Raises InputError: none."""
    found: dict[str, str] = {}
    for text in texts:
        key = normalise(text)
        if key:
            found.setdefault(key, text.strip())
        if len(found) == count:
            break
    if not found:
        raise InputError(f"'{name}' holds no text; give a file with one text a line")
    return list(found.values())


def _is_name(ref: str) -> bool:
    name, at, _ = ref.partition("=")
    return ref in datasets or (bool(at) and name in datasets)


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise InputError(f"'{path}' is not a file; give one with one text a line")
    try:
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE:
                    raise InputError(
                        f"a line of '{path}' is longer than {_LONGEST_LINE:,} characters; "
                        "give a file with one text a line"
                    )
                yield line
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' is not UTF-8 text ({error.reason} at byte {error.start}); convert it"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None


def _column(ref: str, column: str) -> Iterator[str]:
    parts = read_tables(ref)
    for table in parts.get("train") or next(iter(parts.values())):
        if column not in table.names:
            raise InputError(
                f"{table.where} has no column '{column}'; it has: {', '.join(table.names)}; "
                "name the one with the texts with --text-column"
            )
        values: Sequence[Any] = table.values(column)
        for number, value in enumerate(values, start=1):
            if value is not None and not isinstance(value, str):
                raise InputError(
                    f"{table.where} row {number}: column '{column}' holds a "
                    f"{type(value).__name__}, a text is expected"
                )
            yield value or ""
