"""Where a study keeps its rows, scores and modules: a folder with one SQLite file.

Contract (tested by :class:`peftport.testing.contracts_store.StoreContract`):

- a bank's results enter in one transaction; a killed writer loses at most the bank in flight;
- one writer at a time, readers at any time;
- a finished result is never changed or deleted: giving it again does nothing, and is noted when
  its numbers differ; scores and modules whose digest is another are not handed out, and are done
  again on request;
- a store belongs to one grid and one plan, and refuses every other;
- what is exported depends on the numbers alone: not on times, attempts, order or interruptions
  (and on the flag of trainings whose bank had to be split).

This file never imports torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import yaml

from peftport.atomic import write_bytes
from peftport.errors import InputError
from peftport.study import database as db
from peftport.study import schema
from peftport.study.grid import Study, study_from, to_mapping
from peftport.study.planned import Outcome, Planned, by_dotted_name

if TYPE_CHECKING:
    import pandas as pd

_STATES = ("planned", "done", "failed", "missing")
_STATUS = "CASE WHEN status IN ('done', 'failed') THEN status ELSE 'missing' END"
log = logging.getLogger(__name__)


class Store:
    """A study's folder; open it with :meth:`read` or :meth:`write` and use it in ``with``."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.folder = folder
        self._db = connection
        self._lock = lock

    # -- open and close ---------------------------------------------------------------------

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Open for reading, also while another process writes.

        Raises:
            InputError: no store there, or one of a newer peftport, or damaged.
        """
        if not (folder / db.DATABASE).is_file():
            raise InputError(
                f"no store in '{folder}'; make one with: peftport study run NAME --store {folder}"
            )
        with db.one_line_errors(folder):
            store = cls(folder, db.connect(folder, write=False), None)
            try:
                if not store._is_made():
                    raise InputError(f"the store in '{folder}' is empty; run its study first")
                store._as_current()
            except BaseException:
                store.close()
                raise
        return store

    @classmethod
    def write(cls, folder: Path, planned: Planned) -> Self:
        """Open as the only writer; made when there is none.

        Raises:
            InputError: another writer, another grid, another plan, or a folder that cannot be
                written or holds something else.
        """
        with db.one_line_errors(folder):
            db.check_folder(folder)
            (folder / db.MODULES).mkdir(parents=True, exist_ok=True)
            lock = db.lock(folder)
            store = cls(folder, db.connect(folder, write=True), lock)
            try:
                if store._is_made():
                    version = store._version()
                    store._check_same(planned)
                    store._migrate(version)
                else:
                    store._make(planned)
                store._write_study()
            except BaseException:
                store.close()
                raise
            db.sweep(folder)
        return store

    @staticmethod
    def is_there(folder: Path) -> bool:
        """Whether a study was begun in a folder."""
        if not (folder / db.DATABASE).is_file():
            return False
        with db.one_line_errors(folder):
            connection = db.connect(folder, write=False)
            with Store(folder, connection, None) as store:
                return store._is_made()

    @classmethod
    def check_grid(cls, folder: Path, study: Study) -> None:
        """Raises InputError when a store is there and holds another grid; writes nothing."""
        if (folder / db.DATABASE).is_file():
            with db.one_line_errors(folder):
                connection = db.connect(folder, write=False)
                with cls(folder, connection, None) as store:
                    if store._is_made():
                        store._version()
                        store._check_grid(study)
        elif folder.exists():
            with db.one_line_errors(folder):
                db.check_folder(folder)

    def close(self) -> None:
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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
    def writes(self) -> bool:
        """Whether this is the store's writer."""
        return self._lock is not None

    # -- what it holds ----------------------------------------------------------------------

    def query(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Lines that a SELECT gives; the tables are those of :mod:`peftport.study.schema`."""
        with db.one_line_errors(self.folder):
            return self._db.execute(query, values).fetchall()

    @property
    def study(self) -> Study:
        with db.parsing(self.folder):
            return study_from(self._meta("study"), db.STUDY, Path(self._meta("base")))

    @property
    def facts(self) -> dict[str, Any]:
        """Hosts, data and numerics of the plan."""
        return self._mapping("facts")

    @property
    def environment(self) -> dict[str, Any]:
        """What was decided when the store was made (threads, bank, kernel), versions, machine."""
        return self._mapping("environment")

    @property
    def guard(self) -> dict[str, int]:
        """What the leak guard looked at and dropped."""
        with db.parsing(self.folder):
            return {name: db.whole(count) for name, count in self._mapping("guard").items()}

    @property
    def notes(self) -> list[str]:
        """What happened that should not have: differing duplicates, other versions."""
        return [note for (note,) in self.query("SELECT note FROM notes ORDER BY id")]

    @property
    def dates(self) -> tuple[str, str]:
        """When the store was made and when its last result came (empty without one), UTC."""
        last = self.query("SELECT coalesce(max(finished), '') FROM results")[0][0]
        return str(self._meta("created")), str(last)

    def states(self) -> dict[str, str]:
        """Key to ``done`` or ``failed``; keys without a result are missing."""
        return dict(self.query("SELECT key, status FROM results WHERE status <> 'damaged'"))

    def seconds(self) -> dict[str, float]:
        """Key to a training's share of the seconds that its bank took."""
        return dict(self.query("SELECT key, seconds FROM results WHERE status = 'done'"))

    def status(self) -> dict[str, Any]:
        """How many runs are planned, done, failed and missing, in all and by kind, and how many
        distinct trainings they share."""
        counts = self.query(
            f"SELECT kind, {_STATUS}, count(*) FROM rows "
            "LEFT JOIN results ON rows.key = results.key GROUP BY 1, 2 ORDER BY min(rows.id)"
        )
        kinds: dict[str, dict[str, int]] = {}
        for kind, status, count in counts:
            of_kind = kinds.setdefault(kind, dict.fromkeys(_STATES, 0))
            of_kind[status] += count
            of_kind["planned"] += count
        states = list(self.states().values())
        planned = self.query("SELECT count(*) FROM trainings")[0][0]
        trainings = {name: states.count(name) for name in ("done", "failed")}
        return {
            "study": self.study.name,
            "grid": self._meta("grid"),
            **{name: sum(of_kind[name] for of_kind in kinds.values()) for name in _STATES},
            "kinds": kinds,
            "trainings": {
                "planned": planned, **trainings, "missing": planned - sum(trainings.values()),
            },
            "errors": sorted({error for (error,) in self.query(
                "SELECT error FROM results WHERE status = 'failed'"
            )}),
        }  # fmt: skip

    def rows(self) -> pd.DataFrame:
        """One line per planned run: its columns, ``key``, ``status`` and ``error``."""
        import pandas as pd

        columns = (
            "kind method source target data seed source_seed init budgets lr head_lr key"
        ).split()
        query = (
            f"SELECT {', '.join('rows.' + c for c in columns)}, "
            f"{_STATUS}, coalesce(error, ''), coalesce(parameters, 0), "
            "coalesce(split, 0) FROM rows LEFT JOIN results ON rows.key = results.key "
            "ORDER BY rows.id"
        )
        added = ["status", "error", "parameters", "split"]
        frame = pd.DataFrame(self.query(query), columns=[*columns, *added])
        with db.parsing(self.folder):
            frame["budgets"] = [db.whole_numbers(text) for text in frame["budgets"]]
        return frame

    def frame(self) -> pd.DataFrame:
        """One line per finished run, budget and metric; see :mod:`peftport.study.export`."""
        from peftport.study.export import long_frame

        return long_frame(self)

    def labels(self) -> np.ndarray:
        """Class of every measured sentence  [N]."""
        rows = self.query("SELECT label FROM sentences ORDER BY position")
        with db.parsing(self.folder):
            return np.array([label for (label,) in rows], dtype=np.int64)

    def sentences(self) -> list[str]:
        """Id of every measured sentence, in the order of the scores."""
        return [name for (name,) in self.query("SELECT id FROM sentences ORDER BY position")]

    def scores(self, key: str, budget: int) -> np.ndarray | None:
        """Class logits  [N, C] of a training after ``budget`` steps; None where not measured.

        Raises:
            InputError: they are no longer what was stored.
        """
        found = self.query(
            "SELECT classes, module, scores, digest FROM scores WHERE key = ? AND budget = ?",
            (key, budget),
        )
        if not found:
            return None
        classes, module, blob, digest = found[0]
        if schema.score_digest(key, budget, classes, module, blob) != digest:
            raise InputError(
                f"scores of run {key} at budget {budget} in store '{self.folder}' are damaged: "
                f"their digest is another; {db.REPAIR}"
            )
        with db.parsing(self.folder):
            return np.frombuffer(blob, dtype="<f4").reshape(len(self.sentences()), classes)

    def failures(self) -> dict[str, str]:
        """Key to the traceback of a failed training."""
        return dict(self.query("SELECT key, traceback FROM results WHERE status = 'failed'"))

    def ingredients(self, key: str) -> dict[str, Any]:
        """Everything that can move the numbers of a training."""
        found = self.query("SELECT ingredients FROM trainings WHERE key = ?", (self.find(key),))
        with db.parsing(self.folder):
            return {**json.loads(found[0][0])}

    def find(self, start: str) -> str:
        """The key that begins with ``start``. Raises InputError unless there is exactly one."""
        keys = [k for (k,) in self.query("SELECT key FROM trainings") if str(k).startswith(start)]
        if len(keys) != 1 or not start:
            what = "no run has" if not keys else f"{len(keys)} runs have"
            raise InputError(
                f"{what} a key that begins with '{start}'; the keys are in the column 'key' of "
                "peftport study export"
            )
        return keys[0]

    def budgets(self, key: str) -> list[int]:
        """Budgets at which a training is measured, ascending."""
        found = self.query("SELECT budgets FROM rows WHERE key = ? LIMIT 1", (key,))
        with db.parsing(self.folder):
            return sorted(db.whole_numbers(found[0][0])) if found else []

    def contents(self) -> tuple[dict[str, str], dict[str, str]]:
        """Digests of what is written once: as it is, and as it was when it was written."""
        with db.one_line_errors(self.folder):
            return schema.contents(self._db), self._mapping("contents")

    def module_digest(self, key: str, budget: int) -> str | None:
        """Digest of the module after ``budget`` steps, as it was when it was measured."""
        found = self.query("SELECT module FROM scores WHERE key = ? AND budget = ?", (key, budget))
        return str(found[0][0]) if found else None

    def module(self, key: str) -> bytes:
        """The stored module of a training, after its last step.

        Raises:
            InputError: that training is not finished, or its file is gone or damaged.
        """
        found = self.query("SELECT module FROM results WHERE key = ? AND status = 'done'", (key,))
        if not found or found[0][0] is None:
            raise InputError(f"run {key} has no module yet; finish the study with the same command")
        name = str(found[0][0])
        path = self.folder / db.MODULES / f"{name}.safetensors"
        try:
            content = db.read_plain(path)
        except OSError as error:
            raise InputError(
                f"cannot read module '{path}': {error.strerror}; {db.REPAIR}"
            ) from None
        if hashlib.sha256(content).hexdigest() != name:
            raise InputError(f"module '{path}' is damaged: its digest is not its name; {db.REPAIR}")
        return content

    # -- writing ----------------------------------------------------------------------------

    def commit(self, *outcomes: Outcome) -> None:
        """Enter the results of a bank, all or nothing.

        A finished result stays as it is; a failed one is replaced by a later attempt.
        """
        with db.one_line_errors(self.folder):
            names = [None if o.module is None else self._keep(o.module) for o in outcomes]
            with db.transaction(self._db):
                states = dict(self.query("SELECT key, status FROM results"))
                for outcome, name in zip(outcomes, names, strict=True):
                    if states.get(outcome.key) == "done":
                        self._compare(outcome, "the first ones were kept")
                        continue
                    if states.get(outcome.key) == "damaged":
                        self._compare(outcome, "the damaged result's were replaced")
                    self._insert(outcome, name)

    def mark_damaged(self, damages: Mapping[str, str]) -> None:
        """Put results back to missing, by key with what is wrong with them; what is sound of them
        stays until they are done again. Nothing vouches for a damaged result: only who asks for it
        gets this."""
        with db.one_line_errors(self.folder), db.transaction(self._db):
            for key, text in damages.items():
                self._db.execute("UPDATE results SET status = 'damaged' WHERE key = ?", (key,))
                for (budget,) in self.query("SELECT budget FROM scores WHERE key = ?", (key,)):
                    try:
                        self.scores(key, budget)
                    except InputError:
                        self._db.execute(
                            "DELETE FROM scores WHERE key = ? AND budget = ?", (key, budget)
                        )
                self.note(f"{text}; it is done again")

    def note(self, text: str) -> None:
        """Keep a remark for whoever reads the numbers."""
        log.warning("%s", text)
        self._db.execute("INSERT INTO notes (at, note) VALUES (?, ?)", (db.now(), text))

    def _keep(self, module: bytes) -> str:
        """Write a module's file; returns its name."""
        name = hashlib.sha256(module).hexdigest()
        write_bytes(self.folder / db.MODULES / f"{name}.safetensors", module)
        return name

    def _insert(self, outcome: Outcome, module: str | None) -> None:
        status = "done" if outcome.error is None else "failed"
        self._db.execute(
            "INSERT INTO results VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET status = excluded.status, attempt = attempt + 1, "
            "seconds = excluded.seconds, finished = excluded.finished, module = excluded.module, "
            "parameters = excluded.parameters, error = excluded.error, "
            "traceback = excluded.traceback, split = excluded.split, digest = excluded.digest",
            (
                outcome.key, status, outcome.seconds, db.now(), outcome.parameters, module,
                outcome.error, outcome.traceback, int(outcome.split),
                schema.result_digest(
                    outcome.key, status, outcome.parameters, module, outcome.error,
                    int(outcome.split),
                ),
            ),
        )  # fmt: skip
        for m in outcome.measures:
            scores = np.ascontiguousarray(m.scores, dtype="<f4")
            line = (outcome.key, m.budget, scores.shape[1], m.module, scores.tobytes())
            self._db.execute(
                "INSERT OR REPLACE INTO scores (key, budget, classes, module, scores, digest) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (*line, schema.score_digest(*line)),
            )

    def _compare(self, outcome: Outcome, end: str) -> None:
        """Scores that are there already: nothing to say, unless they differ."""
        for m in outcome.measures:
            old = self.scores(outcome.key, m.budget)
            new = np.ascontiguousarray(m.scores, dtype="<f4")
            if old is not None and old.tobytes() != new.tobytes():
                self.note(
                    f"nondeterminism: {outcome.key} gave other scores at budget {m.budget} when it "
                    f"was repeated; {end}"
                )

    # -- inside -----------------------------------------------------------------------------

    def _meta(self, name: str) -> Any:
        found = self.query("SELECT value FROM meta WHERE name = ?", (name,))
        with db.parsing(self.folder):
            return json.loads(found[0][0])

    def _mapping(self, name: str) -> dict[str, Any]:
        with db.parsing(self.folder):
            return {**self._meta(name)}

    def _is_made(self) -> bool:
        return bool(self.query("SELECT 1 FROM sqlite_master WHERE name = 'meta'"))

    def _version(self) -> int:
        """The store's version. Raises InputError when it is one that nobody here knows."""
        version, known = self._meta("schema_version"), schema.SCHEMA_VERSION
        if not isinstance(version, int) or not 1 <= version <= known:
            raise InputError(
                f"store '{self.folder}' has schema version {version}, this peftport knows 1 to "
                f"{known}; install the peftport that made it, or give a new --store"
            )
        return version

    def _as_current(self) -> None:
        """An older store is read as what it would become; its file stays as it is."""
        version = self._version()
        if version < schema.SCHEMA_VERSION:
            self._db = db.in_memory(self._db)
            schema.migrate(self._db, version)

    def _migrate(self, version: int) -> None:
        if version < schema.SCHEMA_VERSION:
            with db.transaction(self._db):
                schema.migrate(self._db, version)
                self.note(
                    f"the store of schema version {version} became one of "
                    f"{schema.SCHEMA_VERSION}; digests vouch for its scores since then"
                )

    def _check_grid(self, study: Study) -> None:
        theirs = self._meta("grid")
        if theirs != study.digest:
            raise InputError(
                f"store '{self.folder}' holds the grid '{self.study.name}' ({theirs}), not "
                f"'{study.name}' ({study.digest}); give another --store"
            )

    def _check_same(self, planned: Planned) -> None:
        self._check_grid(planned.study)
        old = by_dotted_name(self.facts)
        new = by_dotted_name(json.loads(json.dumps(planned.facts)))
        for key, _ in sorted(old.items() ^ new.items()):
            raise InputError(
                f"store '{self.folder}' was made with {key} = {old.get(key)}, now it is "
                f"{new.get(key)}; give another --store, or go back to what it was made with"
            )
        if self._meta("plan") != schema.plan_digest(planned):
            raise InputError(
                f"store '{self.folder}' was planned by another peftport: the same grid has other "
                "run keys now (a method's default changed); give another --store"
            )
        then, now = self.environment.get("versions"), planned.environment.get("versions")
        if then != now:
            with db.transaction(self._db):
                self.note(f"resumed with versions {now}; the store was made with {then}")

    def _make(self, planned: Planned) -> None:
        with db.transaction(self._db):
            schema.fill(self._db, planned)

    def _write_study(self) -> None:
        """The grid in its own words, for people; the store itself does not read it."""
        text = yaml.safe_dump(to_mapping(self.study), sort_keys=False, allow_unicode=True)
        path = self.folder / db.STUDY
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            write_bytes(path, text.encode())
