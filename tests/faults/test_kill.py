"""``kill -9`` at random moments of a study: the resumed export equals an uninterrupted one."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from peftport.cli.main import run
from peftport.errors import InputError
from peftport.study.store import Store
from peftport.testing.pico import pico_bert, pico_reviews

KILLS = 10
#: fixed, since two stores are compared: left alone each would measure what is faster
BANK = 3
STUDY = """
name: killed
hosts: [a, b]
data: {target: reviews.csv, test: 30}
methods: {lora: {r: 2}, bottleneck: {}}
source: {steps: 4, batch: 8, seeds: run}
target: {budgets: [0, 2, 4], batch: 8}
seeds: [0, 1, 2, 3, 4, 5]
strategy: {texts: 32}
extras: {ablations: {seeds: [0]}}
rates:
  provenance: none
  table: {lora: {any: {any: {lr: 1e-3}}}, bottleneck: {any: {any: {lr: 1e-3}}}}
"""


def study(folder: Path) -> Path:
    """A study's file with its hosts (of two depths, so that ridge maps are fitted) and data."""
    pico_bert(folder / "a", 0)
    pico_bert(folder / "b", 1, layers=1)
    with (folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *pico_reviews(400)])
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


def test_an_interrupt_is_one_line_and_keeps_what_is_done(tmp_path: Path) -> None:
    file, store = study(tmp_path), tmp_path / "s"
    process = start(file, store)
    while process.is_alive() and finished(store) < 2:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    done = finished(store)
    assert done >= 2
    process = start(file, store)
    process.join()
    assert process.exitcode == 0
    with Store.read(store) as opened:
        assert opened.status()["missing"] == 0


def _run(file: str, store: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    command = ["study", "run", file, "--store", store, "--bank", str(BANK), "--kernel", "torch"]
    raise SystemExit(run([*command, "-q"]))


def start(file: Path, store: Path) -> BaseProcess:
    """The command in a process of its own, forked from a server that has the imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["peftport.study.drive", "peftport.cli.study"])
    process = context.Process(target=_run, args=(str(file), str(store)))
    process.start()
    return process


def finished(store: Path) -> int:
    """Trainings in a store; none where the writer has not got as far as making it."""
    try:
        opened = Store.read(store)
    except InputError as error:
        assert "no store in" in str(error) or "is empty" in str(error)
        return 0
    with opened:
        return len(opened.states())


def test_killed_ten_times_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    file = study(tmp_path)
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    process = start(file, quiet)
    process.join()
    assert process.exitcode == 0
    with Store.read(quiet) as store:
        status = store.status()
        assert status["missing"] == status["failed"] == 0
        bank_s = BANK * sum(store.seconds().values()) / len(store.states())

    rng, seen, interrupted = random.Random(0), 0, 0
    for _ in range(KILLS):
        process = start(file, killed)
        while process.is_alive() and finished(killed) <= seen:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, min(2 * bank_s, 0.3)))  # somewhere in the banks that follow
        process.kill()
        process.join()
        assert finished(killed) >= seen
        seen = finished(killed)
        interrupted += 0 < seen < status["trainings"]["planned"]
    assert interrupted >= KILLS // 2, "the study is too short to be killed in its middle"

    process = start(file, killed)
    process.join()
    assert process.exitcode == 0
    exports = []
    for store_folder in (quiet, killed):
        out = tmp_path / f"{store_folder.name}.csv"
        assert run(["study", "export", str(store_folder), "-o", str(out), "-q"]) == 0
        exports.append(out.read_bytes())
    assert exports[0] == exports[1]
    with Store.read(killed) as store:
        assert store.notes == []
        assert store.status() == status
    modules = [sorted(p.name for p in (s / "modules").iterdir()) for s in (quiet, killed)]
    assert modules[0] == modules[1]
