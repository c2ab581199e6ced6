"""Where a migration keeps what is done: one SQLite file, on the study store's database layer.

The unit of work is a few adapters of one form. Its results enter in one transaction, so that a
killed migration loses at most the unit in flight. A finished result is never changed.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from peftport.assessing.bench import Controls
from peftport.errors import InputError
from peftport.study import database as db
from peftport.study.rates import Rate

VERSION = "migration 1"
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE adapters (
    name TEXT PRIMARY KEY, outcome TEXT NOT NULL, scores BLOB, traceback TEXT
) STRICT;
CREATE TABLE controls (form TEXT PRIMARY KEY, rates TEXT NOT NULL, scores BLOB NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class Done:
    """What one adapter came to: its line of the triage, its logits, what went wrong."""

    outcome: Mapping[str, Any]
    scores: Mapping[str, np.ndarray] | None = None
    traceback: str | None = None


class Store:
    """A migration's results; open it with :meth:`write` and use it in ``with``."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: int) -> None:
        self.folder = folder
        self._db, self._lock = connection, lock

    @classmethod
    def write(cls, folder: Path, plan: Mapping[str, Any], machine: Mapping[str, Any]) -> Self:
        """Open as the only writer; made when there is none.

        Args:
            folder: where.
            plan: everything that the numbers depend on; a store of another plan is refused.
            machine: what is decided once, when the store is made.

        Raises:
            InputError: another writer, another plan, or a folder that cannot be written.
        """
        with db.one_line_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = db.lock(folder)
            store = cls(folder, db.connect(folder, write=True), lock)
            try:
                store._open({"schema_version": VERSION, "plan": plan, "machine": machine})
            except BaseException:
                store.close()
                raise
        return store

    def _open(self, meta: Mapping[str, Any]) -> None:
        made = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchall()
        if not made:
            with db.transaction(self._db):
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._db.execute(statement)
                rows = [(name, json.dumps(value, sort_keys=True)) for name, value in meta.items()]
                self._db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            return
        if self._meta("schema_version") != VERSION:
            raise InputError(f"'{self.folder}' was made by another peftport; give another -o")
        then, now = self._meta("plan"), json.loads(json.dumps(meta["plan"], sort_keys=True))
        for name in sorted(set(then) | set(now)):
            if then.get(name) != now.get(name):
                raise InputError(
                    f"'{self.folder.parent}' was made with other {name}; give another -o, or go "
                    "back to what it was made with"
                )

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def machine(self) -> dict[str, Any]:
        """What was decided when the store was made."""
        return dict(self._meta("machine"))

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """Adapter to its line of the triage, for all that are done."""
        with db.one_line_errors(self.folder):
            found = self._db.execute("SELECT name, outcome FROM adapters").fetchall()
        return {name: json.loads(outcome) for name, outcome in found}

    def controls(self, form: str) -> Controls | None:
        """What adapters of a form are compared with, where it is there."""
        with db.one_line_errors(self.folder):
            found = self._db.execute(
                "SELECT rates, scores FROM controls WHERE form = ?", (form,)
            ).fetchall()
        if not found:
            return None
        rates, arrays = json.loads(found[0][0]), _unpacked(found[0][1])
        scratch = {
            int(name.removeprefix("scratch_")): array
            for name, array in arrays.items()
            if name.startswith("scratch_")
        }
        chosen = {init: Rate(*rate) for init, rate in rates.items()}
        return Controls(scratch, arrays.get("native"), arrays["floor"], chosen)

    def commit(self, form: str, controls: Controls | None, done: Mapping[str, Done]) -> None:
        """Enter a unit's results, all or nothing."""
        with db.one_line_errors(self.folder), db.transaction(self._db):
            if controls is not None:
                arrays = {f"scratch_{b}": x for b, x in controls.scratch.items()}
                arrays["floor"] = controls.floor
                if controls.native is not None:
                    arrays["native"] = controls.native
                rates = {i: (r.lr, r.head_lr, r.score) for i, r in controls.rates.items()}
                self._db.execute(
                    "INSERT INTO controls VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                    (form, json.dumps(rates), _packed(arrays)),
                )
            for name, one in done.items():
                scores = None if one.scores is None else _packed(one.scores)
                self._db.execute(
                    "INSERT INTO adapters VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (name, json.dumps(one.outcome), scores, one.traceback),
                )

    def _meta(self, name: str) -> Any:
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchall()
        return json.loads(found[0][0])


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **arrays)
    return out.getvalue()


def _unpacked(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return dict(found)
