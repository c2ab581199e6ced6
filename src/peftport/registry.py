"""One registry, one decorator: an extension point is a class with a ``name``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from peftport.errors import UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to objects of one kind; modules of ``package`` register themselves when imported.

    Args:
        kind: word for error messages, e.g. ``"method"``.
        package: dotted package whose modules hold the implementations, one file each.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: ``@methods.register("lora")``."""

        def keep(item: T) -> T:
            if name in self._items and self._items[name] is not item:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._items[name] = item
            return item

        return keep

    def get(self, name: str) -> T:
        """The item of that name. Raises :class:`UnknownName` with the known names."""
        self._load()
        try:
            return self._items[name]
        except KeyError:
            raise UnknownName(self.kind, name, self._items) from None

    def names(self) -> list[str]:
        self._load()
        return sorted(self._items)

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return iter([(name, self._items[name]) for name in self.names()])

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for info in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{info.name}")
        self._loaded = True
