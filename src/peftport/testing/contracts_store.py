"""What every store must do. Subclass :class:`StoreContract` to test a new one.

class TestMine(StoreContract):
    store = MyStore
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from peftport.errors import InputError, RunError
from peftport.study import database
from peftport.study.expand import Run
from peftport.study.export import export
from peftport.study.grid import parse_study
from peftport.study.planned import Measure, Outcome, Planned
from peftport.study.store import Store

BUDGETS = (0, 10)
SENTENCES = 12
GRID = """
name: {name}
hosts: [a, b]
pairs: [[a, b]]
data: {{target: reviews}}
methods: {{lora: {{}}}}
source: {{steps: 10}}
target: {{budgets: [0, 10]}}
seeds: [0, 1]
rates: {{provenance: none, table: {{lora: {{any: {{any: {{lr: 0.001}}}}}}}}}}
"""


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def planned(
    runs: int = 4, *, name: str = "grid", facts: Mapping[str, Any] | None = None
) -> Planned:
    """A plan of ``runs`` trainings; the first one answers two rows."""
    rows = [
        (
            Run("grid", "lora", "a", "b", "same", seed, 0, "ported", BUDGETS, 1e-3, None),
            key_of(seed),
        )
        for seed in range(runs)
    ]
    rows.append((replace(rows[0][0], data="other"), key_of(0)))
    return Planned(
        study=parse_study(GRID.format(name=name)),
        rows=tuple(rows),
        ingredients={key_of(seed): {"seed": seed} for seed in range(runs)},
        facts=facts or {"hosts": {"a": {"fingerprint": "1"}}, "numerics": 1},
        sentences=tuple((f"s{i}", i % 2) for i in range(SENTENCES)),
        environment={"threads": 1, "versions": {"torch": "2"}},
        guard={"test": SENTENCES},
    )


def outcome(number: int, *, shift: float = 0.0) -> Outcome:
    """What training ``number`` gives, always the same."""
    rng = np.random.default_rng(number)
    measures = tuple(
        Measure(b, rng.normal(size=(SENTENCES, 2)).astype(np.float32) + shift, f"m{number}-{b}")
        for b in BUDGETS
    )
    module = rng.bytes(2000)
    return Outcome(key_of(number), 1.5, measures, parameters=7, module=module)


def failure(number: int) -> Outcome:
    return Outcome(key_of(number), 0.5, error="diverged", traceback="Traceback: diverged")


def _commit_for_ever(store: type[Store], folder: Path, runs: int) -> None:
    with store.write(folder, planned(runs)) as opened:
        for number in range(runs):
            if opened.states().get(key_of(number)) != "done":
                opened.commit(outcome(number))
        time.sleep(60)


def _die_in_a_transaction(store: type[Store], folder: Path) -> None:
    opened = store.write(folder, planned())
    opened._db.execute("PRAGMA cache_size = 1")
    opened._db.execute("BEGIN IMMEDIATE")
    for number in range(2000):  # more than the cache, so that pages reach the file
        opened._db.execute("INSERT INTO notes (at, note) VALUES ('', ?)", (f"{number} " * 200,))
    os.kill(os.getpid(), signal.SIGKILL)


class StoreContract:
    """Tests that any store passes."""

    store: ClassVar[type[Store]] = Store

    def test_what_was_committed_is_read(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(1))
        with self.store.read(tmp_path / "s") as store:
            assert store.states() == {key_of(1): "done"}
            for measure in outcome(1).measures:
                found = store.scores(key_of(1), measure.budget)
                assert found is not None
                assert found.tobytes() == measure.scores.tobytes()
                assert store.module_digest(key_of(1), measure.budget) == measure.module
            assert store.module(key_of(1)) == outcome(1).module
            assert store.labels().tolist() == [i % 2 for i in range(SENTENCES)]
            assert store.ingredients(key_of(1)[:8]) == {"seed": 1}
            assert store.study == planned().study

    def test_status_counts_rows_and_trainings(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(0))
            store.commit(failure(1))
            status = store.status()
        # training 0 answers two of the five rows
        assert [status[n] for n in ("planned", "done", "failed", "missing")] == [5, 2, 1, 2]
        assert status["trainings"] == {"planned": 4, "done": 1, "failed": 1, "missing": 2}

    def test_a_finished_result_never_changes(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(1))
            store.commit(outcome(1))
            assert store.notes == []
            store.commit(outcome(1, shift=1.0))
            store.commit(failure(1))
            assert store.states() == {key_of(1): "done"}
            found = store.scores(key_of(1), 0)
            assert found is not None
            assert found.tobytes() == outcome(1).measures[0].scores.tobytes()
            assert any("nondeterminism" in note for note in store.notes)

    def test_a_bank_enters_whole_or_not_at_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stranger = replace(outcome(2), key="no training of this study")
        with self.store.write(tmp_path / "s", planned()) as store:
            with pytest.raises(sqlite3.IntegrityError):
                store.commit(outcome(0), outcome(1), stranger)
            assert store.states() == {}
            assert store.scores(key_of(0), 0) is None
            seen = []
            with monkeypatch.context() as patch, self.store.read(tmp_path / "s") as reader:
                real = store._insert

                def watched(*given: Any) -> None:
                    seen.append(len(reader.states()))
                    real(*given)

                patch.setattr(store, "_insert", watched)
                store.commit(outcome(0), failure(1), outcome(2))
            assert seen == [0, 0, 0]
            assert store.states() == {key_of(0): "done", key_of(1): "failed", key_of(2): "done"}

    def test_a_finished_result_in_a_bank_never_changes(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(1))
            store.commit(outcome(0), outcome(1), outcome(2))
            assert store.notes == []
            assert store.states() == {key_of(n): "done" for n in range(3)}

    def test_a_split_bank_is_flagged(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(1), replace(outcome(2), split=True))
            flags = dict(zip(store.rows()["key"], store.rows()["split"], strict=True))
            assert flags == {key_of(0): 0, key_of(1): 0, key_of(2): 1, key_of(3): 0}
            frame = store.frame()
        assert set(frame[frame["key"] == key_of(2)]["split"]) == {1}
        assert set(frame[frame["key"] == key_of(1)]["split"]) == {0}

    def test_a_failure_keeps_its_traceback_until_it_is_made_good(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(failure(1))
            assert store.failures() == {key_of(1): "Traceback: diverged"}
            store.commit(outcome(1))
            assert store.states() == {key_of(1): "done"}
            assert store.failures() == {}

    def test_another_grid_is_refused(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(1))
        other = planned(name="other")
        for refused in (
            lambda: self.store.write(tmp_path / "s", other),
            lambda: self.store.check_grid(tmp_path / "s", other.study),
        ):
            with pytest.raises(InputError, match=r"holds the grid 'grid' .* not 'other'"):
                refused()
        with self.store.write(tmp_path / "s", planned()) as store:
            assert store.states() == {key_of(1): "done"}

    def test_other_hosts_are_refused(self, tmp_path: Path) -> None:
        self.store.write(tmp_path / "s", planned()).close()
        facts = {"hosts": {"a": {"fingerprint": "2"}}, "numerics": 1}
        with pytest.raises(InputError, match=r"hosts\.a\.fingerprint = \"1\", now it is \"2\""):
            self.store.write(tmp_path / "s", planned(facts=facts))

    def test_another_plan_of_the_same_grid_is_refused(self, tmp_path: Path) -> None:
        self.store.write(tmp_path / "s", planned()).close()
        with pytest.raises(InputError, match="planned by another peftport"):
            self.store.write(tmp_path / "s", planned(runs=5))

    def test_a_second_writer_is_refused_by_the_first_ones_name(self, tmp_path: Path) -> None:
        name = f"is being written by process {os.getpid()} on {os.uname().nodename}"
        with (
            self.store.write(tmp_path / "s", planned()) as first,
            pytest.raises(InputError, match=rf"{name} since \d{{4}}-\d\d-\d\dT"),
        ):
            self.store.write(tmp_path / "s", planned())
        first.close()
        self.store.write(tmp_path / "s", planned()).close()

    def test_a_place_that_cannot_lock_is_not_another_writer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_locks(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(InputError, match="No locks available"):
            self.store.write(tmp_path / "s", planned())

    def test_a_read_only_store_is_read_and_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(1))
        opened = os.open

        def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & (os.O_RDWR | os.O_WRONLY):  # root may write whatever the mode says
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(path, flags, *more, **named)

        monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
        monkeypatch.setattr(os, "open", refuse)
        with self.store.read(tmp_path / "s") as store:
            assert store.module(key_of(1)) == outcome(1).module
            assert len(store.frame()) == len(BUDGETS) * 4
        with pytest.raises(InputError, match="Permission denied; give a folder"):
            self.store.write(tmp_path / "s", planned())

    def test_a_clock_that_jumps_moves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        exports = []
        for name, years in (("a", [2026]), ("b", [2026, 1970, 2100, 1970])):
            times = itertools.cycle(f"{year}-01-01T00:00:00+00:00" for year in years)
            with monkeypatch.context() as patch:
                patch.setattr(database, "now", lambda times=times: next(times))
                with self.store.write(tmp_path / name, planned()) as store:
                    for number in range(3):
                        store.commit(outcome(number))
                        store.note(f"note {number}")
            with self.store.read(tmp_path / name) as store:
                assert store.notes == ["note 0", "note 1", "note 2"]
                assert list(store.states().values()) == ["done"] * 3
                export(store, "csv", tmp_path / f"{name}.csv")
            exports.append((tmp_path / f"{name}.csv").read_bytes())
        assert exports[0] == exports[1]

    def test_reading_goes_on_while_another_writes(self, tmp_path: Path) -> None:
        with (
            self.store.write(tmp_path / "s", planned()) as writer,
            self.store.read(tmp_path / "s") as reader,
        ):
            writer.commit(outcome(0))
            assert reader.states() == {key_of(0): "done"}

    def test_a_killed_writer_loses_at_most_the_bank_in_flight(self, tmp_path: Path) -> None:
        runs, rng = 200, random.Random(0)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        seen: set[str] = set()
        for _ in range(5):
            process = context.Process(
                target=_commit_for_ever, args=(self.store, tmp_path / "s", runs)
            )
            process.start()
            self._wait_for_more(tmp_path / "s", len(seen), runs)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            process.join()
            with self.store.write(tmp_path / "s", planned(runs)) as store:
                done = set(store.states())
                assert seen <= done
                numbers = [n for n in range(runs) if key_of(n) in done]
                for number in numbers:
                    assert store.module(key_of(number)) == outcome(number).module
                    for measure in outcome(number).measures:
                        found = store.scores(key_of(number), measure.budget)
                        assert found is not None
                        assert found.tobytes() == measure.scores.tobytes()
            assert not list((tmp_path / "s").rglob("*.tmp"))
            seen = done

    def test_a_reader_opens_what_a_killed_writer_left(self, tmp_path: Path) -> None:
        self.store.write(tmp_path / "s", planned()).close()
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=_die_in_a_transaction, args=(self.store, tmp_path / "s"))
        process.start()
        process.join()
        assert (tmp_path / "s" / "store.sqlite-journal").stat().st_size > 0
        with self.store.read(tmp_path / "s") as store:
            assert store.states() == {}
            assert store.notes == []

    def _wait_for_more(self, folder: Path, seen: int, runs: int) -> None:
        """Until the writer has committed something new."""
        for _ in range(1200):
            time.sleep(0.05)
            try:
                with self.store.read(folder) as store:
                    if len(store.states()) > min(seen, runs - 1):
                        return
            except InputError:
                continue
        raise AssertionError("the writer did nothing for a minute")

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_the_export_depends_on_the_numbers_alone(self, tmp_path: Path, kind: str) -> None:
        with self.store.write(tmp_path / "a", planned()) as store:
            for number in (0, 1, 2, 3):
                store.commit(outcome(number))
            assert export(store, kind, tmp_path / "a.out") == 5 * len(BUDGETS) * 4
        with self.store.write(tmp_path / "b", planned()) as store:
            store.commit(failure(2))
        for number in (3, 2, 1, 0):
            with self.store.write(tmp_path / "b", planned()) as store:
                store.commit(replace(outcome(number), seconds=number))
        with self.store.read(tmp_path / "b") as store:
            export(store, kind, tmp_path / "b.out")
        assert (tmp_path / "a.out").read_bytes() == (tmp_path / "b.out").read_bytes()

    @pytest.mark.parametrize("place", ["/proc/peftport", "file/store", "file"])
    def test_a_place_that_cannot_be_written_is_one_line(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="store"):
            self.store.write(tmp_path / place, planned())

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(InputError, match="thesis"):
            self.store.write(tmp_path, planned())
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_missing_store_names_the_command(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="peftport study run"):
            self.store.read(tmp_path)

    def test_a_full_disk_is_one_line_and_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(0))
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(RunError, match="no space left"):
                    store.commit(outcome(1))
            assert store.states() == {key_of(0): "done"}
            store.commit(outcome(1))
            assert store.states() == {key_of(0): "done", key_of(1): "done"}

    def test_a_full_database_is_one_line_and_loses_nothing(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(0))
            ((pages,),) = store._db.execute("PRAGMA page_count").fetchall()
            store._db.execute(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(RunError, match="no space left"):
                store.commit(*(replace(outcome(n), traceback="x" * 9000) for n in (1, 2, 3)))
            assert store.states() == {key_of(0): "done"}
            store._db.execute("PRAGMA max_page_count = 100000")
            store.commit(outcome(1), outcome(2), outcome(3))
            assert len(store.states()) == 4

    def test_what_is_marked_damaged_is_missing_until_it_is_done_again(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(0), outcome(1))
            before = store.status()
            store.mark_damaged({key_of(1): "the module of 1 is damaged"})
            assert store.states() == {key_of(0): "done"}
            status = store.status()
            assert (status["done"], status["missing"]) == (2, 3)
            assert status["trainings"]["missing"] == 3
            assert "missing" in set(store.rows()["status"])
            store.commit(outcome(1))
            assert store.status() == before
            assert store.notes == ["the module of 1 is damaged; it is done again"]
            store.mark_damaged({key_of(1): "damaged once more"})
            store.commit(outcome(1, shift=1.0))
            assert any("nondeterminism" in note for note in store.notes)
            found = store.scores(key_of(1), 0)
            assert found is not None
            assert found.tobytes() == outcome(1, shift=1.0).measures[0].scores.tobytes()

    def test_damaged_scores_are_not_trusted(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(1))
            store._db.execute("UPDATE scores SET scores = zeroblob(96) WHERE budget = 0")
            with pytest.raises(InputError, match="are damaged"):
                store.scores(key_of(1), 0)
            assert store.scores(key_of(1), 10) is not None

    def test_a_damaged_module_is_not_trusted(self, tmp_path: Path) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(1))
            (path,) = (tmp_path / "s" / "modules").iterdir()
            path.write_bytes(path.read_bytes()[:-1] + b"?")
            with pytest.raises(InputError, match="damaged"):
                store.module(key_of(1))
            path.unlink()
            with pytest.raises(InputError, match="cannot read module"):
                store.module(key_of(1))

    @pytest.mark.parametrize("damage", ["garbage", "half", "empty"])
    def test_a_damaged_store_is_one_line(self, tmp_path: Path, damage: str) -> None:
        with self.store.write(tmp_path / "s", planned()) as store:
            store.commit(outcome(1))
        path = tmp_path / "s" / "store.sqlite"
        content = path.read_bytes()
        broken = {
            "garbage": b"x" * len(content),
            "half": content[: len(content) // 2],
            "empty": b"",
        }
        path.write_bytes(broken[damage])
        with (
            pytest.raises(InputError, match=r"damaged|is empty"),
            self.store.read(tmp_path / "s") as store,
        ):
            store.status()
            store.rows()
            store.scores(key_of(1), 10)
            store.frame()
