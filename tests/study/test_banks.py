"""Banks at work: whole or not at all, resumed as they were planned, one failure among many."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftport.errors import InputError
from peftport.methods.base import Module
from peftport.study import drive, runner, sizing
from peftport.study.banks import compose
from peftport.study.drive import Options, Prepared, prepare, recompute, run_study
from peftport.study.executors.base import BankJob, Job
from peftport.study.grid import read_study
from peftport.study.runner import Runner
from peftport.study.sizing import Wish
from peftport.study.store import Store
from peftport.train.sizing import Sizing

STUDY = """
name: banks
hosts: [a, b]
pairs: [[a, b]]
data: {target: reviews.csv, settings: [same], test: 40}
methods: {lora: {r: 2}, prefix: {hidden: 4}}
source: {steps: 3, batch: 8, seeds: [0]}
target: {budgets: [0, 2, 4], batch: 8}
seeds: [1, 2, 3]
strategy: {texts: 32}
extras: {ablations: {inits: [probe], seeds: [1, 2, 3]}}
rates:
  provenance: none
  table: {lora: {any: {any: {lr: 1e-2}}}, prefix: {any: {any: {lr: 1e-2}}}}
"""
FIVE = Wish(bank=5, kernel="torch")
#: lora 3 + 6 alike: banks of 4 and 5; prefix 3 fresh ones, 6 direct pairs of 3 and 3; probe 3
SIZES = [1, 1, 3, 4, 3, 5, 3, 3]


@pytest.fixture(scope="module")
def prepared(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("banks")
    for name in ("a", "b", "reviews.csv"):
        (folder / name).symlink_to(pico / name)
    (folder / "study.yaml").write_text(STUDY)
    return prepare(read_study(folder / "study.yaml"))


@pytest.fixture(scope="module")
def whole(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study done in one go."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    status = run_study(prepared, folder, Options(quiet=True, sizing=FIVE))
    assert (status["missing"], status["failed"]) == (0, 0)
    return folder


def content(folder: Path) -> dict[tuple[str, int], tuple[bytes, str]]:
    """Scores and module digest of everything in a store."""
    connection = sqlite3.connect(folder / "store.sqlite")
    rows = connection.execute("SELECT key, budget, scores, module FROM scores").fetchall()
    connection.close()
    return {(key, budget): (scores, module) for key, budget, scores, module in rows}


def keys_of(bank: BankJob) -> tuple[str, ...]:
    return tuple(job.key for job in bank.jobs)


class Watched:
    """Counts what the worker is given; ``stop`` interrupts a bank when it is drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> None:
        self.banks: list[tuple[str, ...]] = []
        real = Runner.work

        def work(worker: Runner, bank: BankJob) -> Any:
            if len(self.banks) == stop:
                raise KeyboardInterrupt
            self.banks.append(keys_of(bank))
            return real(worker, bank)

        monkeypatch.setattr(Runner, "work", work)


