"""What a study file declares: frozen, strict, and equal to what it is written back as."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peftport.errors import InputError
from peftport.plain_yaml import parse_yaml, read_yaml
from peftport.study.rates import Rates, Search, rates_from, rates_to
from peftport.study.reader import Fields

INITS = ("ported", "sampled", "scratch", "head-only", "body-only", "probe")
ABLATIONS = ("head-only", "body-only", "probe")
SETTINGS = ("same", "other")
SAMPLED = ("gaussian", "permuted", "spectrum")


@dataclass(frozen=True)
class DataRef:
    """A dataset by name, Hub id or file, and the columns where it names them otherwise."""

    ref: str
    text: str | None = None
    label: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Data:
    """``target`` is trained on and tested; a source module saw it (same) or ``other``.

    ``train``, ``validation`` and ``test`` cap the sentences taken of a split (None: all).
    """

    target: DataRef
    other: DataRef | None
    settings: tuple[str, ...]
    train: int | None
    validation: int | None
    test: int | None


@dataclass(frozen=True)
class Source:
    """How source modules are trained; ``seed`` None means each run's own seed."""

    steps: int
    batch: int
    seed: int | None


@dataclass(frozen=True)
class Target:
    """Steps on the target before each measurement, ascending, and the batch size."""

    budgets: tuple[int, ...]
    batch: int


@dataclass(frozen=True)
class Strategy:
    """Which strategy ports between hosts of one shape and which between others."""

    same_shape: str
    otherwise: str
    layers: str
    norm_match: bool
    texts: int


