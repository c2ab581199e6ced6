"""The contract of a named dataset. One file per dataset registers one subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from peftport.data.examples import Example
from peftport.errors import InputError
from peftport.registry import Registry


@dataclass(frozen=True)
class Raw:
    """What a dataset holds before it is cleaned and split.

    Attributes:
        classes: names of the classes in label order.
        pool: examples whose split is decided by the hash of their group.
        test: the dataset's own test part; empty where it has none (then the hash decides it).
        notes: what people should know of these numbers, one line each.
    """

    classes: tuple[str, ...]
    pool: Sequence[Example]
    test: Sequence[Example] = ()
    notes: tuple[str, ...] = ()


class Source(ABC):
    """A dataset that is known by name.

    Args:
        location: where to read it instead of its usual place (``sst2=FOLDER``).
    """

    #: registered name
    name: ClassVar[str]
    #: one line for ``peftport list datasets``
    summary: ClassVar[str]
    #: where the dataset is described
    reference_url: ClassVar[str]
    #: whether it can be read from another place
    relocatable: ClassVar[bool] = False

    def __init__(self, location: str | None = None) -> None:
        if location is not None and not self.relocatable:
            raise InputError(
                f"'{self.name}' comes from a package, not from '{location}'; give either"
                f" {self.name} or the path alone"
            )
        self.location = location

    @abstractmethod
    def read(self) -> Raw:
        """All examples. Raises InputError with the remedy when they cannot be had."""


datasets: Registry[type[Source]] = Registry("dataset", "peftport.data.sources")