def test_banks_are_the_plans_and_each_is_one_pass(
    prepared: Prepared, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = runner.BankTraining

    def counted(host: Any, slots: Any, *more: Any) -> Any:
        passes.append(len(slots))
        return real(host, slots, *more)

    monkeypatch.setattr(runner, "BankTraining", counted)
    seen = Watched(monkeypatch)
    run_study(prepared, tmp_path / "s", Options(quiet=True, sizing=FIVE))
    planned = [keys for wave in compose(prepared.plan, 5) for keys in wave]
    assert seen.banks == planned
    assert sorted(passes) == sorted(SIZES) == sorted(map(len, planned))
    assert content(tmp_path / "s") == content(whole)
    with Store.read(tmp_path / "s") as store:
        assert store.notes == []
        assert set(store.rows()["split"]) == {0}


def test_a_stopped_study_goes_on_with_the_next_bank(
    prepared: Prepared, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(quiet=True, sizing=FIVE)
    planned = [keys for wave in compose(prepared.plan, 5) for keys in wave]
    with monkeypatch.context() as patch:
        first = Watched(patch, stop=3)
        with pytest.raises(KeyboardInterrupt):
            run_study(prepared, tmp_path / "s", options)
    assert first.banks == planned[:3]
    with Store.read(tmp_path / "s") as store:
        assert sorted(store.states()) == sorted(key for keys in planned[:3] for key in keys)
    with monkeypatch.context() as patch:
        then = Watched(patch)
        run_study(prepared, tmp_path / "s", replace(options, limit=4))
        run_study(prepared, tmp_path / "s", options)
    assert then.banks == planned[3:]
    assert content(tmp_path / "s") == content(whole)


def test_what_stops_inside_a_bank_leaves_nothing_of_it(
    prepared: Prepared, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = runner.bank_scores, [0]

    def stopped(host: Any, modules: Any, encoded: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:  # two source banks, then in the middle of a third
            raise KeyboardInterrupt
        return real(host, modules, encoded)

    options = Options(quiet=True, sizing=FIVE)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "bank_scores", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_study(prepared, tmp_path / "s", options)
    assert len({key for key, _ in content(tmp_path / "s")}) == 2
    run_study(prepared, tmp_path / "s", options)
    assert content(tmp_path / "s") == content(whole)


def test_a_half_finished_bank_is_done_whole_and_only_the_rest_enters(
    prepared: Prepared, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [keys for wave in compose(prepared.plan, 5) for keys in wave]
    real = Runner._start

    def broken(worker: Runner, job: Job) -> Module:
        if job.key == planned[3][1]:
            raise ZeroDivisionError("division by zero")
        return real(worker, job)

    options = Options(quiet=True, sizing=FIVE)
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_start", broken)
        assert run_study(prepared, tmp_path / "s", options)["trainings"]["failed"] == 1
    with Store.read(tmp_path / "s") as store:
        assert "ZeroDivisionError" in store.failures()[planned[3][1]]
    before = finished(tmp_path / "s")
    seen = Watched(monkeypatch)
    run_study(prepared, tmp_path / "s", options)
    assert seen.banks == []
    status = run_study(prepared, tmp_path / "s", replace(options, retry_failed=True))
    assert status["done"] == status["planned"]
    assert seen.banks == [planned[3]]
    after = finished(tmp_path / "s")
    assert [key for key in after if after[key] != before[key]] == [planned[3][1]]
    assert content(tmp_path / "s")[planned[3][1], 4] == content(whole)[planned[3][1], 4]


def finished(folder: Path) -> dict[str, tuple[str, int]]:
    """Key to (time, attempt) of every result."""
    connection = sqlite3.connect(folder / "store.sqlite")
    rows = connection.execute("SELECT key, finished, attempt FROM results").fetchall()
    connection.close()
    return {key: (when, attempt) for key, when, attempt in rows}


def bank_of(prepared: Prepared, at: int) -> BankJob:
    """A planned bank that needs no source."""
    keys = [keys for wave in compose(prepared.plan, 5) for keys in wave][at]
    jobs = tuple(Job(key, prepared.plan.trainings[key]) for key in keys)
    assert all(not job.training.sources for job in jobs)
    return BankJob(jobs)


def test_a_slot_that_diverges_fails_alone(prepared: Prepared) -> None:
    worker = Runner(prepared.materials, 1, "torch")
    bank = bank_of(prepared, 4)  # fresh prefixes
    sane = worker.do(bank)
    wild = replace(bank.jobs[1], training=replace(bank.jobs[1].training, lr=1e38))
    outcomes = worker.do(BankJob((bank.jobs[0], wild, bank.jobs[2])))
    assert [o.key for o in outcomes] == list(keys_of(bank))
    assert [o.error is None for o in outcomes] == [True, False, True]
    assert outcomes[1].error is not None
    assert "diverged at step" in outcomes[1].error or "not finite" in outcomes[1].error
    assert outcomes[1].traceback
    assert (outcomes[1].measures, outcomes[1].module) == ((), None)
    for at in (0, 2):
        assert outcomes[at].module == sane[at].module
        for left, right in zip(outcomes[at].measures, sane[at].measures, strict=True):
            assert left.scores.tobytes() == right.scores.tobytes()
    assert len({o.seconds for o in outcomes}) == 1


def test_a_job_that_cannot_start_fails_alone(prepared: Prepared, whole: Path) -> None:
    plan = prepared.plan
    keys = compose(plan, 5)[1][-1]
    with Store.read(whole) as store:
        bank = drive.bank_job(store, plan, keys)
        expected = {key: store.scores(key, 4) for key in keys}
    assert all(job.source for job in bank.jobs)
    jobs = (replace(bank.jobs[0], source=b"nothing"), *bank.jobs[1:])
    first, *others = Runner(prepared.materials, 1, "torch").do(BankJob(jobs))
    assert first.error is not None
    assert "not a module of a store" in first.error
    for outcome in others:
        assert outcome.error is None
        np.testing.assert_allclose(outcome.measures[-1].scores, expected[outcome.key], atol=1e-4)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_what_does_not_fit_is_split_and_flagged(
    prepared: Prepared,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    real, passes = runner.BankTraining, []

    def small(host: Any, slots: Any, *more: Any) -> Iterator[Any]:
        if len(slots) > 2:
            raise error
        passes.append(len(slots))
        yield from real(host, slots, *more)

    monkeypatch.setattr(runner, "BankTraining", small)
    status = run_study(prepared, tmp_path / "s", Options(quiet=True, sizing=FIVE))
    assert status["done"] == status["planned"]
    assert max(passes) == 2
    split = {key for wave in compose(prepared.plan, 5) for keys in wave if len(keys) > 2
             for key in keys}  # fmt: skip
    with Store.read(tmp_path / "s") as store:
        rows, frame = store.rows(), store.frame()
        assert set(rows[rows["split"] == 1]["key"]) == split
        assert set(frame[frame["split"] == 1]["key"]) == split
        assert len(store.notes) == sum(size > 2 for size in SIZES)
        assert all(any(key[:12] in note for note in store.notes) for key in split)
    for at, (scores, _) in content(whole).items():
        found = np.frombuffer(content(tmp_path / "s")[at][0], dtype="<f4")
        np.testing.assert_allclose(found, np.frombuffer(scores, dtype="<f4"), atol=1e-4)


def test_one_module_that_does_not_fit_fails(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError("no memory for this")

    monkeypatch.setattr(runner, "BankTraining", full)
    outcomes = Runner(prepared.materials, 1, "torch").do(bank_of(prepared, 4))
    assert [o.error for o in outcomes] == ["no memory for this"] * 3
    assert all(o.split for o in outcomes)


def test_modules_that_are_not_alike_after_all_are_done_apart(prepared: Prepared) -> None:
    lora, prefix = bank_of(prepared, 0), bank_of(prepared, 1)
    worker = Runner(prepared.materials, 1, "torch")
    together = worker.do(BankJob((*lora.jobs, *prefix.jobs)))
    apart = [*worker.do(lora), *worker.do(prefix)]
    assert all(o.error is None and o.split for o in together)
    assert [o.module for o in together] == [o.module for o in apart]


def test_without_a_packed_program_modules_are_trained_one_by_one(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Runner(prepared.materials, 1, "torch")
    for at in (2, 4):
        bank = bank_of(prepared, at)
        fast = worker.do(bank)
        with monkeypatch.context() as patch:
            patch.setattr(runner, "trains_in_banks", lambda *_: False)
            patch.setattr(runner, "BankTraining", None)
            patch.setattr(runner, "bank_scores", None)
            slow = worker.do(bank)
            wild = replace(bank.jobs[1], training=replace(bank.jobs[1].training, lr=1e38,
                                                          head_lr=1e38))  # fmt: skip
            found = worker.do(BankJob((bank.jobs[0], wild, bank.jobs[2])))
        for left, right in zip(fast, slow, strict=True):
            assert right.error is None
            assert [m.budget for m in left.measures] == [m.budget for m in right.measures]
            for ours, theirs in zip(left.measures, right.measures, strict=True):
                np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        assert [o.error is None for o in found] == [True, False, True]
        assert found[2].module == slow[2].module


def test_a_module_is_made_again_alone_or_in_its_bank(
    prepared: Prepared, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = next(k for k in compose(prepared.plan, 5)[1] if len(k) == 5)
    tried: list[int] = []
    real = Runner.modules
    spoil: Callable[[int], bool] = lambda size: size == 1  # noqa: E731

    def other(worker: Runner, bank: BankJob) -> Iterator[Any]:
        tried.append(len(bank.jobs))
        for budget, found in real(worker, bank):
            if spoil(len(bank.jobs)):
                found = [replace(m, head={n: t + 1 for n, t in m.head.items()}) for m in found]
            yield budget, found

    with Store.read(whole) as store:
        assert recompute(store, keys[1], 2).digest == store.module_digest(keys[1], 2)
        monkeypatch.setattr(Runner, "modules", other)
        assert recompute(store, keys[1], 2).digest == store.module_digest(keys[1], 2)
        assert tried == [1, 5]
        spoil = lambda _: True  # noqa: E731
        with pytest.raises(InputError, match="gives another module at budget 2"):
            recompute(store, keys[1], 2)


def test_what_was_decided_once_holds_for_the_whole_study(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def choose(host: Any, memory_bytes: int, largest: Any = None) -> Sizing:
        asked.append((largest.fingerprint, memory_bytes))
        return Sizing(3, "torch")

    monkeypatch.setattr("peftport.study.sizing.choose_sizing", choose)
    auto = Options(quiet=True, limit=1, sizing=Wish(memory_gb=2.0))
    run_study(prepared, tmp_path / "s", auto)
    run_study(prepared, tmp_path / "s", auto)
    ((_, room),) = asked
    assert 1.9 * sizing.GIB < room <= 2 * sizing.GIB
    with Store.read(tmp_path / "s") as store:
        made = store.environment
    assert (made["bank"], made["kernel"], made["threads"]) == (3, "torch", made["threads"])
    seen = Watched(monkeypatch)
    monkeypatch.setattr("torch.get_num_threads", lambda: made["threads"] + 1)
    again = prepare(prepared.planned.study)
    run_study(again, tmp_path / "s", Options(quiet=True))
    assert seen.banks == [keys for wave in compose(prepared.plan, 3) for keys in wave][2:]
    with Store.read(tmp_path / "s") as store:
        assert store.environment == made
    for wish, what in ((Wish(bank=4), "--bank 3"), (Wish(kernel="onednn"), "--kernel torch")):
        with pytest.raises(InputError, match=f"the store was made with {what}"):
            run_study(prepared, tmp_path / "s", Options(quiet=True, sizing=wish))
    run_study(prepared, tmp_path / "s", Options(quiet=True, sizing=Wish(bank=3)))


def test_a_kernel_that_is_not_here_is_replaced_and_noted(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(quiet=True, limit=1, sizing=FIVE)
    run_study(prepared, tmp_path / "s", options)
    connection = sqlite3.connect(tmp_path / "s" / "store.sqlite")
    (text,) = connection.execute("SELECT value FROM meta WHERE name = 'environment'").fetchone()
    changed = json.dumps({**json.loads(text), "kernel": "onednn"})
    connection.execute("UPDATE meta SET value = ? WHERE name = 'environment'", (changed,))
    connection.commit()
    connection.close()
    monkeypatch.setattr("peftport.hosts.packed.kernels.has_onednn", lambda: False)
    for _ in range(2):
        run_study(prepared, tmp_path / "s", Options(quiet=True, limit=1))
    with Store.read(tmp_path / "s") as store:
        (note,) = store.notes
        assert "kernel 'onednn' of the store is not to be had here, 'torch' is used" in note
        assert store.environment["kernel"] == "onednn"
        assert len(store.states()) == 5


def test_a_limit_is_rounded_up_to_whole_banks(prepared: Prepared, tmp_path: Path) -> None:
    for limit, done in ((0, 0), (1, 1), (2, 5), (3, 9)):
        run_study(prepared, tmp_path / "s", Options(quiet=True, limit=limit, sizing=FIVE))
        with Store.read(tmp_path / "s") as store:
            assert len(store.states()) == done
