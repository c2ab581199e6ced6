"""``peftport study verify`` finds every kind of damage, and ``--retry-damaged`` mends what can be
mended: the export is what it was."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from peftport.cli.main import run
from peftport.study.store import Store
from peftport.study.verify import COPY, RETRY, RUN, verify

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "s"
    assert run([*command(pico, folder), "--bank", "3", "--kernel", "torch"]) == 0
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "s")
    return tmp_path / "s"


def command(pico: Path, folder: Path) -> list[str]:
    return ["study", "run", str(pico / "pico.yaml"), "--store", str(folder), "-q"]


def exported(folder: Path) -> bytes:
    out = folder.with_suffix(".csv")
    assert run(["study", "export", str(folder), "-o", str(out), "-q"]) == 0
    return out.read_bytes()


def sql(text: str) -> Change:
    def change(folder: Path) -> None:
        connection = sqlite3.connect(folder / "store.sqlite")
        assert connection.execute(text).rowcount
        connection.commit()
        connection.close()

    return change


def first_module(folder: Path) -> Path:
    return sorted((folder / "modules").iterdir())[0]


def flip(folder: Path) -> None:
    """One bit of a module, its size unchanged."""
    path = first_module(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def lose(folder: Path) -> None:
    first_module(folder).unlink()


MENDED: dict[str, tuple[Change, str]] = {
    "a bit of a module": (flip, "the module of training"),
    "no module": (lose, "is not to be read"),
    "a score": (
        sql("UPDATE scores SET scores = zeroblob(length(scores)) WHERE rowid = 1"),
        "the scores of training",
    ),
    "another budget": (
        sql("UPDATE scores SET budget = 7 WHERE budget = 2 AND rowid IN "
            "(SELECT rowid FROM scores WHERE budget = 2 LIMIT 1)"),
        "at budget 7 are damaged",
    ),
    "a result": (
        sql("UPDATE results SET parameters = parameters + 1 WHERE rowid = 2"),
        "the result of training",
    ),
}  # fmt: skip
LASTING: dict[str, tuple[Change, str]] = {
    "a run": (sql("UPDATE rows SET init = 'scratch' WHERE id = 1"), "table 'rows'"),
    "a label": (sql("UPDATE sentences SET label = 1 - label WHERE position = 1"), "'sentences'"),
    "a key's ingredients": (
        sql("UPDATE trainings SET ingredients = '{}' WHERE rowid = 1"),
        "table 'trainings'",
    ),
    "a fact": (sql("UPDATE meta SET value = '{}' WHERE name = 'guard'"), "table 'meta'"),
}


def test_a_sound_store_is_read_whole(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.read(made) as opened:
        found, states = verify(opened), opened.states()
        modules = len(list((made / "modules").iterdir()))
    assert found.damages == found.unused == ()
    assert found.counts["results"] == len(states)
    assert found.counts["scores"] > found.counts["results"]
    assert 0 < modules <= found.counts["modules"] <= len(states)
    assert run(["study", "verify", str(made)]) == 0
    assert f"read {len(states)} results" in capsys.readouterr().out


@pytest.mark.parametrize("what", MENDED)
def test_what_training_again_mends(
    store: Path, pico: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    change, text = MENDED[what]
    before = exported(store)
    change(store)
    capsys.readouterr()
    assert run(["study", "verify", str(store), "--json"]) == 1
    out, err = capsys.readouterr()
    damages = json.loads(out)["damages"]
    assert {damage["remedy"] for damage in damages} == {RETRY}
    assert len({damage["training"] for damage in damages}) == 1
    assert "--retry-damaged" in err and err.count("\n") == 1

    assert run([*command(pico, store), "--retry-damaged"]) == 0
    assert exported(store) == before
    with Store.read(store) as opened:
        assert verify(opened).damages == ()
        assert len(opened.notes) == 1
        assert "it is done again" in opened.notes[0]
        assert re.search(text, opened.notes[0])


@pytest.mark.parametrize("what", LASTING)
def test_what_only_a_copy_mends(
    store: Path, pico: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    change, text = LASTING[what]
    change(store)
    assert run(["study", "verify", str(store)]) == 1
    out = capsys.readouterr().out
    assert text in out and COPY in out
    assert run([*command(pico, store), "--retry-damaged"]) == 2
    err = capsys.readouterr().err
    assert text in err or "planned by another peftport" in err


def test_a_file_that_is_no_database_is_damaged(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store / "store.sqlite"
    path.write_bytes(b"x" * path.stat().st_size)
    assert run(["study", "verify", str(store)]) == 1
    assert "is damaged" in capsys.readouterr().err


def test_a_page_of_the_database_is_damaged(store: Path) -> None:
    path = store / "store.sqlite"
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 3 + 64] = bytes(64)
    path.write_bytes(bytes(content))
    assert run(["study", "verify", str(store), "-q"]) == 1


def test_the_study_file_is_written_again_by_the_next_run(
    store: Path, pico: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = (store / "study.yaml").read_text()
    for text in (sound.replace("steps: 4", "steps: 5"), "{", None):
        (store / "study.yaml").unlink()
        if text is not None:
            (store / "study.yaml").write_text(text)
        assert run(["study", "verify", str(store)]) == 1
        assert RUN in capsys.readouterr().out
        assert run(command(pico, store)) == 0
        assert (store / "study.yaml").read_text() == sound
        assert run(["study", "verify", str(store), "-q"]) == 0


def test_a_file_that_nothing_needs_is_no_damage(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "modules" / f"{'0' * 64}.safetensors").write_bytes(b"x")
    assert run(["study", "verify", str(store)]) == 0
    assert "1 module files belong to no result" in capsys.readouterr().out


def test_damaged_scores_are_not_handed_out(
    store: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    MENDED["a score"][0](store)
    out = tmp_path / "e.csv"
    assert run(["study", "export", str(store), "-o", str(out)]) == 2
    assert "--retry-damaged" in capsys.readouterr().err
    assert not out.exists()


def test_a_damaged_source_module_is_done_again_before_it_is_ported(
    store: Path, pico: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its target's training is missing as well: without the option nothing is ported from it."""
    before = exported(store)
    with Store.read(store) as opened:
        rows = opened.rows()
        ported = rows[rows["init"] == "ported"]["key"].iloc[0]
        (source,) = opened.ingredients(ported)["sources"]
        key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
        ((name,),) = opened.query("SELECT module FROM results WHERE key = ?", (key,))
    path = store / "modules" / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    for table in ("scores", "results"):
        sql(f"DELETE FROM {table} WHERE key = '{ported}'")(store)
    assert run(command(pico, store)) == 2
    assert "damaged" in capsys.readouterr().err
    assert run([*command(pico, store), "--retry-damaged"]) == 0
    assert exported(store) == before
