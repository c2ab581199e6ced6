"""The Ray executor: its contract, and studies through it. One Ray for the whole file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from peftport.cli.main import run
from peftport.errors import InputError
from peftport.study import drive
from peftport.study.banks import compose
from peftport.study.executors.base import BankJob, Place
from peftport.study.executors.ray import RayExecutor
from peftport.study.grid import read_study
from peftport.study.planned import Outcome
from peftport.study.runner import Runner
from peftport.study.sizing import Wish
from peftport.study.store import Store
from peftport.testing.contracts_executor import IsolatedExecutorContract, ToyWorker, banks


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    """Two workers at a time, the least memory that Ray takes, nothing off this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # would leave a token in the home folder
        import ray

        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 << 20,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address="127.0.0.1",
        )
        yield ray
        ray.shutdown()


class TestRay(IsolatedExecutorContract):
    executor = "ray"


def test_a_worker_that_fits_no_machine_is_refused() -> None:
    for place in (Place(cpus=3), Place(cpus=1, gpus=1)):
        with (
            RayExecutor(ToyWorker, place) as executor,
            pytest.raises(InputError, match="no machine of the Ray cluster has as many"),
        ):
            list(executor.run(banks(1)))


def test_a_study_through_ray_exports_the_same_bytes(pico: Path, tmp_path: Path) -> None:
    exports = []
    for executor in ("local", "ray"):
        store = tmp_path / executor
        command = ["study", "run", str(pico / "pico.yaml"), "--store", str(store), "-q"]
        fixed = ["--bank", "3", "--kernel", "torch", "--executor", executor]
        assert run([*command, *fixed]) == 0
        out = tmp_path / f"{executor}.csv"
        assert run(["study", "export", str(store), "-o", str(out), "-q"]) == 0
        exports.append(out.read_bytes())
        with Store.read(store) as opened:
            assert opened.notes == []
    assert exports[0] == exports[1]
    names = [sorted(p.name for p in (tmp_path / e / "modules").iterdir()) for e in ("local", "ray")]
    assert names[0] == names[1]


def test_a_study_whose_worker_is_killed_exports_the_same_bytes(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one training that kills every time fails alone; made good, all rows are there."""
    died, prepared = tmp_path / "died", drive.prepare(read_study(pico / "pico.yaml"))
    once, always = prepared.plan.waves[0][0], prepared.plan.waves[1][-1]

    class Mortal(Runner):  # pickled by value, since it is local
        def work(self, bank: BankJob) -> Iterator[bytes | list[Outcome]]:
            keys = {job.key for job in bank.jobs}
            if always in keys or (once in keys and not died.exists()):
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().work(bank)

    sizing = Wish(bank=3, kernel="torch")
    drive.run_study(prepared, tmp_path / "quiet", drive.Options(quiet=True, sizing=sizing))
    with monkeypatch.context() as patch:
        patch.setattr(drive, "Runner", Mortal)
        options = drive.Options("ray", quiet=True, sizing=sizing)
        status = drive.run_study(prepared, tmp_path / "mortal", options)
    assert died.exists()
    assert status["trainings"]["failed"] == 1
    assert status["missing"] == 0
    with Store.read(tmp_path / "quiet") as quiet, Store.read(tmp_path / "mortal") as mortal:
        assert list(mortal.failures()) == [always]
        assert len(mortal.notes) == 1  # that a bank was done in parts
        theirs, ours = quiet.frame(), mortal.frame()
        flagged = set(ours[ours["split"] == 1]["key"])
        bank = next(k for k in compose(prepared.plan, 3)[1] if always in k)
        assert flagged == {*bank} - {always}
        whole = ours[ours["split"] == 0].reset_index(drop=True)
        same = theirs[~theirs["key"].isin(bank)].reset_index(drop=True)
        pd.testing.assert_frame_equal(whole, same)


def test_a_study_whose_worker_is_killed_inside_a_bank_goes_on_there(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bank's first worker dies after its first checkpoint; nobody is done in parts."""
    prepared, sizing = drive.prepare(read_study(pico / "pico.yaml")), Wish(bank=3, kernel="torch")
    begun = tmp_path / "begun"
    begun.mkdir()

    class Mortal(Runner):
        def work(self, bank: BankJob) -> Iterator[bytes | list[Outcome]]:
            (begun / f"{bank.id} {bank.checkpoint is not None}").touch()
            for found in super().work(bank):
                yield found
                if isinstance(found, bytes) and bank.checkpoint is None:
                    time.sleep(0.5)  # it is on its way
                    os.kill(os.getpid(), signal.SIGKILL)

    options = drive.Options(quiet=True, sizing=sizing, checkpoint_s=0.0, limit=12)
    drive.run_study(prepared, tmp_path / "quiet", options)
    with monkeypatch.context() as patch:
        patch.setattr(drive, "Runner", Mortal)
        drive.run_study(prepared, tmp_path / "mortal", replace(options, executor="ray"))
    long = [
        keys[0]
        for wave in compose(prepared.plan, 3)
        for keys in wave
        if len(prepared.plan.trainings[keys[0]].budgets) > 1
    ]
    again = {path.name.split()[0] for path in begun.iterdir() if path.name.endswith("True")}
    assert again
    assert again <= {*long}
    with Store.read(tmp_path / "quiet") as quiet, Store.read(tmp_path / "mortal") as mortal:
        assert mortal.notes == []
        assert mortal.frame().to_csv() == quiet.frame().to_csv()
    assert not list((tmp_path / "mortal").glob("checkpoints/*"))


def test_an_address_is_for_ray_alone(
    pico: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", "run", str(pico / "pico.yaml"), "--store", str(tmp_path / "s"), "-q"]
    assert run([*command, "--bank", "3", "--address", "127.0.0.1:1"]) == 2
    assert "give --executor ray" in capsys.readouterr().err


def test_nothing_of_ray_is_imported_without_the_option(pico: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from peftport.cli.main import run; "
        "from peftport.study.executors.base import executors; "
        f"assert run(['study', 'run', {str(pico / 'pico.yaml')!r}, '--dry-run', '-q']) == 0; "
        "assert executors.names() == ['local', 'ray']; "
        "executors.get('ray')(lambda: None); "
        "assert not [name for name in sys.modules if name == 'ray' or name.startswith('ray.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        RayExecutor(ToyWorker) as executor,
        pytest.raises(InputError, match=r"pip install 'peftport\[ray\]'"),
    ):
        list(executor.run(banks(1)))
