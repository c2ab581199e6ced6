"""Reads YAML that a stranger may have written: size-limited, no aliases, no unknown keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from peftport.errors import InputError

T = TypeVar("T")
MAX_BYTES = 1_000_000
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_REQUIRED: Any = object()


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (they can expand without bound) and without doubled keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.YAMLError(f"key '{key_node.value}' is given twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: the file is missing, too large or not plain YAML.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a YAML file") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes; a study file is a page of YAML")
    return parse_yaml(raw, str(path))


def parse_yaml(raw: bytes | str, name: str) -> Any:
    """The content of YAML text; ``name`` is for error messages."""
    try:
        return yaml.load(raw, Loader=_Loader)
    except (yaml.YAMLError, ValueError, UnicodeDecodeError, RecursionError) as error:
        text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{name} is not valid YAML: {text[:200]}") from None


def shown(value: Any) -> str:
    """A value for an error message: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """One mapping of a study file, asked for key by key; what nobody asked for is unknown.

    Args:
        value: what YAML gave.
        where: dotted key of the mapping, empty at the top.
        file: name of the file.
    """

    def __init__(self, value: Any, where: str, file: str) -> None:
        self._where, self._file = where, file
        if not isinstance(value, Mapping):
            raise InputError(f"{file}: {where or 'a study'} must be a mapping, got {shown(value)}")
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{file}: key {shown(key)} must be text; put it in quotes")
        self._value = value
        self._asked: list[str] = []

    def name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def fail(self, key: str, expected: str, got: Any) -> InputError:
        return InputError(f"{self._file}: {self.name(key)} must be {expected}, got {shown(got)}")

    def has(self, key: str) -> bool:
        self._asked.append(key)
        return self._value.get(key) is not None

    def raw(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value as YAML gave it; an absent or empty one is the default."""
        if self.has(key):
            return self._value[key]
        if default is _REQUIRED:
            raise InputError(f"{self._file}: the key '{self.name(key)}' is missing")
        return default

    def text(self, key: str, default: Any = _REQUIRED, choices: Sequence[str] | None = None) -> Any:
        value = self.raw(key, default)
        return value if value is default else self._text(key, value, choices)

    def whole(self, key: str, default: Any = _REQUIRED, *, least: int = 0) -> Any:
        value = self.raw(key, default)
        return value if value is default else self._whole(key, value, least)

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.raw(key, default)
        return value if value is default else self._number(key, value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false", value)
        return value

    def texts(
        self, key: str, default: Any = _REQUIRED, choices: Sequence[str] | None = None
    ) -> Any:
        return self._list(key, default, lambda value: self._text(key, value, choices))

    def wholes(self, key: str, default: Any = _REQUIRED, *, least: int = 0) -> Any:
        return self._list(key, default, lambda value: self._whole(key, value, least))

    def numbers(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._list(key, default, lambda value: self._number(key, value))

    def part(self, key: str, default: Any = _REQUIRED) -> Fields:
        return Fields(self.raw(key, default), self.name(key), self._file)

    def parts(self, key: str, default: Any = _REQUIRED) -> dict[str, Any]:
        """A mapping whose keys are free names."""
        inner = self.part(key, default)
        return {name: inner.raw(name, {}) for name in inner._value}

    def done(self) -> None:
        """Refuses every key that nobody asked for."""
        for key in self._value:
            if key not in self._asked:
                close = difflib.get_close_matches(key, self._asked, n=1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                known = ", ".join(sorted(set(self._asked)))
                raise InputError(
                    f"{self._file}: unknown key '{self.name(key)}'; {hint}known: {known}"
                )

    def _text(self, key: str, value: Any, choices: Sequence[str] | None) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.fail(key, "text", value)
        if choices is not None and value not in choices:
            raise self.fail(key, "one of " + ", ".join(choices), value)
        return value

    def _whole(self, key: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            raise self.fail(key, f"a whole number >= {least}", value)
        return value

    def _number(self, key: str, value: Any) -> float:
        # YAML 1.1 reads 1e-3 (no dot) as text; people write it all the same
        if isinstance(value, str) and _FLOAT.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise self.fail(key, "a number > 0", value)
        return float(value)

    def _list(self, key: str, default: Any, read: Callable[[Any], T]) -> Any:
        value = self.raw(key, default)
        if value is default:
            return value
        if not isinstance(value, list) or not value:
            raise self.fail(key, "a list with at least one entry", value)
        items = tuple(read(item) for item in value)
        if len(set(items)) < len(items):
            raise self.fail(key, "a list without repeats", value)
        return items
