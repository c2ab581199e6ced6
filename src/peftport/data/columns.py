"""From tables to examples: which column is what, and which label value is which class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from peftport.data.examples import Example
from peftport.data.sources.base import Raw
from peftport.data.tables import Part, Table
from peftport.errors import InputError, UnknownName

#: more label values than this are taken for a mistaken column
MAX_CLASSES = 100
#: the label of a test part that its publisher keeps back
HIDDEN = -1

Value = int | str


@dataclass(frozen=True)
class Columns:
    """Which column of a file or Hub dataset is what.

    Attributes:
        text: the text to classify.
        label: its class, integers or strings.
        group: what the text was taken from; rows of one group share a split. None: the text.
    """

    text: str = "text"
    label: str = "label"
    group: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """From a mapping (YAML, JSON); unknown keys are refused."""
        for key in facts:
            if key not in [f.name for f in fields(cls)]:
                raise UnknownName("key of columns", str(key), [f.name for f in fields(cls)])
        return cls(**facts)


@dataclass(frozen=True)
class _Row:
    where: str
    text: str
    value: Value
    group: str


def raw_from_tables(
    tables: Mapping[Part, Sequence[Table]],
    columns: Columns,
    names: Sequence[str] | None = None,
) -> Raw:
    """Examples of a dataset's parts.

    The dataset's own test part is its test set where it has one with labels; where those are
    hidden (all -1), its validation part is. Everything else is pooled and split by the hash.

    Args:
        tables: tables by part.
        columns: which column is what.
        names: class names for the sorted label values, e.g. ("negative", "positive").

    Raises:
        InputError: a column is missing, a label is empty or of no class, or there is one class.
    """
    rows = {part: [r for table in ts for r in _rows(table, columns)] for part, ts in tables.items()}
    hidden = [part for part, found in rows.items() if {r.value for r in found} == {HIDDEN}]
    own_test: Part | None = None
    if rows.get("test"):
        own_test = "validation" if "test" in hidden else "test"
        own_test = own_test if rows.get(own_test) else None
    seen = {part: found for part, found in rows.items() if part not in hidden}
    pool = [row for part, found in seen.items() if part != own_test for row in found]
    values = _classes(pool, columns)
    named = {value: str(value) for value in values}
    for part in tables.values():
        known = part[0].labels(columns.label)
        if known:
            named = {value: known[int(value)] for value in values}
    if names is not None:
        if len(names) != len(values):
            raise InputError(
                f"column '{columns.label}' has the values {_list(values)};"
                f" {len(names)} classes are expected: {', '.join(names)}"
            )
        named = dict(zip(values, names, strict=True))
    index = {value: at for at, value in enumerate(values)}
    notes = [f"labels: {', '.join(f'{value} is {named[value]}' for value in values)}"]
    if own_test == "validation":
        notes.append("the labels of its test part are hidden: its validation part is the test set")
    return Raw(
        tuple(named[value] for value in values),
        [_example(row, index, columns) for row in pool],
        [_example(row, index, columns) for row in (seen[own_test] if own_test else ())],
        tuple(notes),
    )


def _rows(table: Table, columns: Columns) -> list[_Row]:
    wanted = [columns.text, columns.label] + ([columns.group] if columns.group else [])
    for role, name in zip(("text", "label", "group"), wanted, strict=False):
        if name not in table.names:
            option = "" if role == "group" else f" (a command's --{role}-column {table.names[0]})"
            raise InputError(
                f"{table.where} has no column '{name}' for the {role}; it has:"
                f" {', '.join(table.names)}; name the right one, e.g. {role}={table.names[0]}"
                f"{option}"
            )
    read = [table.values(name) for name in wanted]
    if columns.group is None:
        read.append(read[0])
    found = []
    for number, (text, label, group) in enumerate(zip(*read, strict=True), start=1):
        where = f"{table.where} row {number}"
        if text is not None and not isinstance(text, str):
            raise InputError(
                f"{where}: column '{columns.text}' holds a {type(text).__name__},"
                " a text is expected"
            )
        plain = (text or "").strip()
        found.append(_Row(where, plain, _value(label, where, columns), str(group or plain).strip()))
    return found


def _value(label: Any, where: str, columns: Columns) -> Value:
    if isinstance(label, bool):
        return str(label)
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if isinstance(label, str) and label.strip():
        plain = label.strip()
        # csv has no types: "0" and "-1" are integers, "007" and "1.0" are words
        return int(plain) if re.fullmatch(r"0|-?[1-9][0-9]{0,8}", plain) else plain
    if isinstance(label, int):
        return label
    given = "is empty" if label is None or label == "" else f"holds {label!r}"
    raise InputError(f"{where}: column '{columns.label}' {given}; an integer or a word is expected")


def _classes(rows: Sequence[_Row], columns: Columns) -> list[Value]:
    """The label values: integers in their order, then strings in theirs."""
    found = {row.value for row in rows}
    values = sorted(found, key=lambda v: (isinstance(v, str), v))
    if len(values) < 2 or len(values) > MAX_CLASSES:
        raise InputError(
            f"column '{columns.label}' has {len(values)} different values ({_list(values)}) in"
            f" {len(rows)} training rows; 2 to {MAX_CLASSES} classes are expected:"
            " is it the label column?"
        )
    return values


def _example(row: _Row, index: Mapping[Value, int], columns: Columns) -> Example:
    if row.value not in index:
        raise InputError(
            f"{row.where}: label '{row.value}' in column '{columns.label}' is not one of the"
            f" training part's classes: {_list(list(index))}"
        )
    return Example(row.text, index[row.value], row.group)


def _list(values: Sequence[Value]) -> str:
    shown = ", ".join(map(repr, values[:5]))
    return f"{shown}, ..." if len(values) > 5 else shown or "none"
