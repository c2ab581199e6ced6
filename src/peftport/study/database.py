"""The file behind a store: its tables, its one writer, and what can go wrong, in one line each."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from peftport.errors import InputError, RunError

SCHEMA_VERSION = 2
DATABASE = "store.sqlite"
LOCK = "writer.lock"
MODULES = "modules"
STUDY = "study.yaml"

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
    error TEXT, traceback TEXT, split INTEGER NOT NULL
) STRICT;
CREATE TABLE scores (
    key TEXT NOT NULL REFERENCES trainings (key), budget INTEGER NOT NULL,
    classes INTEGER NOT NULL, scores BLOB NOT NULL, module TEXT NOT NULL, PRIMARY KEY (key, budget)
) STRICT;
CREATE TABLE sentences (
    position INTEGER PRIMARY KEY, id TEXT NOT NULL, label INTEGER NOT NULL
) STRICT;
CREATE TABLE notes (id INTEGER PRIMARY KEY, at TEXT NOT NULL, note TEXT NOT NULL) STRICT;
"""


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turns what SQLite and the file system report into errors with a remedy."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise  # a mistake of ours, not of the disk's
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "full" in text:
            raise RunError(_full(folder)) from None
        if "locked" in text:
            raise RunError(f"store '{folder}' is locked by another program; close it") from None
        if "readonly" in text or "unable to open" in text:
            raise InputError(_unwritable(folder, text)) from None
        raise InputError(
            f"store '{folder}' is damaged ({text}); restore it from a copy or give a new --store"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(_full(folder)) from None
        raise InputError(_unwritable(folder, error.strerror or str(error))) from None


def _full(folder: Path) -> str:
    return f"no space left for store '{folder}'; free some and run the same command again"


def _unwritable(folder: Path, why: str) -> str:
    return f"cannot use store '{folder}': {why}; give a folder that you may read and write"


def connect(folder: Path, *, write: bool) -> sqlite3.Connection:
    """A connection whose commits survive a killed process and a power cut.

    The rollback journal (not WAL) keeps a store in one file whenever nobody writes, readable from
    a read-only folder. A reader must be allowed to write all the same where a killed writer left a
    journal behind: the first to open the file rolls it back.
    """
    path = folder / DATABASE
    read = "rw" if os.access(path, os.W_OK) and os.access(folder, os.W_OK) else "ro"
    uri = f"file:{quote(str(path.absolute()))}?mode={'rwc' if write else read}"
    connection = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA query_only = {'OFF' if write else 'ON'}")
    if write:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def lock(folder: Path) -> int:
    """Become the only writer until the descriptor is closed or the process ends, however it ends.

    Raises:
        InputError: another process is writing; it is named.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 100).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise InputError(
            f"store '{folder}' is being written by process {holder}; wait for it or stop it"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} on {os.uname().nodename}".encode(), 0)
    return descriptor
