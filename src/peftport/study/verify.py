"""Reads a whole store again and says what is no longer what was written. No torch here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftport.errors import InputError
from peftport.study import database as db
from peftport.study import schema
from peftport.study.grid import read_study
from peftport.study.store import Store

#: what to do about a damage
COPY = "restore the store from a copy, or give a new --store"
RUN = "run the study with the same command"
RETRY = "run the study with the same command and --retry-damaged"


@dataclass(frozen=True)
class Damage:
    """One thing that is not what was written, and what to do about it; ``key`` names the training
    that is done again to mend it."""

    text: str
    remedy: str = COPY
    key: str = ""


@dataclass(frozen=True)
class Findings:
    """What :func:`verify` read, what is wrong, and files that nothing needs.

    Attributes:
        counts: how many trainings, results, scores and modules were read.
        damages: what is wrong, in a fixed order.
        unused: names of module files that no result names; a killed writer leaves such behind.
    """

    counts: dict[str, int]
    damages: tuple[Damage, ...]
    unused: tuple[str, ...]

    @property
    def trainings(self) -> dict[str, str]:
        """Key to what is wrong, for trainings that can be done again."""
        texts: dict[str, list[str]] = {}
        for damage in self.damages:
            if damage.key:
                texts.setdefault(damage.key, []).append(damage.text)
        return {key: " and ".join(found) for key, found in texts.items()}

    @property
    def lasting(self) -> tuple[str, ...]:
        """What only a copy mends."""
        return tuple(damage.text for damage in self.damages if damage.remedy == COPY)

    def to_json(self) -> dict[str, Any]:
        damages = [
            {"what": d.text, "training": d.key or None, "remedy": d.remedy} for d in self.damages
        ]
        return {"read": self.counts, "damages": damages, "unused": list(self.unused)}


def verify(store: Store) -> Findings:
    """Read every table, score and module of a store and compare them with their digests."""
    counts: Counter[str] = Counter()
    modules = "SELECT key, module FROM results WHERE status = 'done' AND module IS NOT NULL"
    try:
        with db.parsing(store.folder):
            named = dict(store.query(f"{modules} ORDER BY key"))
            damages = [
                *_tables(store), *_results(store, counts), *_modules(store.folder, named, counts),
            ]  # fmt: skip
    except db.DamagedStore as error:
        return Findings(dict(counts), (Damage(str(error)),), ())
    files = {path.stem for path in (store.folder / db.MODULES).glob("*.safetensors")}
    return Findings(dict(counts), tuple(damages), tuple(sorted(files - {*named.values()})))


def _tables(store: Store) -> Iterator[Damage]:
    """What is written once."""
    for pragma in ("integrity_check", "foreign_key_check"):
        for line in store.query(f"PRAGMA {pragma}"):
            if line != ("ok",):
                yield Damage(f"database: {' '.join(map(str, line))}")
    now, then = store.contents()
    for table in (name for name in now if now[name] != then.get(name)):
        yield Damage(f"table '{table}' is not what was written when the store was made")
    path = store.folder / db.STUDY
    try:
        same = read_study(path).digest == store.study.digest
    except InputError as error:
        yield Damage(str(error), RUN)
    else:
        if not same:
            yield Damage(f"'{path}' is not the study of this store", RUN)


def _results(store: Store, counts: Counter[str]) -> Iterator[Damage]:
    lines = store.query(
        "SELECT key, status, parameters, module, error, split, digest FROM results "
        "WHERE status <> 'damaged' ORDER BY key"
    )
    for *line, digest in lines:
        key, status = line[:2]
        counts["results"] += 1
        if schema.result_digest(*line) != digest:
            yield Damage(f"the result of training {key[:12]} is damaged", RETRY, key)
        elif status == "done":
            yield from _scores(store, key, counts)


def _scores(store: Store, key: str, counts: Counter[str]) -> Iterator[Damage]:
    there = {budget for (budget,) in store.query("SELECT budget FROM scores WHERE key = ?", (key,))}
    for budget in sorted({*there, *store.budgets(key)}):
        counts["scores"] += 1
        try:
            what = "missing" if store.scores(key, budget) is None else ""
        except InputError:
            what = "damaged"
        if what:
            yield Damage(
                f"the scores of training {key[:12]} at budget {budget} are {what}", RETRY, key
            )


def _modules(folder: Path, named: dict[str, str], counts: Counter[str]) -> Iterator[Damage]:
    for key, name in named.items():
        counts["modules"] += 1
        try:
            content = db.read_plain(folder / db.MODULES / f"{name}.safetensors")
            what = "" if hashlib.sha256(content).hexdigest() == name else "damaged"
        except OSError as error:
            what = f"not to be read ({error.strerror})"
        if what:
            yield Damage(f"the module of training {key[:12]} is {what}", RETRY, key)
