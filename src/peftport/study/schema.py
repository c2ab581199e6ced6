"""Tables of a store, the digests that vouch for what is in them, and how stores of older versions
become current ones. No torch here."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from typing import Any

from peftport.study import database as db
from peftport.study.grid import to_mapping
from peftport.study.planned import Planned

SCHEMA_VERSION = 3

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE rows (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, kind TEXT NOT NULL, method TEXT NOT NULL,
    source TEXT NOT NULL, target TEXT NOT NULL, data TEXT NOT NULL, seed INTEGER NOT NULL,
    source_seed INTEGER NOT NULL, init TEXT NOT NULL, budgets TEXT NOT NULL, lr REAL, head_lr REAL
) STRICT;
CREATE TABLE trainings (key TEXT PRIMARY KEY, ingredients TEXT NOT NULL) STRICT;
CREATE TABLE results (
    key TEXT PRIMARY KEY REFERENCES trainings (key), status TEXT NOT NULL, attempt INTEGER NOT NULL,
    seconds REAL NOT NULL, finished TEXT NOT NULL, parameters INTEGER NOT NULL, module TEXT,
    error TEXT, traceback TEXT, split INTEGER NOT NULL, digest TEXT NOT NULL
) STRICT;
CREATE TABLE scores (
    key TEXT NOT NULL REFERENCES trainings (key), budget INTEGER NOT NULL,
    classes INTEGER NOT NULL, scores BLOB NOT NULL, module TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (key, budget)
) STRICT;
CREATE TABLE sentences (
    position INTEGER PRIMARY KEY, id TEXT NOT NULL, label INTEGER NOT NULL
) STRICT;
CREATE TABLE notes (id INTEGER PRIMARY KEY, at TEXT NOT NULL, note TEXT NOT NULL) STRICT;
"""

#: what is written once, when a store is made, in an order that does not depend on the file
_PLANNED = {
    "rows": "SELECT * FROM rows ORDER BY id",
    "trainings": "SELECT * FROM trainings ORDER BY key",
    "sentences": "SELECT * FROM sentences ORDER BY position",
    "meta": "SELECT * FROM meta WHERE name NOT IN ('schema_version', 'contents') ORDER BY name",
}


def fill(connection: sqlite3.Connection, planned: Planned) -> None:
    """Make the tables of a new store and write what is known before the first bank.

    Args:
        connection: to an empty file, in a transaction.
        planned: the study.
    """
    for statement in filter(str.strip, TABLES.split(";")):
        connection.execute(statement)
    study = planned.study
    meta = {
        "schema_version": SCHEMA_VERSION,
        "grid": study.digest,
        "study": to_mapping(study),
        "base": study.base,
        "plan": plan_digest(planned),
        "facts": planned.facts,
        "environment": planned.environment,
        "guard": planned.guard,
        "created": db.now(),
    }
    connection.executemany(
        "INSERT INTO meta VALUES (?, ?)",
        [(name, json.dumps(value)) for name, value in meta.items()],
    )
    connection.executemany(
        "INSERT INTO trainings VALUES (?, ?)",
        [(k, json.dumps(v, sort_keys=True)) for k, v in planned.ingredients.items()],
    )
    connection.executemany(
        "INSERT INTO rows VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                key, r.kind, r.method, r.source, r.target, r.data, r.seed, r.source_seed,
                r.init, json.dumps(r.budgets), r.lr, r.head_lr,
            )
            for r, key in planned.rows
        ],
    )  # fmt: skip
    connection.executemany("INSERT INTO sentences (id, label) VALUES (?, ?)", planned.sentences)
    _seal(connection)


def plan_digest(planned: Planned) -> str:
    """Digest of the runs' keys, in order."""
    return _digest([key for _, key in planned.rows])


def result_digest(
    key: str, status: str, parameters: int, module: str | None, error: str | None, split: int
) -> str:
    """Digest of what a line of ``results`` says, without times and attempts."""
    return _digest([key, status, parameters, module, error, split])


def score_digest(key: str, budget: int, classes: int, module: str, scores: bytes) -> str:
    """Digest of a line of ``scores``."""
    return _digest([key, budget, classes, module, hashlib.sha256(scores).hexdigest()])


def contents(connection: sqlite3.Connection) -> dict[str, str]:
    """Digest of every table that is written once."""
    return {name: _digest(connection.execute(query).fetchall()) for name, query in _PLANNED.items()}


def _seal(connection: sqlite3.Connection) -> None:
    """Keep the digests of what is written once."""
    connection.execute(
        "INSERT INTO meta VALUES ('contents', ?)", (json.dumps(contents(connection)),)
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a store of an older version to this one; the caller's transaction makes it whole."""
    for step in range(version, SCHEMA_VERSION):
        _STEPS[step](connection)
    connection.execute(
        "UPDATE meta SET value = ? WHERE name = 'schema_version'", (json.dumps(SCHEMA_VERSION),)
    )


def _add_banks(connection: sqlite3.Connection) -> None:
    """Version 1 trained one module after another, with torch's matrix product."""
    connection.execute("ALTER TABLE results ADD COLUMN split INTEGER NOT NULL DEFAULT 0")
    connection.execute(
        "UPDATE meta SET value = json_set(value, '$.bank', 1, '$.kernel', 'torch') "
        "WHERE name = 'environment'"
    )


def _add_digests(connection: sqlite3.Connection) -> None:
    """Version 2 kept digests of modules alone; those made here vouch for what comes after."""
    for table in ("results", "scores"):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN digest TEXT NOT NULL DEFAULT ''")
    connection.create_function("result_digest", 6, result_digest, deterministic=True)
    connection.create_function("score_digest", 5, score_digest, deterministic=True)
    connection.execute(
        "UPDATE results SET digest = result_digest(key, status, parameters, module, error, split)"
    )
    connection.execute(
        "UPDATE scores SET digest = score_digest(key, budget, classes, module, scores)"
    )
    _seal(connection)


#: version to what makes the next one of it
_STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _add_banks, 2: _add_digests}
