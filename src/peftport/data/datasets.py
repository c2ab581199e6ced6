"""Datasets by name, Hub id or path: cleaned, split, and identified by a digest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from peftport.data.columns import Columns, raw_from_tables
from peftport.data.examples import Example
from peftport.data.leaks import exposed
from peftport.data.sources.base import Raw, Source, datasets
from peftport.data.splits import SPLITS, Split, normalise, split_of, split_of_rest
from peftport.data.tables import SUFFIXES, read_tables
from peftport.errors import InputError, UnknownName

__all__ = ["Columns", "Dataset", "Example", "Source", "datasets", "load_dataset"]


@dataclass(frozen=True)
class Dataset:
    """A dataset whose four splits share no text.

    Attributes:
        name: how it was asked for.
        classes: names of the classes in label order.
        parts: examples of every split.
        digest: changes when any text, label, group, split or their order changes.
        notes: what was dropped and what to know of the labels, one line each.
    """

    name: str
    classes: tuple[str, ...]
    parts: dict[Split, tuple[Example, ...]]
    digest: str
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[Example, ...]:
        """The examples of a split. Raises InputError when it is unknown or empty."""
        found = next((self.parts[split] for split in SPLITS if split == name), None)
        if found is None:
            raise UnknownName("split", name, SPLITS)
        if not found:
            sizes = ", ".join(f"{split} {n}" for split, n in self.sizes.items())
            raise InputError(
                f"dataset '{self.name}' has no {name} examples ({sizes}); give more data"
            )
        return found

    @property
    def sizes(self) -> dict[Split, int]:
        return {split: len(self.parts[split]) for split in SPLITS}


def load_dataset(ref: str, *, columns: Columns | None = None) -> Dataset:
    """A dataset ready for a study.

    Args:
        ref: a registered name (``rotten-tomatoes``), a registered name read from elsewhere
            (``sst2=FOLDER``), a local csv, jsonl or parquet file or a folder of them, or a Hub id
            ``org/name@revision``. A name wins over a path, a path over a Hub id.
        columns: which column is what, for files and Hub ids.

    Raises:
        InputError: unknown name, missing file, wrong column, unusable labels.
    """
    name, at, location = ref.partition("=")
    if ref in datasets or (at and name in datasets):
        if columns is not None:
            raise InputError(
                f"dataset '{name}' has its own columns; columns are for files and Hub ids"
            )
        return build(ref, datasets.get(name)(location).read()) if at else _named(name)
    if "/" not in ref and Path(ref).suffix.lower() not in SUFFIXES and not Path(ref).exists():
        raise UnknownName("dataset", ref, datasets.names())
    return build(ref, raw_from_tables(read_tables(ref), columns or Columns()))


@lru_cache(maxsize=4)
def _named(name: str) -> Dataset:
    return build(name, datasets.get(name)().read())


def build(name: str, raw: Raw) -> Dataset:
    """Clean, split and identify what a dataset holds.

    In this order: texts without a word go; of equal texts (after ``normalise``) with one label
    the first stays, the test part's before others; equal texts with contradicting labels all go;
    the splits are made; rows of a group that the dataset's own test part holds go; and a text
    that equals, contains or is contained in one of a more protected split (test, validation,
    target-train, source-train) goes. What went is counted in the notes.
    """
    if not raw.pool:
        raise InputError(f"dataset '{name}' has no labelled training examples")
    kept, counts = _distinct([*raw.test, *raw.pool])
    tests = set(map(id, raw.test))
    test_groups = {example.group for example in raw.test}
    place = lru_cache(maxsize=None)(split_of_rest if raw.test else split_of)
    parts: dict[Split, dict[str, Example]] = {split: {} for split in SPLITS}
    for text, example in kept.items():
        if id(example) in tests:
            parts["test"][text] = example
        elif example.group in test_groups:
            counts["of a group of the test part"] += 1
        else:
            parts[place(example.group)][text] = example
    gone = exposed([list(parts[split]) for split in reversed(SPLITS)])
    counts["that meet a more protected split"] = len(gone)
    notes = [*raw.notes, *(f"dropped {n} texts {why}" for why, n in counts.items() if n)]
    frozen = {
        split: tuple(example for text, example in parts[split].items() if text not in gone)
        for split in SPLITS
    }
    return Dataset(name, raw.classes, frozen, _digest(raw.classes, frozen), tuple(notes))


def _distinct(examples: Sequence[Example]) -> tuple[dict[str, Example], Counter[str]]:
    """The first of equal texts, none of contradicting ones, by normalised text; and how many
    went, by reason."""
    first: dict[str, Example] = {}
    contradicting: set[str] = set()
    texts = [normalise(example.text) for example in examples]
    for text, example in zip(texts, examples, strict=True):
        if first.setdefault(text, example).label != example.label:
            contradicting.add(text)
    kept = {t: example for t, example in first.items() if t and t not in contradicting}
    empty = sum(not text for text in texts)
    against = sum(text in contradicting for text in texts if text)
    counts = Counter({"without a word": empty, "with contradicting labels": against})
    counts["met before"] = len(texts) - empty - against - len(kept)
    return kept, counts


def _digest(classes: Sequence[str], parts: dict[Split, tuple[Example, ...]]) -> str:
    h = hashlib.sha256(json.dumps(list(classes)).encode())
    groups: dict[str, int] = {}
    for split, examples in parts.items():
        for text, label, group in examples:
            fresh = group not in groups  # a long group is read once, then known by its number
            facts = [split, text, label, groups.setdefault(group, len(groups))]
            h.update(json.dumps([*facts, group] if fresh else facts).encode())
    return h.hexdigest()