@dataclass(frozen=True)
class Extras:
    """Rows beside the grid: the ceiling, and what half of a module does."""

    native_seeds: tuple[int, ...] = ()
    ablation_inits: tuple[str, ...] = ()
    ablation_seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Study:
    """One study file. ``base`` is where its relative paths start; it is not part of the study."""

    name: str
    hosts: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    task: Mapping[str, Any]
    head: str
    data: Data
    methods: Mapping[str, Mapping[str, Any]]
    source: Source
    target: Target
    seeds: tuple[int, ...]
    inits: tuple[str, ...]
    sampled: str
    strategy: Strategy
    extras: Extras
    rates: Rates
    base: str = field(default=".", compare=False)

    @property
    def is_search(self) -> bool:
        return isinstance(self.rates, Search)

    @property
    def digest(self) -> str:
        """Digest of everything that the file declares, however it was written."""
        text = json.dumps(to_mapping(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_study(path: Path) -> Study:
    """The study of a YAML file. Raises InputError naming the file and the key."""
    return study_from(read_yaml(path), path.name, path.resolve().parent)


def parse_study(text: str, name: str = "study", base: Path | None = None) -> Study:
    """The study of YAML text."""
    return study_from(parse_yaml(text, name), name, base or Path())


def study_from(value: Any, file: str, base: Path) -> Study:
    """A study from what YAML gave; every value is checked here, before anything is loaded."""
    top = Fields(value, "", file)
    hosts = top.texts("hosts")
    seeds = top.wholes("seeds")
    source = _source(top.part("source"))
    study = Study(
        name=top.text("name"),
        hosts=hosts,
        pairs=_pairs(top, hosts),
        task=dict(top.parts("task", {})),
        head=top.text("head", "pooler", choices=("pooler", "mean")),
        data=_data(top.part("data")),
        methods=_methods(top),
        source=source,
        target=_target(top.part("target")),
        seeds=seeds,
        inits=top.texts("inits", ("ported", "sampled", "scratch"), choices=INITS),
        sampled=top.text("sampled", "gaussian", choices=SAMPLED),
        strategy=_strategy(top.part("strategy", {})),
        extras=_extras(top.part("extras", {})),
        rates=rates_from(top, base),
        base=str(base),
    )
    top.done()
    _check_together(study, file)
    return study


def to_mapping(study: Study) -> dict[str, Any]:
    """The study as a mapping with the file's own keys: ``study_from`` reads it back equal."""
    data, source, strategy, extras = study.data, study.source, study.strategy, study.extras
    facts: dict[str, Any] = {
        "name": study.name,
        "hosts": list(study.hosts),
        "pairs": [list(pair) for pair in study.pairs],
        "task": dict(study.task),
        "head": study.head,
        "data": {
            "target": _ref_to(data.target),
            "settings": list(data.settings),
            "train": data.train,
            "validation": data.validation,
            "test": data.test,
        },
        "methods": {name: dict(config) for name, config in study.methods.items()},
        "source": {
            "steps": source.steps,
            "batch": source.batch,
            "seeds": "run" if source.seed is None else [source.seed],
        },
        "target": {"budgets": list(study.target.budgets), "batch": study.target.batch},
        "seeds": list(study.seeds),
        "inits": list(study.inits),
        "sampled": study.sampled,
        "strategy": {
            "same-shape": strategy.same_shape,
            "otherwise": strategy.otherwise,
            "layers": strategy.layers,
            "norm-match": strategy.norm_match,
            "texts": strategy.texts,
        },
        "extras": {},
        "rates": rates_to(study.rates),
    }
    if data.other is not None:
        facts["data"]["other"] = _ref_to(data.other)
    if extras.native_seeds:
        facts["extras"]["native"] = {"seeds": list(extras.native_seeds)}
    if extras.ablation_seeds:
        facts["extras"]["ablations"] = {
            "inits": list(extras.ablation_inits),
            "seeds": list(extras.ablation_seeds),
        }
    return facts


def _pairs(top: Fields, hosts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    value = top.raw("pairs", "all")
    if value == "all":
        return tuple((a, b) for a in hosts for b in hosts if a != b)
    expected = "'all' or a list of [source, target] from hosts"
    if not isinstance(value, list) or not value:
        raise top.fail("pairs", expected, value)
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or any(h not in hosts for h in pair):
            raise top.fail("pairs", expected, pair)
        if value.count(pair) > 1 or pair[0] == pair[1]:
            raise top.fail("pairs", "pairs of two hosts without repeats", pair)
    return tuple((pair[0], pair[1]) for pair in value)


def _methods(top: Fields) -> dict[str, dict[str, Any]]:
    found = top.parts("methods")
    if not found:
        raise top.fail("methods", "a mapping of method to config, e.g. {lora: {}}", found)
    for name, config in found.items():
        if not isinstance(config, Mapping):
            raise top.fail(f"methods.{name}", "a mapping of hyperparameters", config)
    return {name: dict(config) for name, config in found.items()}


def _ref(part: Fields, key: str) -> DataRef:
    if isinstance(part.raw(key), str):
        return DataRef(part.text(key))
    inner = part.part(key)
    names = [inner.text(name, None) for name in ("text", "label", "group")]
    ref = DataRef(inner.text("ref"), *names)
    inner.done()
    return ref


def _ref_to(ref: DataRef) -> Any:
    named = {key: value for key, value in asdict(ref).items() if value is not None}
    return named if len(named) > 1 else ref.ref


def _data(part: Fields) -> Data:
    data = Data(
        target=_ref(part, "target"),
        other=_ref(part, "other") if part.has("other") else None,
        settings=part.texts("settings", ("same",), choices=SETTINGS),
        train=part.whole("train", None, least=2),
        validation=part.whole("validation", None, least=2),
        test=part.whole("test", None, least=2),
    )
    part.done()
    if "other" in data.settings and data.other is None:
        raise part.fail("other", "a dataset, as settings name 'other'", None)
    return data


def _source(part: Fields) -> Source:
    seeds = None if part.raw("seeds", "run") == "run" else part.wholes("seeds")
    if seeds is not None and len(seeds) != 1:
        raise part.fail("seeds", "'run' (each run's own seed) or a list of one seed", list(seeds))
    source = Source(
        steps=part.whole("steps", least=1),
        batch=part.whole("batch", 16, least=1),
        seed=None if seeds is None else seeds[0],
    )
    part.done()
    return source


def _target(part: Fields) -> Target:
    target = Target(part.wholes("budgets"), part.whole("batch", 16, least=1))
    part.done()
    if list(target.budgets) != sorted(target.budgets):
        raise part.fail("budgets", "in ascending order", list(target.budgets))
    return target


def _strategy(part: Fields) -> Strategy:
    strategy = Strategy(
        same_shape=part.text("same-shape", "copy"),
        otherwise=part.text("otherwise", "ridge"),
        layers=part.text("layers", "depth"),
        norm_match=part.flag("norm-match", False),
        texts=part.whole("texts", 1024, least=1),
    )
    part.done()
    return strategy


def _extras(part: Fields) -> Extras:
    native, inits, seeds = (), (), ()
    if part.has("native"):
        inner = part.part("native")
        native = inner.wholes("seeds")
        inner.done()
    if part.has("ablations"):
        inner = part.part("ablations")
        inits = inner.texts("inits", ABLATIONS, choices=ABLATIONS)
        seeds = inner.wholes("seeds")
        inner.done()
    part.done()
    return Extras(native, inits, seeds)


def _check_together(study: Study, file: str) -> None:
    used = {*study.seeds, *study.extras.native_seeds, *study.extras.ablation_seeds}
    used |= set() if study.source.seed is None else {study.source.seed}
    both = sorted(used & set(study.rates.seeds))
    if both:
        raise InputError(
            f"{file}: rates.seeds must not overlap the seeds of the study, got {both} in both; "
            "choose rates on other seeds"
        )
    if study.is_search and study.data.settings != ("same",):
        raise InputError(
            f"{file}: data.settings must be [same] where rates are searched, got "
            f"{list(study.data.settings)}; a rate is chosen on the target's own data"
        )
    if study.is_search and study.extras != Extras():
        raise InputError(
            f"{file}: extras do not go with rates.search; give them a study of their own"
        )
