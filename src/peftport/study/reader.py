"""The mappings of a study file, asked for key by key: a message names the key, none is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from peftport.errors import InputError
from peftport.kinds import is_number, is_whole

T = TypeVar("T")
_REQUIRED: Any = object()


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
        if not is_whole(value) or not least <= value < 2**31:
            raise self.fail(key, f"a whole number >= {least}", value)
        return value

    def _number(self, key: str, value: Any) -> float:
        if not is_number(value) or not 0 < value < 1e6:
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
