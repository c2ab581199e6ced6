"""What a study works on: its sentences, its hosts' specs and its methods' configs, all checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peftport.data.datasets import Columns, Dataset, load_dataset
from peftport.data.examples import Example
from peftport.data.leaks import guard, remove_leaks
from peftport.data.splits import hash_unit, normalise
from peftport.data.tasks import Task
from peftport.errors import InputError
from peftport.hosts.families.base import Family, families
from peftport.hosts.load import check_length, inspect_host, longest_text
from peftport.hosts.packaged import is_packaged
from peftport.hosts.packed.device import dtype_named
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, check_config, methods
from peftport.study.grid import DataRef, Study

#: parts of the data that something is trained on, by who trains there
TARGET, SAME, OTHER = "target-train", "source-train same", "source-train other"


@dataclass(frozen=True)
class Part:
    """Sentences with their classes, and a digest of both."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    @cached_property
    def digest(self) -> str:
        text = json.dumps([self.texts, self.labels])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def ids(self) -> list[str]:
        """A short id of every sentence: the same sentence has the same id in every study."""
        hashes = (hashlib.sha256(normalise(text).encode()) for text in self.texts)
        return [h.hexdigest()[:12] for h in hashes]


@dataclass(frozen=True)
class Materials:
    """A study with everything it names found and checked, before any compute.

    Attributes:
        study: the grid.
        task: what hosts are asked.
        parts: training sentences by :data:`TARGET`, :data:`SAME`, :data:`OTHER`.
        measured: the sentences that modules are measured on: test, or validation in a search.
        unlabelled: texts for strategies that look at activations; of the target's training part.
        specs: host name to its spec.
        configs: (method, host) to the method's config there.
        guard: what the leak guard looked at and dropped.
        dtype: of the hosts' weights while modules are trained and measured on them; ports are
            always computed in float32.
    """

    study: Study
    task: Task
    parts: Mapping[str, Part]
    measured: Part
    unlabelled: tuple[str, ...]
    specs: Mapping[str, HostSpec]
    configs: Mapping[tuple[str, str], MethodConfig]
    guard: Mapping[str, int]
    dtype: str = "float32"

    @property
    def words(self) -> frozenset[str]:
        """Hosts that answer with a word and so have no head."""
        return frozenset(
            host
            for host, spec in self.specs.items()
            if families.get(spec.family).decides_by == "word"
        )

    @property
    def classes(self) -> int:
        return len(self.task.verbalisers)

    def ref(self, host: str) -> str:
        """The name to load a host by."""
        return located(self.study, host)


def gather(study: Study, dtype: str = "float32") -> Materials:
    """Find and check everything that a study names.

    Raises:
        InputError: an unknown method, host, dataset or column, a broken host, a leak; hosts that
            modules cannot be trained on in this dtype.
    """
    dtype_named(dtype)
    for method in study.methods:
        methods.get(method)
    task = Task.from_json({key.replace("-", "_"): v for key, v in study.task.items()})
    specs = {host: inspect_host(located(study, host)) for host in study.hosts}
    configs = {
        (method, host): config_of(method, given, spec)
        for method, given in study.methods.items()
        for host, spec in specs.items()
    }
    for host, spec in specs.items():
        check_dtype(host, spec, dtype)
        check_texts(study, host, task, [c for (_, on), c in configs.items() if on == host])
    parts, measured, counts = sentences(study, task)
    unlabelled = parts[TARGET].texts[: study.strategy.texts]
    return Materials(study, task, parts, measured, unlabelled, specs, configs, counts, dtype)


def located(study: Study, name: str) -> str:
    """A name in a study file; a path there starts at the file's folder."""
    beside = Path(study.base) / name
    return str(beside) if not is_packaged(name) and beside.exists() else name


def check_dtype(host: str, spec: HostSpec, dtype: str) -> None:
    """Raises InputError where a host has no packed program: nothing else trains in this dtype."""
    if dtype != "float32" and not in_banks(spec):
        raise InputError(
            f"host '{host}' has no packed program, so modules are trained on it in float32 "
            f"only; leave --dtype {dtype} out"
        )


def check_texts(study: Study, host: str, task: Task, configs: Sequence[MethodConfig]) -> None:
    """Raises InputError where a host has not a place for every token, behind a prefix too."""
    longest = longest_text(located(study, host))
    check_length(host, longest, task.max_tokens, max((c.shift for c in configs), default=0))


def in_banks(spec: HostSpec) -> bool:
    """Whether the host's family has a packed program."""
    return families.get(spec.family).program is not Family.program


def config_of(method: str, given: Mapping[str, Any], spec: HostSpec) -> MethodConfig:
    """A method's config on a host: its default, with what the study's file says of it."""
    cls = methods.get(method)
    config = cls.config_class.from_json({**cls().default_config(spec).to_json(), **given})
    check_config(spec, config)
    return config


def _load(study: Study, ref: DataRef) -> Dataset:
    names = {"text": ref.text, "label": ref.label, "group": ref.group}
    given = {name: column for name, column in names.items() if column is not None}
    return load_dataset(located(study, ref.ref), columns=Columns(**given) if given else None)


def sentences(study: Study, task: Task) -> tuple[dict[str, Part], Part, dict[str, int]]:
    """Training parts, measured part, and the leak guard's counts."""
    data = study.data
    target = _load(study, data.target)
    task.check(target.classes)
    validation = _first(target.split("validation"), data.validation)
    measured = validation if study.is_search else _first(target.split("test"), data.test)
    # the whole protected splits, not only the sentences that are used of them
    protected = [e.text for s in ("validation", "test") for e in target.parts[s]]
    train = {
        TARGET: _first(target.split("target-train"), data.train),
        SAME: _first(target.split("source-train"), data.train),
    }
    counts = {"validation and test": len(protected)}
    if "other" in data.settings and data.other is not None:
        other = _load(study, data.other)
        task.check(other.classes)
        mine = [*protected, *(e.text for e in target.parts["target-train"])]
        wanted = _first(other.split("source-train"), data.train)
        train[OTHER], dropped = remove_leaks(wanted, mine)
        counts["dropped from source-train other"] = dropped
    guard({"validation and test": protected, **{n: [e.text for e in p] for n, p in train.items()}})
    parts = {name: _part(examples) for name, examples in train.items()}
    counts |= {name: len(part.texts) for name, part in parts.items()}
    return parts, _part(measured), counts


def _first(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most ``limit`` examples, chosen by their texts' hashes and not by where they stand."""
    return sorted(examples, key=lambda example: (hash_unit(example.text), example.text))[:limit]


def _part(examples: Sequence[Example]) -> Part:
    return Part(tuple(e.text for e in examples), tuple(e.label for e in examples))
