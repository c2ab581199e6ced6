"""A whole study through the command line, on hosts of a few kilobytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from peftport.cli.main import run
from peftport.data.tasks import Task, encode
from peftport.formats import load_module
from peftport.hosts.load import load_host
from peftport.methods.base import Module
from peftport.study import drive, runner
from peftport.study.grid import read_study
from peftport.study.materials import gather
from peftport.study.store import Store
from peftport.train.evaluate import class_scores

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the pico study, done in two goes."""
    store = tmp_path_factory.mktemp("run") / "new" / "store"
    command = ["study", "run", str(pico / "pico.yaml"), "--store", str(store), "-q"]
    command += ["--bank", "4"]
    assert run([*command, "--limit", "7"]) == 0
    assert run(command) == 0
    return store


def test_status_counts_every_kind(finished: Path, cli: Cli) -> None:
    status = json.loads(cli("status", finished, "--json").out)
    planned = {kind: counts["planned"] for kind, counts in status["kinds"].items()}
    assert planned == {"grid": 24, "ablation": 12, "source": 2, "native": 4}
    assert (status["planned"], status["done"]) == (42, 42)
    assert (status["failed"], status["missing"], status["notes"]) == (0, 0, [])
    # probe is one training for both methods; scratch has one per method, target and seed
    assert status["trainings"]["planned"] == 2 + 4 + 8 + 8 + 8 + 8 + 2
    with Store.read(finished) as store:
        assert status["guard"] == store.guard
    table = cli("status", finished).out
    assert f"between parts (validation and test {status['guard']['validation and test']}, " in table
    assert table.startswith("study pico (")
    assert "grid       24       24    0       0" in table


