"""Study files, datasets and stores that a stranger made: read, or refused in one line.

PEFTPORT_EXAMPLES=400 makes so many of each kind; ``make fuzz`` does.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftport.data.datasets import load_dataset
from peftport.errors import InputError, PeftportError
from peftport.report import terminal
from peftport.report.build import build
from peftport.report.source import read_evidence
from peftport.study.grid import parse_study, read_study
from peftport.study.store import Store
from peftport.study.verify import verify
from peftport.testing.contracts_store import GRID, failure, key_of, outcome, planned

many = settings(
    max_examples=int(os.environ.get("PEFTPORT_EXAMPLES", "40")),
    deadline=None,
    derandomize="PEFTPORT_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
few = settings(many, max_examples=max(many.max_examples // 2, 1))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([2**31, 2**63, 10**30, -(2**63), float("nan"), float("inf"), 1e308])
    | st.sampled_from(["lora", "a", "../x", "/dev/zero", "/dev/stdin", "a\u202eb", "0", "1e9", "~"])
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["lr", "a", "any"]), inner)
    ),
    max_leaves=5,
)


def refused_or_read(act: Callable[[], object]) -> None:
    """Nothing but one line of ours may come out."""
    try:
        act()
    except PeftportError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every place in nested lists and mappings."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = [above] if above else []
    if isinstance(value, dict | list):
        for key, part in inner:
            nested = isinstance(part, dict | list)
            found += paths(part, (*above, key)) if nested else [(*above, key)]
    return found


def changed(value: Any, data: st.DataObject) -> Any:
    """One to three places replaced, doubled or taken away."""
    for _ in range(data.draw(st.integers(1, 3))):
        there = paths(value)
        if not there:
            break
        *above, last = data.draw(st.sampled_from(there))
        holder = value
        for key in above:
            holder = holder[key]
        if data.draw(st.booleans()) and isinstance(holder, dict):
            del holder[last]
        else:
            holder[last] = data.draw(values)
    return value


@many
@given(st.data())
def test_a_study_with_other_values(hostile: Any, tmp_path: Path, data: st.DataObject) -> None:
    study = changed(yaml.safe_load(GRID.format(name="grid")), data)
    text = yaml.safe_dump(study, allow_unicode=True)
    with hostile.reading(tmp_path):
        refused_or_read(lambda: parse_study(text))


@many
@given(st.data())
def test_a_study_with_other_bytes(hostile: Any, data: st.DataObject) -> None:
    text = bytearray(GRID.format(name="grid").encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        text = text or bytearray(b"\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_bytes(text)
        with hostile.reading(Path(folder)):
            refused_or_read(lambda: read_study(path))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of each kind."""
    import pandas as pd

    folder = tmp_path_factory.mktemp("tables")
    lines = [("text", "label"), *((f"text {at} is here", at % 2) for at in range(40))]
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    text = "\n".join(json.dumps(dict(zip(lines[0], line, strict=True))) for line in lines[1:])
    (folder / "t.jsonl").write_text(text)
    pd.DataFrame(lines[1:], columns=lines[0]).to_parquet(folder / "t.parquet")
    return {kind: (folder / f"t.{kind}").read_bytes() for kind in ("csv", "jsonl", "parquet")}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@many
