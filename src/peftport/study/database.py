"""The file behind a store: its one writer, and what can go wrong, in one line each."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from peftport.errors import InputError, RunError

DATABASE = "store.sqlite"
LOCK = "writer.lock"
MODULES = "modules"
CHECKPOINTS = "checkpoints"
STUDY = "study.yaml"
#: most bytes of a line of a table: scores of a million sentences fit
LINE_BYTES = 1 << 28
#: most bytes of a module's or a checkpoint's file
FILE_BYTES = 1 << 32
#: what to do about a damaged result
REPAIR = "do it again with: peftport study run NAME --store DIR --retry-damaged"


class DamagedStore(InputError):
    """SQLite cannot make sense of the file."""


def check_folder(folder: Path) -> None:
    """Raises InputError when a folder holds something that is not a store."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file; give a folder to --store")
    ours = (DATABASE, LOCK, MODULES, CHECKPOINTS, STUDY)
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    strangers = [name for name in names if not name.startswith(ours)]
    if strangers and DATABASE not in names:
        raise InputError(
            f"'{folder}' is not empty and holds no store (it has '{sorted(strangers)[0]}'); "
            "give a new folder to --store"
        )


def sweep(folder: Path) -> None:
    """Remove what a killed writer left half-written."""
    for name in (MODULES, CHECKPOINTS):
        for left_over in (folder / name).glob("*.tmp"):
            left_over.unlink()


def damaged(folder: Path, why: str) -> DamagedStore:
    return DamagedStore(
        f"store '{folder}' is damaged ({why}); restore it from a copy or give a new --store"
    )


@contextmanager
def parsing(folder: Path) -> Iterator[None]:
    """What cannot be read as what it should be was not written by us."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise damaged(folder, str(error)[:80] or type(error).__name__) from None


def whole_numbers(text: str) -> tuple[int, ...]:
    """A list of numbers as a line of a table keeps it. Raises ValueError when it is none."""
    numbers = json.loads(text)
    if not isinstance(numbers, list):
        raise ValueError(f"{text[:40]!r} is no list of whole numbers")
    return tuple(map(whole, numbers))


def whole(number: object) -> int:
    """A count that was read from JSON. Raises ValueError when it is none."""
    if type(number) is not int or not 0 <= number < 2**31:
        raise ValueError(f"{str(number)[:40]!r} is no whole number")
    return number


def read_plain(path: Path) -> bytes:
    """Content of a module's or a checkpoint's file. Raises OSError, also where it is no plain file
    of a likely size: a pipe would be waited for, and an endless one read for ever."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_BYTES:
        raise OSError(errno.EINVAL, "no plain file of a module's size")
    return path.read_bytes()


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
        if "disk I/O error" in text:
            raise RunError(
                f"cannot read or write store '{folder}' ({text}); see to its disk and run the same "
                "command again"
            ) from None
        if "locked" in text:
            raise RunError(f"store '{folder}' is locked by another program; close it") from None
        if "readonly" in text or "unable to open" in text:
            raise InputError(_unwritable(folder, text)) from None
        raise damaged(folder, text) from None
    except UnicodeDecodeError:
        raise damaged(folder, "it holds text that is none") from None
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
    # a store may come from a stranger: views and triggers call no functions with side effects,
    # and no line is larger than anything that a study writes
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LINE_BYTES)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA query_only = {'OFF' if write else 'ON'}")
    if write:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
    return connection


def in_memory(connection: sqlite3.Connection) -> sqlite3.Connection:
    """A copy of a store that may be changed; closes the connection that it was given."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    with closing(connection):
        connection.backup(copy)
    return copy


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


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def lock(folder: Path) -> int:
    """Become the only writer until the descriptor is closed or the process ends, however it ends.

    Raises:
        InputError: another process is writing; it is named, with its machine and since when.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 400).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise  # a file system that cannot lock, not another writer
        raise InputError(
            f"store '{folder}' is being written by process {holder}; wait for it or stop it"
        ) from None
    os.ftruncate(descriptor, 0)
    name = f"{os.getpid()} on {os.uname().nodename} since {now()}"
    os.pwrite(descriptor, name.encode(), 0)
    return descriptor
