"""Stores that older versions wrote (tests/study/stores, one of each schema) are read, continued
where their plan still holds, and refused with what to do about it where it does not."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from peftport.cli.main import run
from peftport.errors import InputError
from peftport.study.planned import Measure, Outcome, Planned
from peftport.study.schema import SCHEMA_VERSION
from peftport.study.store import Store
from peftport.study.verify import verify

STORES = Path(__file__).parent / "stores"
OLD = [1, 2]
#: columns that came later, or name the grid by a digest whose making changed
CHANGED = ["study", "split"]


@pytest.fixture
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    shutil.copytree(STORES / f"schema-{request.param}", tmp_path / "s")
    return tmp_path / "s"


def plan_of(store: Store) -> Planned:
    """What its writer was told, out of a store."""
    rows: Any = tuple((None, key) for (key,) in store.query("SELECT key FROM rows ORDER BY id"))
    return Planned(store.study, rows, {}, store.facts, (), store.environment, store.guard)


def version(folder: Path) -> int:
    connection = sqlite3.connect(folder / "store.sqlite")
    found = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchall()
    connection.close()
    return int(found[0][0])


def test_there_is_a_store_of_every_older_version() -> None:
    assert list(range(1, SCHEMA_VERSION)) == OLD
    assert [version(STORES / f"schema-{number}") for number in OLD] == OLD


@pytest.mark.parametrize("old", OLD, indirect=True)
def test_an_old_store_is_read_and_not_changed(old: Path, tmp_path: Path) -> None:
    before = hashlib.sha256((old / "store.sqlite").read_bytes()).digest()
    assert run(["study", "export", str(old), "-o", str(tmp_path / "now.csv"), "-q"]) == 0
    assert run(["study", "status", str(old)]) == 0
    assert run(["study", "verify", str(old)]) == 0
    then, now = pd.read_csv(old / "export.csv"), pd.read_csv(tmp_path / "now.csv")
    shared = [column for column in then.columns if column not in CHANGED]
    pd.testing.assert_frame_equal(now[shared], then[shared])
    with Store.read(old) as store:
        assert store.environment["bank"] == {1: 1, 2: 2}[version(old)]
        assert store.environment["kernel"] == "torch"
        for key in store.states():
            assert store.module(key)
    assert hashlib.sha256((old / "store.sqlite").read_bytes()).digest() == before


@pytest.mark.parametrize("old", [2], indirect=True)
def test_an_old_store_is_continued_and_becomes_a_new_one(old: Path) -> None:
    with Store.read(old) as store:
        planned, before = plan_of(store), store.frame()
    connection = sqlite3.connect(old / "store.sqlite")
    (missing,) = connection.execute("SELECT key FROM rows ORDER BY id LIMIT 1").fetchone()
    for table in ("scores", "results"):
        connection.execute(f"DELETE FROM {table} WHERE key = ?", (missing,))
    connection.commit()
    connection.close()
    with Store.write(old, planned) as store:
        assert version(old) == SCHEMA_VERSION
        assert any("became one of" in note for note in store.notes)
        assert missing not in store.states()
        scores = np.zeros((len(store.labels()), 2), dtype=np.float32)
        store.commit(Outcome(missing, 1.0, (Measure(0, scores, ""),), module=b"m"))
        again = store.frame()
    others = before[before["key"] != missing].reset_index(drop=True)
    pd.testing.assert_frame_equal(again[again["key"] != missing].reset_index(drop=True), others)
    with Store.write(old, planned) as store:
        assert sum("became one of" in note for note in store.notes) == 1
        assert not verify(store).lasting


@pytest.mark.parametrize("old", [1], indirect=True)
def test_an_old_store_whose_numbers_moved_since_is_refused_and_not_changed(
    old: Path,
) -> None:
    with Store.read(old) as store:
        planned = plan_of(store)
    connection = sqlite3.connect(old / "store.sqlite")
    connection.execute(
        "UPDATE meta SET value = ? WHERE name = 'grid'", (json.dumps(planned.study.digest),)
    )
    connection.commit()
    connection.close()
    planned = replace(planned, facts={**planned.facts, "numerics": 2})
    with pytest.raises(InputError, match=r"made with numerics = 1, now it is 2; give another"):
        Store.write(old, planned)
    assert version(old) == 1


@pytest.mark.parametrize("old", [2], indirect=True)
def test_a_half_made_migration_leaves_the_old_store(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.read(old) as store:
        planned = plan_of(store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("peftport.study.schema.contents", full)
        with pytest.raises(Exception, match="no space left"):
            Store.write(old, planned)
    assert version(old) == 2
    Store.write(old, planned).close()
    assert version(old) == SCHEMA_VERSION


@pytest.mark.parametrize("strange", [SCHEMA_VERSION + 1, 0, "x"])
def test_a_version_that_nobody_here_knows_is_refused(tmp_path: Path, strange: object) -> None:
    shutil.copytree(STORES / "schema-2", tmp_path / "s")
    connection = sqlite3.connect(tmp_path / "s" / "store.sqlite")
    connection.execute(
        "UPDATE meta SET value = ? WHERE name = 'schema_version'", (json.dumps(strange),)
    )
    connection.commit()
    connection.close()
    with pytest.raises(InputError, match=rf"schema version {strange}, .* install the peftport"):
        Store.read(tmp_path / "s")
