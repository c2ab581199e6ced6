"""The user's own data: train, validation and test texts, with the adapter's class of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftport.assessing.settings import Settings
from peftport.data.datasets import Dataset
from peftport.data.splits import hash_unit, normalise, split_of
from peftport.errors import InputError, UnknownName
from peftport.kinds import is_whole
from peftport.methods.base import Module
from peftport.port_folder.texts import read_texts
from peftport.study.materials import Part

#: data class -> the adapter's class, by number or name
LabelMap = Mapping[str, int | str]
#: texts that are read where there are no labels
_MOST_TEXTS = 20_000


@dataclass(frozen=True)
class UserData:
    """Texts with the adapter's class of each; without labels all classes are 0.

    Attributes:
        name: how it was asked for.
        classes: what the data calls each of the adapter's classes; empty without labels.
        train, validation, test: its parts, which share no text.
        notes: what was dropped and assumed, one line each.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    validation: Part
    test: Part
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        parts = [part.digest for part in (self.train, self.validation, self.test)]
        return hashlib.sha256(json.dumps([*parts, self.classes]).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        sizes = {n: len(getattr(self, n).texts) for n in ("train", "validation", "test")}
        facts = {"name": self.name, "digest": self.digest, "classes": list(self.classes)}
        return {**facts, **sizes, "notes": list(self.notes)}


def labelled(
    dataset: Dataset,
    module: Module,
    count: int | None,
    settings: Settings,
    labels: LabelMap | None = None,
) -> UserData:
    """Labelled data, split by a stable hash unless it has splits of its own.

    What the adapter is known to have been trained on is left out of its training part.

    Args:
        dataset: the user's.
        module: the adapter; its notes may name its classes and its training data.
        count: how many classes it decides between; None: as many as the data has.
        settings: how many texts are used.
        labels: which class of the data is which of the adapter's.

    Raises:
        InputError: data that cannot be used, or classes that do not correspond.
    """
    known = module.notes.get("data")
    seen = isinstance(known, Mapping) and known.get("digest") == dataset.digest
    index, notes = _classes(dataset, module, count, labels)
    parts: dict[str, Part] = {}
    for name, splits, most in (
        ("train", ("target-train",) if seen else ("target-train", "source-train"), settings.train),
        ("validation", ("validation",), settings.validation),
        ("test", ("test",), settings.test),
    ):
        dataset.split(splits[0])  # says what is missing
        examples = [e for split in splits for e in dataset.split(split)]
        found = sorted(examples, key=lambda e: _place(e.text))[:most]
        parts[name] = Part(tuple(e.text for e in found), tuple(index[e.label] for e in found))
    if len(set(parts["test"].labels)) < 2:
        raise InputError(
            f"the {len(parts['test'].labels)} test texts of '{dataset.name}' are all of one class; "
            "give more data"
        )
    names = [""] * max(count or 0, max(index) + 1)
    for own, theirs in enumerate(index):
        names[theirs] = dataset.classes[own]
    if seen:
        notes.append("its source-train split is left out: the adapter was trained on it")
    train, validation, test = parts.values()
    return UserData(dataset.name, tuple(names), train, validation, test, (*dataset.notes, *notes))


def _classes(
    dataset: Dataset, module: Module, count: int | None, labels: LabelMap | None
) -> tuple[list[int], list[str]]:
    """For every class of the data the adapter's, and what had to be assumed."""
    data = module.notes.get("data")
    own = module.notes.get("classes") or (
        data.get("classes") if isinstance(data, Mapping) else None
    )
    own = [str(name) for name in own] if isinstance(own, Sequence) else []
    many = len(dataset.classes) if count is None else count
    if labels is not None:
        return _mapped(dataset, labels, own, many), []
    places = {normalise(name): at for at, name in enumerate(own)}
    theirs = [normalise(name) for name in dataset.classes]
    if len(places) == many and all(name in places for name in theirs):
        return [places[name] for name in theirs], []
    if len(theirs) != many:
        raise InputError(
            f"'{dataset.name}' has {len(theirs)} classes ({', '.join(dataset.classes)}), the "
            f"adapter decides between {many}{f' ({chr(44).join(own)})' if own else ''}; say which "
            "is which with --label DATA=ADAPTER"
        )
    order = ", ".join(dataset.classes)
    return list(range(many)), [f"the adapter's classes were taken to be {order}, in this order"]


def _mapped(dataset: Dataset, labels: LabelMap, own: list[str], many: int) -> list[int]:
    for name in labels:
        if name not in dataset.classes:
            raise UnknownName(f"class of '{dataset.name}'", name, dataset.classes)
    found: list[int] = []
    for name in dataset.classes:
        if name not in labels:
            raise InputError(
                f"the label map has no entry for class '{name}' of '{dataset.name}'; add "
                f"--label {name}=CLASS"
            )
        given = labels[name]
        place = own.index(given) if isinstance(given, str) and given in own else given
        if isinstance(place, str) and place.isdecimal():
            place = int(place)
        if not is_whole(place) or not 0 <= place < many:
            known = f"0..{many - 1}" + (f" or {', '.join(own)}" if own else "")
            raise InputError(f"class '{name}' is mapped to '{given}'; expected {known}")
        found.append(place)
    if len(set(found)) < len(found):
        raise InputError(f"the label map sends two classes of '{dataset.name}' to one: {labels}")
    return found


def unlabelled(ref: str, settings: Settings, *, column: str = "text") -> UserData:
    """Texts alone, split by the same hash, for held-out loss.

    Raises:
        InputError: no such data, or a part without a text.
    """
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for text in read_texts(ref, column=column, count=_MOST_TEXTS):
        split = split_of(text)
        parts["train" if split.endswith("train") else split].append(text)
    for name, texts in parts.items():
        if not texts:
            raise InputError(f"'{ref}' has no {name} texts; give more of them")
        texts[:] = sorted(texts, key=_place)[: getattr(settings, name)]
    train, validation, test = (Part(tuple(t), (0,) * len(t)) for t in parts.values())
    return UserData(ref, (), train, validation, test)


def _place(text: str) -> tuple[float, str]:
    """Texts are chosen by their hashes, as a study's are, and not by where they stand: files are
    often sorted by class."""
    return hash_unit(text), text


def constant(labels: np.ndarray) -> np.ndarray:
    """Hits [N] of predicting the most frequent class."""
    values, counts = np.unique(labels, return_counts=True)
    return np.asarray(labels == values[counts.argmax()], dtype=float)