@given(st.data())
def test_a_dataset_with_other_bytes(
    hostile: Any, tables: dict[str, bytes], kind: str, data: st.DataObject
) -> None:
    content = bytearray(tables[kind])
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
        content = content or bytearray(b"\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{kind}"
        path.write_bytes(content)
        with hostile.reading(Path(folder)):
            refused_or_read(lambda: load_dataset(str(path)))
        assert [p.name for p in Path(folder).iterdir()] == [path.name]


@many
@given(st.data())
def test_a_jsonl_dataset_with_other_values(hostile: Any, data: st.DataObject) -> None:
    rows: Any = [{"text": f"text {at}", "label": at % 2} for at in range(6)]
    rows = changed(rows, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        with hostile.reading(Path(folder)):
            refused_or_read(lambda: load_dataset(str(path)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "s"
    with Store.write(folder, planned()) as opened:
        opened.commit(outcome(0), failure(1), outcome(2))
    return folder


def read_all(folder: Path) -> None:
    """Everything that a reader can ask for."""
    with Store.read(folder) as opened:
        for ask in (
            opened.status, opened.rows, opened.frame, opened.labels, opened.failures,
            lambda: opened.dates, lambda: opened.environment, lambda: opened.guard,
            lambda: opened.facts, lambda: opened.notes, lambda: verify(opened),
            lambda: [opened.module(key) for key in opened.states()],
            lambda: [opened.budgets(key) for key in opened.states()],
            lambda: [opened.ingredients(key) for key in opened.states()],
        ):  # fmt: skip
            refused_or_read(ask)


def check_store(folder: Path) -> None:
    refused_or_read(lambda: read_all(folder))
    refused_or_read(lambda: Store.check_grid(folder, planned().study))
    refused_or_read(lambda: Store.write(folder, planned()).close())


@few
@given(st.data())
def test_a_store_with_other_bytes(hostile: Any, store: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "s"
        shutil.copytree(store, folder)
        path = folder / "store.sqlite"
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            # most of a page is empty; its header, the first page and its end are not
            at = 4096 * data.draw(st.integers(0, len(content) // 4096 - 1)) + data.draw(
                st.integers(0, 120) | st.integers(3500, 4090)
            )
            content[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
        path.write_bytes(content)
        with hostile.reading(folder):
            check_store(folder)


PLACES = [
    ("meta", "value", "name"), ("rows", "budgets", "id"), ("rows", "key", "id"),
    ("rows", "init", "id"), ("scores", "classes", "rowid"), ("scores", "scores", "rowid"),
    ("results", "module", "key"), ("results", "status", "key"), ("results", "error", "key"),
    ("sentences", "label", "position"), ("trainings", "ingredients", "key"),
]  # fmt: skip


@contextmanager
def forged(store: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    """A copy of a store, to be changed: digests agree afterwards, whoever wrote it meant it."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "s"
        shutil.copytree(store, folder)
        with closing(sqlite3.connect(folder / "store.sqlite")) as connection:
            yield folder, connection


def seal(connection: sqlite3.Connection) -> None:
    connection.create_function("digest_of", 5, _score_digest)
    connection.execute("UPDATE scores SET digest = digest_of(key, budget, classes, module, scores)")
    connection.commit()


def change_a_line(connection: sqlite3.Connection, data: st.DataObject) -> None:
    """Another value in one line of a table."""
    table, column, key = data.draw(st.sampled_from(PLACES))
    lines = connection.execute(f"SELECT {key} FROM {table}").fetchall()
    (which,) = data.draw(st.sampled_from(lines))
    new = data.draw(
        values.map(lambda v: json.dumps(v)) | st.integers(-2, 9) | st.binary(max_size=9)
    )
    with suppress(sqlite3.IntegrityError, UnicodeEncodeError):  # the tables are strict
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (new, which))


@few
@given(st.data())
def test_a_store_with_other_values(hostile: Any, store: Path, data: st.DataObject) -> None:
    with forged(store) as (folder, connection):
        for _ in range(data.draw(st.integers(1, 3))):
            change_a_line(connection, data)
        seal(connection)
        with hostile.reading(folder):
            check_store(folder)


HOST = {
    "fingerprint": "1" * 64, "family": "bert", "shape": "base", "decides_by": "class",
    "layers": {"encoder": 2}, "d_model": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study that can be reported: ported and its controls, two seeds, natives."""
    made = planned(facts={"hosts": {"a": HOST, "b": HOST}, "numerics": 1})
    first = made.rows[0][0]
    runs = [
        replace(first, seed=seed, init=init)
        for seed in (0, 1)
        for init in ("ported", "sampled", "scratch")
    ]
    runs += [
        replace(first, kind="native", source="b", seed=seed, init="native", budgets=(10,))
        for seed in (0, 1)
    ]
    keys = [key_of(number) for number in range(len(runs))]
    made = replace(
        made,
        rows=tuple(zip(runs, keys, strict=True)),
        ingredients={key: {"run": number} for number, key in enumerate(keys)},
    )
    folder = tmp_path_factory.mktemp("whole") / "s"
    with Store.write(folder, made) as opened:
        opened.commit(*map(outcome, range(len(runs))))
    return folder


def report(folder: Path) -> None:
    terminal.text(build(read_evidence(folder)))


def test_the_whole_store_is_reported(whole_store: Path) -> None:
    report(whole_store)


@few
@given(st.data())
def test_a_report_of_a_store_with_other_values(
    hostile: Any, whole_store: Path, data: st.DataObject
) -> None:
    """Most are changed in one place of what the store says of its study, hosts and machine."""
    with forged(whole_store) as (folder, connection):
        for _ in range(data.draw(st.integers(1, 2))):
            if data.draw(st.integers(0, 3)) == 0:
                change_a_line(connection, data)
                continue
            name = data.draw(st.sampled_from(["study", "facts", "environment", "guard"]))
            query = "SELECT value FROM meta WHERE name = ?"
            value = json.loads(connection.execute(query, (name,)).fetchone()[0])
            if isinstance(value, dict):  # it may have been replaced whole
                new = json.dumps(changed(value, data))
                connection.execute("UPDATE meta SET value = ? WHERE name = ?", (new, name))
        seal(connection)
        with hostile.reading(folder):
            refused_or_read(lambda: report(folder))


@pytest.mark.parametrize(
    ("key", "new"),
    [("layers", ["a"]), ("layers", {"encoder": "b"}), ("d_model", None), ("fingerprint", ...)],
)
def test_a_report_names_the_store_whose_hosts_are_none(
    whole_store: Path, key: str, new: object
) -> None:
    host = {name: value for name, value in {**HOST, key: new}.items() if value is not ...}
    refuses(whole_store, "facts", {"hosts": {"a": host, "b": HOST}, "numerics": 1})


@pytest.mark.parametrize(
    ("name", "new"),
    [("guard", {"test": {"a": 1}}), ("guard", {"test": "1"}), ("environment", {"versions": [1]})],
)
def test_a_report_names_the_store_whose_facts_are_none(
    whole_store: Path, name: str, new: object
) -> None:
    refuses(whole_store, name, new)


def refuses(store: Path, name: str, new: object) -> None:
    with forged(store) as (folder, connection):
        connection.execute("UPDATE meta SET value = ? WHERE name = ?", (json.dumps(new), name))
        connection.commit()
        with pytest.raises(InputError, match=f"store '{folder}' is damaged"):
            report(folder)


def _score_digest(*line: Any) -> str:
    from peftport.study.schema import score_digest

    return score_digest(*line)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to endless", "huge"])
def test_a_module_that_is_no_module(store: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(store, tmp_path / "s")
    path = sorted((tmp_path / "s" / "modules").iterdir())[0]
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to endless":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)  # takes no room
    read_all(tmp_path / "s")
    with Store.read(tmp_path / "s") as opened:
        assert len(verify(opened).damages) == 1


def test_a_store_that_would_run_its_own_code_is_only_read(store: Path, tmp_path: Path) -> None:
    """A view in place of a table, that calls a function with side effects."""
    shutil.copytree(store, tmp_path / "s")
    connection = sqlite3.connect(tmp_path / "s" / "store.sqlite")
    connection.execute("DROP TABLE notes")
    connection.execute("CREATE VIEW notes AS SELECT 1 AS id, '' AS at, load_extension('x') AS note")
    connection.commit()
    connection.close()
    check_store(tmp_path / "s")
    with Store.read(tmp_path / "s") as opened, pytest.raises(PeftportError):
        assert opened.notes