def test_the_same_command_again_does_nothing(
    pico: Path, finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a finished study makes a worker")

    monkeypatch.setattr(drive, "Runner", never)
    before = (finished / "store.sqlite").read_bytes()
    answer = cli("run", pico / "pico.yaml", "--store", finished)
    assert answer.code == 0
    assert "42 done · 0 to run · 0 failed" in answer.out
    assert (finished / "store.sqlite").read_bytes() == before


def test_the_export_has_a_line_per_run_budget_and_metric(
    finished: Path, cli: Cli, tmp_path: Path
) -> None:
    for kind in ("csv", "parquet"):
        answer = cli("export", finished, "--format", kind, "-o", tmp_path / kind)
        assert answer.code == 0
    frame = pd.read_csv(tmp_path / "csv", keep_default_na=False)
    assert len(frame) == 4 * (2 * (24 + 12) + 2 + 4)
    assert set(frame["metric"]) == {"balanced_accuracy", "accuracy", "auc", "constant"}
    parquet = pd.read_parquet(tmp_path / "parquet")
    assert parquet["value"].tolist() == pd.to_numeric(frame["value"]).tolist()
    order = ["kind", "method", "source", "target", "data", "seed", "init"]
    assert frame[order].values.tolist() == frame[order].sort_values(order).values.tolist()
    grid = frame[frame["kind"] == "grid"]
    names = ["method", "source", "target", "data", "seed", "init", "budget", "metric"]
    assert not grid.duplicated(names).any()
    assert (grid["study"] == read_study(finished / "study.yaml").digest).all()
    # two pairs have two targets here, so no scratch training is shared between grid rows
    assert grid.groupby("key")[["target", "init"]].nunique().max().max() == 1


def test_scores_are_those_of_the_module_that_is_written(
    pico: Path, finished: Path, cli: Cli, tmp_path: Path
) -> None:
    measured = gather(read_study(pico / "pico.yaml")).measured
    with Store.read(finished) as store:
        rows = store.rows()
        labels = store.labels()
    assert labels.tolist() == list(measured.labels)
    chosen = rows[(rows["kind"] == "grid") & (rows["seed"] == 1) & (rows["target"] == "c")]
    assert len(chosen) == 6
    for row in chosen.to_dict("records"):
        for budget in row["budgets"]:
            out = tmp_path / f"{row['method']}-{row['init']}-{budget}"
            answer = cli("module", finished, row["key"][:12], "-o", out, "--budget", budget)
            assert answer.code == 0, answer.err
            host = load_host(str(pico / "c"))
            encoded = encode(host.tokenizer, measured.texts, Task())
            scores = class_scores(host, load_module(out, spec=host.spec), encoded)
            with Store.read(finished) as store:
                kept = store.scores(row["key"], budget)
            assert kept is not None
            np.testing.assert_allclose(scores, kept, atol=1e-5)


def test_ported_begins_where_the_source_ended(finished: Path) -> None:
    with Store.read(finished) as store:
        frame = store.frame()
    zero = frame[(frame["budget"] == 0) & (frame["metric"] == "auc") & (frame["kind"] == "grid")]
    ported = zero[zero["init"] == "ported"]
    # one source module for both seeds: nothing random in a port
    assert (ported.groupby(["method", "target"])["value"].nunique() == 1).all()
    assert ported["key"].nunique() == len(ported)


def test_explain_and_wrong_keys(finished: Path, cli: Cli, tmp_path: Path) -> None:
    with Store.read(finished) as store:
        key = store.rows()["key"][0]
    facts = json.loads(cli("explain", finished, key[:10]).out)
    assert facts["key"] == key
    assert {"host", "train", "measured", "numerics", "init"} <= set(facts["ingredients"])
    assert "paths" not in json.dumps(facts)
    assert str(finished.parent) not in json.dumps(facts)
    for wrong in ("zz", "", key + "0"):
        answer = cli("explain", finished, wrong)
        assert answer.code == 2
        assert "begins with" in answer.err
    answer = cli("module", finished, key, "-o", tmp_path / "m", "--budget", "9")
    assert answer.code == 2
    assert "has budgets 0, 2" in answer.err
    assert not (tmp_path / "m").exists()


def test_a_dry_run_counts_and_writes_nothing(
    pico: Path, finished: Path, cli: Cli, tmp_path: Path
) -> None:
    answer = cli("run", pico / "pico.yaml", "--store", tmp_path / "s", "--dry-run", "--json")
    facts = json.loads(answer.out)
    assert facts["runs"] == {"grid": 24, "ablation": 12, "source": 2, "native": 4}
    assert facts["trainings"] == 40
    assert facts["estimate_s"] >= 0
    assert facts["memory_bytes"] > 0
    assert 1 <= facts["banks"] <= 40
    text = cli("run", pico / "pico.yaml", "--dry-run", "--bank", 1).out
    assert "distinct trainings       40\n" in text
    assert "banks                    40 of at most 1 modules\n" in text
    assert "time on two cores        about 0:0" in text
    assert "GB for hosts and one bank" in text
    kept = cli("run", pico / "pico.yaml", "--store", finished, "--dry-run", "--json")
    assert json.loads(kept.out)["bank"] == 4
    guess = cli("run", pico / "pico.yaml", "--dry-run", "--memory", "1e-9").out
    assert "40 of at most 1 modules (a guess; measured when the study starts)" in guess
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_a_row_and_is_retried_on_request(
    pico: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = drive.Runner._start

    def broken(self: drive.Runner, job: drive.Job) -> Module:
        if (job.training.method, job.training.init) == ("lora", "native"):
            raise ZeroDivisionError("division by zero")
        return real(self, job)

    command = ("run", pico / "pico.yaml", "--store", tmp_path / "s", "-q")
    with monkeypatch.context() as patch:
        patch.setattr(drive.Runner, "_start", broken)
        answer = cli(*command)
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "--retry-failed" in answer.err
    with Store.read(tmp_path / "s") as store:
        status, rows, failures = store.status(), store.rows(), store.failures()
    lost = rows[rows["status"] == "failed"]
    assert set(lost["method"]) == {"lora"}
    assert set(lost["init"]) == {"native", "ported", "sampled", "head-only", "body-only"}
    assert set(lost["error"]) == {"division by zero", "its source module failed"}
    assert "ZeroDivisionError" in " ".join(failures.values())
    assert status["missing"] == 0
    # not tried again unasked
    assert cli(*command).code == 1
    with Store.read(tmp_path / "s") as store:
        assert store.status() == status
    assert cli(*command, "--retry-failed").code == 0
    with Store.read(tmp_path / "s") as store:
        assert store.status()["done"] == store.status()["planned"]


def test_scores_that_are_not_numbers_are_a_failure(
    pico: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        runner, "bank_scores", lambda _, modules, __: np.full((len(modules), 40, 2), np.nan)
    )
    command = ("run", pico / "pico.yaml", "--store", tmp_path / "s", "-q", "--limit", 1)
    answer = cli(*command)
    assert answer.code == 1
    assert "not finite after 4 steps" in answer.err
    with Store.read(tmp_path / "s") as store:
        assert len(store.frame()) == 0


SEARCH = """
name: pico-rates
hosts: [a, b]
pairs: [[a, b]]
data: {target: reviews.csv, validation: 20}
methods: {lora: {r: 2}}
source: {steps: 3, batch: 8}
target: {budgets: [2], batch: 8}
seeds: [1, 2]
inits: [ported, scratch, probe]
strategy: {texts: 32}
rates: {search: {rates: [1e-3, 1e-2], head-rates: [1e-2, 1e-1], seeds: [7], metric: auc}}
"""


def test_a_search_chooses_rates_that_a_study_can_use(pico: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(SEARCH)
    for name in ("a", "b", "reviews.csv"):
        (tmp_path / name).symlink_to(pico / name)
    command = ("run", tmp_path / "search.yaml", "--store", tmp_path / "s", "-q")
    assert cli(*command, "--limit", 4).code == 0
    answer = cli("rates", tmp_path / "s")
    assert answer.code == 2
    assert "missing" in answer.err
    assert cli(*command).code == 0
    answer = cli("rates", tmp_path / "s")
    assert answer.code == 0, answer.err
    with Store.read(tmp_path / "s") as store:
        frame, rows = store.frame(), store.rows()
    assert len(rows) == 2 * 4 + 4 + 4 + 2
    uses = SEARCH[: SEARCH.index("rates:")].replace("pico-rates", "pico-uses") + answer.out
    (tmp_path / "uses.yaml").write_text(uses)
    table = read_study(tmp_path / "uses.yaml").rates
    auc = frame[frame["metric"] == "auc"]
    for init, host in (("native", "a"), ("native", "b"), ("ported", "b"), ("scratch", "b")):
        cell = auc[(auc["init"] == init) & (auc["target"] == host)]
        best = table.find("lora", host, init)  # type: ignore[union-attr]
        chosen = cell[(cell["lr"] == best.lr) & (cell["head_lr"] == best.head_lr)]
        assert chosen["value"].item() == cell["value"].max()
        assert best.score == round(cell["value"].max(), 4)
    assert table.seeds == (7,)
    # what was carried over is the best of the source's candidates
    with Store.read(tmp_path / "s") as store:
        prepared = drive.prepare(store.study)
        ported = rows[rows["init"] == "ported"]["key"].iloc[0]
        best_key = drive.best_source(store, prepared.plan, ported)
    natives = auc[(auc["init"] == "native") & (auc["target"] == "a")]
    assert natives.set_index("key")["value"][best_key] == natives["value"].max()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lora: {r: 2}", "lorra: {r: 2}", "unknown method 'lorra'; did you mean 'lora'"),
        ("lora: {r: 2}", "lora: {r: 0}", "lora.r must be >= 1, got 0"),
        ("lora: {r: 2}", "lora: {rank: 2}", "unknown key 'lora.rank'"),
        ("lora: {r: 2}", "lora: {alpha: x}", "lora.alpha must be a finite number, got 'x'"),
        ("lora: {r: 2}", "lora: {roles: [gate]}", "has no site on a 'bert' host"),
        ("lora: {r: 2}", "prefix: {length: 50}", "places for 96 tokens, a prefix of 50 before"),
        (
            "strategy: {texts: 32}",
            "strategy: {texts: 32}\ntask: {max-tokens: 97}",
            "reads at most 96 tokens, the task asks for 97",
        ),
        ("hosts: [a, b, c]", "hosts: [a, b, c, nowhere]", "nowhere"),
        ("target: reviews.csv", "target: missing.csv", "missing.csv"),
        ("target: reviews.csv", "target: {ref: reviews.csv, text: body}", "body"),
        ("strategy: {texts: 32}", "strategy: {otherwise: rigde}", "did you mean 'ridge'"),
        ("strategy: {texts: 32}", "strategy: {otherwise: copy}", "copy"),
        (
            "strategy: {texts: 32}",
            "strategy: {texts: 32}\ntask: {verbalisers: [a, b, c]}",
            "classes",
        ),
        ("strategy: {texts: 32}", "strategy: {texts: 32}\ntask: {template: no slot}", "template"),
        ("steps: 4", "steps: four", "source.steps must be a whole number"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    pico: Path, cli: Cli, tmp_path: Path, old: str, new: str, message: str
) -> None:
    for path in pico.iterdir():
        (tmp_path / path.name).symlink_to(path)
    text = (pico / "pico.yaml").read_text()
    assert old in text
    (tmp_path / "bad.yaml").write_text(text.replace(old, new, 1))
    before = sorted(tmp_path.iterdir())
    answer = cli("run", tmp_path / "bad.yaml", "--store", tmp_path / "s")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert message in answer.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_plan_refuses_texts_that_have_no_place(pico: Path, cli: Cli, tmp_path: Path) -> None:
    for path in pico.iterdir():
        (tmp_path / path.name).symlink_to(path)
    text = (pico / "pico.yaml").read_text()
    file = tmp_path / "long.yaml"
    for tokens, code in ((96, 0), (97, 2)):
        file.write_text(f"{text}\ntask: {{max-tokens: {tokens}}}\n")
        answer = cli("plan", file)
        assert answer.code == code, answer.err
    assert "reads at most 96 tokens, the task asks for 97" in answer.err


def test_wrong_commands_are_one_line(pico: Path, finished: Path, cli: Cli, tmp_path: Path) -> None:
    file = pico / "pico.yaml"
    for args, message in (
        (("run", file), "--store is missing"),
        (("run", "quik", "--store", tmp_path / "s"), "did you mean 'quick'"),
        (("run", "mini", "--store", finished), "holds the grid 'pico'"),
        (
            ("run", file, "--store", tmp_path / "s", "--executor", "cloud"),
            "unknown executor 'cloud'",
        ),
        (
            ("run", file, "--store", tmp_path / "s", "--bank", "many"),
            "'many' is neither 'auto' nor a whole number >= 1",
        ),
        (("run", file, "--store", tmp_path / "s", "--bank", 0), "neither 'auto' nor"),
        (("run", file, "--store", tmp_path / "s", "--memory", 0), "--memory"),
        (
            ("run", file, "--store", tmp_path / "s", "--kernel", "cuda"),
            "unknown kernel 'cuda'; known: onednn, torch",
        ),
        (("run", file, "--store", finished, "--bank", 9), "was made with --bank 4"),
        (("run", file, "--store", finished, "--bank", 9, "--dry-run"), "made with --bank 4"),
        (("run", file, "--store", file), "is a file"),
        (("status", tmp_path), "no store in"),
        (("export", finished, "-o", tmp_path / "no" / "x.csv"), "existing folder"),
        (("export", finished, "-o", tmp_path), "cannot write"),
        (("rates", finished), "searches no rates"),
    ):
        answer = cli(*args)
        assert answer.code == 2, args
        assert message in answer.err
        assert answer.err.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_progress_is_plain_lines_where_there_is_no_terminal(
    pico: Path, cli: Cli, tmp_path: Path
) -> None:
    answer = cli("run", pico / "pico.yaml", "--store", tmp_path / "s", "--limit", 2, "--bank", 1,
                 "--json")  # fmt: skip
    assert answer.code == 0
    assert json.loads(answer.out)["done"] >= 2
    assert "1/2 banks" in answer.err
    assert "2/2 banks" in answer.err
    assert "leak guard" in answer.err
    assert "\r" not in answer.err
