"""Checkpoints inside banks: who goes on from one gives what the uninterrupted bank gives."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftport.errors import InputError, RunError
from peftport.study import drive, runner
from peftport.study.banks import compose
from peftport.study.checkpoint import Checkpoint, read_checkpoint
from peftport.study.checkpoints import Checkpoints
from peftport.study.drive import Options, Prepared, prepare, run_study
from peftport.study.executors.base import BankJob
from peftport.study.grid import read_study
from peftport.study.planned import Outcome
from peftport.study.runner import Runner
from peftport.study.sizing import Wish
from peftport.study.store import Store

SIZING = Wish(bank=3, kernel="torch")
#: every budget but the last is a checkpoint
OFTEN = Options(quiet=True, sizing=SIZING, checkpoint_s=0.0)


@pytest.fixture(scope="module")
def prepared(pico: Path) -> Prepared:
    return prepare(read_study(pico / "pico.yaml"))


@pytest.fixture(scope="module")
def whole(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study in one go, without checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    run_study(prepared, folder, Options(quiet=True, sizing=SIZING))
    return folder


@pytest.fixture(scope="module")
def bank(prepared: Prepared, whole: Path) -> BankJob:
    """Three trainings of one method that begin with a ported module; the first cannot start, the
    last one diverges."""
    keys = next(
        keys
        for keys in compose(prepared.plan, 3)[1]
        if len(keys) == 3 and all(prepared.plan.trainings[key].sources for key in keys)
    )
    with Store.read(whole) as store:
        lame, sound, wild = drive.bank_job(store, prepared.plan, keys).jobs
    return BankJob(
        (
            replace(lame, source=b"nothing"),
            sound,
            replace(wild, training=replace(wild.training, lr=1e30, head_lr=1e30)),
        )
    )


def make(prepared: Prepared, checkpoint_s: float = 0.0) -> Runner:
    return Runner(prepared.materials, 1, "torch", checkpoint_s=checkpoint_s)


def parts(found: Iterator[bytes | list[Outcome]]) -> tuple[list[bytes], list[Outcome]]:
    *checkpoints, outcomes = found
    assert all(isinstance(content, bytes) for content in checkpoints)
    return checkpoints, outcomes  # type: ignore[return-value]


def same(left: list[Outcome], right: list[Outcome]) -> bool:
    """Whether all is the same but times and where errors were raised."""
    return [_bare(outcome) for outcome in left] == [_bare(outcome) for outcome in right]


def _bare(outcome: Outcome) -> tuple[Any, ...]:
    measures = [(m.budget, m.module, m.scores.tobytes()) for m in outcome.measures]
    return outcome.key, measures, outcome.module, outcome.parameters, outcome.error, outcome.split


def test_who_goes_on_gives_what_the_whole_bank_gives(prepared: Prepared, bank: BankJob) -> None:
    none, expected = parts(make(prepared, 1e9).work(bank))
    assert none == []
    checkpoints, outcomes = parts(make(prepared).work(bank))
    assert len(checkpoints) == len(bank.jobs[0].training.budgets) - 1
    assert same(outcomes, expected)
    assert [o.error is None for o in expected] == [False, True, False]
    for content in checkpoints:
        rest, again = parts(make(prepared).work(replace(bank, checkpoint=content)))
        assert same(again, expected)
        assert len(rest) == len(checkpoints) - checkpoints.index(content) - 1
        assert again[0].traceback


def test_what_was_done_before_is_not_done_again(
    prepared: Prepared, bank: BankJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((content, *_), _) = parts(make(prepared).work(bank))
    begun: list[int] = []
    real = runner.BankTraining

    def watched(host: Any, slots: Any, budgets: Any, begin: Any) -> Any:
        begun.append(begin.done)
        assert budgets == [b for b in bank.jobs[0].training.budgets if b > begin.done]
        return real(host, slots, budgets, begin)

    monkeypatch.setattr(runner, "BankTraining", watched)
    before = read_checkpoint(content, bank.keys)
    _, outcomes = parts(
        make(prepared).work(
            replace(bank, checkpoint=replace(before, seconds=before.seconds + 3e3).to_bytes())
        )
    )
    assert begun == [before.state.done]
    assert outcomes[0].seconds > 1e3  # what it took before counts


def damaged(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def other_format(content: bytes) -> bytes:
    return content.replace(b"checkpoint 1", b"checkpoint 9", 1)


def other_shape(content: bytes, keys: list[str]) -> bytes:
    there = read_checkpoint(content, keys)
    return replace(there, state=replace(there.state, flat=there.state.flat[:, :-1])).to_bytes()


def test_what_is_no_checkpoint_of_the_bank_is_not_trusted(
    prepared: Prepared, bank: BankJob, caplog: pytest.LogCaptureFixture
) -> None:
    ((content, *_), expected) = parts(make(prepared).work(bank))
    strange = replace(read_checkpoint(content, bank.keys), keys=("a", "b", "c")).to_bytes()
    for bad in (
        b"",
        content[: len(content) // 2],
        damaged(content),
        other_format(content),
        strange,
        other_shape(content, bank.keys),
    ):
        caplog.clear()
        checkpoints, outcomes = parts(make(prepared).work(replace(bank, checkpoint=bad)))
        assert len(checkpoints) == len(bank.jobs[0].training.budgets) - 1  # from the beginning
        assert same(outcomes, expected)
        assert "begin again" in caplog.text


def test_a_checkpoint_is_what_was_put_into_it(prepared: Prepared, bank: BankJob) -> None:
    ((content, *_), _) = parts(make(prepared).work(bank))
    there = read_checkpoint(content, bank.keys)
    assert isinstance(there, Checkpoint)
    assert there.keys == tuple(bank.keys)
    assert [len(own) for own in there.measures] == [0, 1, 1]  # who cannot start has none
    assert there.errors[0] is not None
    assert there.errors[1:] == (None, None)  # at 0 steps nothing has diverged
    with pytest.raises(InputError, match="another bank's"):
        read_checkpoint(content, bank.keys[::-1])


class Killed(Exception):
    """Stands in for the end of the process."""


def test_a_killed_study_goes_on_inside_the_bank(
    prepared: Prepared, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    banks = [keys for wave in compose(prepared.plan, 3) for keys in wave]
    long = [keys for keys in banks if len(prepared.plan.trainings[keys[0]].budgets) > 1]
    count = 0
    while count <= len(long):
        with monkeypatch.context() as patch:
            real = Checkpoints.keep

            def killed(self: Checkpoints, bank: str, content: bytes) -> None:
                real(self, bank, content)  # noqa: B023
                raise Killed

            patch.setattr(Checkpoints, "keep", killed)
            try:
                run_study(prepared, folder, OFTEN)
                break
            except Killed:
                count += 1
                assert len(list((folder / "checkpoints").iterdir())) == 1
                (folder / "checkpoints" / ".half-written.tmp").touch()
    assert count == len(long)  # every bank was stopped once, and never twice at one budget
    assert not (folder / "checkpoints").exists()
    with Store.read(whole) as quiet, Store.read(folder) as stopped:
        assert stopped.notes == []
        assert stopped.frame().to_csv() == quiet.frame().to_csv()
        for key in stopped.states():
            assert stopped.module(key) == quiet.module(key)


def test_a_full_disk_is_one_line_and_loses_nothing(
    prepared: Prepared, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr("peftport.study.checkpoints.write_bytes", full)
        with pytest.raises(RunError, match="full"):
            run_study(prepared, folder, OFTEN)
    run_study(prepared, folder, OFTEN)
    with Store.read(whole) as quiet, Store.read(folder) as stopped:
        assert stopped.frame().to_csv() == quiet.frame().to_csv()


def test_what_cannot_be_read_is_no_checkpoint(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.keep("k", b"content")
    assert kept.get("k") == b"content"
    assert kept.get("other") is None
    (tmp_path / "checkpoints" / "dir.checkpoint").mkdir()
    assert kept.get("dir") is None
    os.mkfifo(tmp_path / "checkpoints" / "pipe.checkpoint")
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.append(kept.get("pipe")), daemon=True)
    reader.start()
    reader.join(10)
    assert found == [None], "a pipe is waited for"
    kept.drop("k")
    kept.drop("k")
    assert kept.get("k") is None
