"""Results of a store in trackers. Neither tracker is installed here: each has a stand-in with the
calls of its published API, and the numbers are compared with the store's own export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from peftport.cli.main import run
from peftport.study.export import long_frame
from peftport.study.exporters.base import exporters, records
from peftport.study.store import Store
from peftport.testing.contracts_store import failure, outcome, planned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Store.write(tmp_path / "store", planned()) as store:
        store.commit(outcome(0), outcome(1), failure(2))
    return tmp_path / "store"


class Mlflow:
    """The calls that are used of MlflowClient, kept in memory."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, Any] = {}
        self.uris: list[str | None] = []
        self.break_at: int | None = None

    def __call__(self, tracking_uri: str | None = None) -> Mlflow:
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return SimpleNamespace(experiment_id=found) if found else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments) + 1))

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        if self.break_at == len(self.runs):
            raise RuntimeError("the server is gone")
        made = SimpleNamespace(
            info=SimpleNamespace(run_id=str(len(self.runs)), status="RUNNING", name=run_name),
            data=SimpleNamespace(tags=dict(tags), metrics={}, params={}),
        )
        self.runs[made.info.run_id] = made
        return made

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        data = self.runs[run_id].data
        data.metrics |= {(m.key, m.step): m.value for m in metrics}
        data.params |= {p.key: p.value for p in params}
        data.tags |= {t.key: t.value for t in tags}

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id].info.status = "FINISHED"

    def search_runs(self, ids: list[str], max_results: int, page_token: str | None) -> Any:
        at = int(page_token or 0)
        rows = list(self.runs.values())[at : at + 2]  # pages are small, so that they are turned
        return _Page(rows, str(at + 2) if at + 2 < len(self.runs) else "")


class _Page(list[Any]):
    def __init__(self, rows: list[Any], token: str) -> None:
        super().__init__(rows)
        self.token = token


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    client = Mlflow()
    entities = ModuleType("mlflow.entities")
    for name, fields in (
        ("Metric", ("key", "value", "timestamp", "step")),
        ("Param", ("key", "value")),
        ("RunTag", ("key", "value")),
    ):
        make = lambda *values, fields=fields: SimpleNamespace(  # noqa: E731
            **dict(zip(fields, values, strict=True))
        )
        setattr(entities, name, make)
    tracking = ModuleType("mlflow.tracking")
    tracking.MlflowClient = client  # type: ignore[attr-defined]
    for name, module in (
        ("mlflow", ModuleType("mlflow")), ("mlflow.entities", entities),
        ("mlflow.tracking", tracking),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    return client


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Project to run name to what was logged."""
    kept: dict[str, Any] = {}

    def init(project: str, name: str, config: dict[str, Any], **rest: Any) -> Any:
        assert rest["auto_log_gpu"] is False and rest["embed"] is False
        run = SimpleNamespace(config=config, logged={}, ended=False, name=name)
        run.log = lambda metrics, step: run.logged.update({step: metrics})
        run.finish = lambda: setattr(run, "ended", True)
        kept.setdefault(project, {})[name] = run
        return run

    module = ModuleType("trackio")
    module.init = init  # type: ignore[attr-defined]
    api = SimpleNamespace(runs=lambda project: list(kept.get(project, {}).values()))
    module.Api = lambda: api  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    yield kept


def test_records_are_the_finished_rows_of_the_export(folder: Path) -> None:
    with Store.read(folder) as store:
        found, frame = list(records(store)), long_frame(store)
    assert len(found) == 3, "two trainings, one of which answers two rows; the failed one is none"
    assert len({record.id for record in found}) == 3
    values = {
        (r.parameters["data"], r.parameters["seed"], budget, name): value
        for r in found
        for budget, row in r.metrics.items()
        for name, value in row.items()
    }
    theirs = {(r.data, r.seed, r.budget, r.metric): r.value for r in frame.itertuples()}
    assert values == theirs


def test_mlflow_gets_every_row_once(folder: Path, mlflow: Mlflow) -> None:
    assert run(f"track {folder} --to mlflow --project p --place file:x -q".split()) == 0
    assert mlflow.uris == ["file:x"] and mlflow.experiments == {"p": "1"}
    assert len(mlflow.runs) == 3
    first = mlflow.runs["0"]
    with Store.read(folder) as store:
        record = next(records(store))
    expected = {(n, b): v for b, row in record.metrics.items() for n, v in row.items()}
    assert first.data.metrics == expected and first.data.params["init"] == "ported"
    assert run(f"track {folder} --to mlflow --project p -q".split()) == 0
    assert len(mlflow.runs) == 3
    with Store.write(folder, planned()) as store:
        store.commit(outcome(3))
    assert run(f"track {folder} --to mlflow --project p -q".split()) == 0
    assert len(mlflow.runs) == 4


def test_what_was_cut_off_is_written_again(folder: Path, mlflow: Mlflow) -> None:
    mlflow.break_at = 1
    with pytest.raises(RuntimeError, match="gone"):
        run(f"track {folder} --to mlflow -q".split())
    mlflow.runs["0"].info.status = "RUNNING"  # as if it had ended in the middle
    mlflow.break_at = None
    assert run(f"track {folder} --to mlflow -q".split()) == 0
    ended = [r for r in mlflow.runs.values() if r.info.status == "FINISHED"]
    assert len(ended) == 3 and len({r.data.tags["peftport.id"] for r in ended}) == 3


def test_trackio_gets_every_row_once(folder: Path, trackio: dict[str, Any]) -> None:
    for _ in range(2):
        assert run(f"track {folder} --to trackio -q".split()) == 0
    (runs,) = trackio.values()
    assert len(runs) == 3 and all(r.ended for r in runs.values())
    with Store.read(folder) as store:
        assert [r.logged for r in runs.values()] == [dict(r.metrics) for r in records(store)]
        assert set(trackio) == {store.study.name}


@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.entities", None)
    assert run(f"track {folder} --to {name}".split()) == 2
    assert f"pip install {exporters.get(name).package}" in capsys.readouterr().err


def test_unknown_trackers_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"track {folder} --to mlfow".split()) == 2
    assert "did you mean 'mlflow'" in capsys.readouterr().err
