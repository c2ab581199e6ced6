"""Faults that a study can meet, on one study: is a row lost or doubled, are the bytes the same?

    python benchmarks/fault_drill.py --work /tmp/drill --kills 50 --json faults.json

Pico hosts of random weights (nothing is downloaded). Workers, driver or both are killed with
``kill -9`` at random moments of one study that runs through Ray; then single faults on copies of
the finished store: damaged modules and scores, a full disk, a read-only store, a training that
kills its worker. Prints one line a kill and a table; exits with 1 when an expectation failed. The
faults of disks need Linux and root (a mount in a namespace of its own); elsewhere they are left
out, and the table says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from peftport.errors import PeftportError
from peftport.study import drive
from peftport.study.executors.base import BankJob
from peftport.study.planned import Outcome
from peftport.study.runner import Runner
from peftport.study.store import Store
from peftport.testing.pico import pico_bert, pico_reviews

COMMAND = [sys.executable, "-c", "from peftport.cli.main import main; main()", "study"]
#: fixed, since two stores are compared: left alone each would measure what is faster
SIZING = ["--bank", "3", "--kernel", "torch"]
#: every budget but the last is a checkpoint
OFTEN = ["--checkpoint", "0"]
STUDY = """
name: drill
hosts: [a, b]
data: {{target: reviews.csv, test: 30}}
methods: {{lora: {{r: 2}}, bottleneck: {{}}}}
source: {{steps: {steps}, batch: 8, seeds: run}}
target: {{budgets: [0, {half}, {steps}], batch: 8}}
seeds: [{seeds}]
strategy: {{texts: 32}}
rates:
  provenance: none
  table: {{lora: {{any: {{any: {{lr: 1e-3}}}}}}, bottleneck: {{any: {{any: {{lr: 1e-3}}}}}}}}
"""
#: two agents of Ray notice late that their driver is gone
PATIENCE_S = 300.0
#: most starts that may fail
RESTARTS = 10
#: one of each kind in so many kills
KINDS = ("worker",) * 8 + ("driver", "both")


@dataclass(frozen=True)
class Fault:
    """One line of the table."""

    fault: str
    times: int
    expected: str
    found: str
    ok: bool


def make(folder: Path, seeds: int, steps: int) -> Path:
    """A study's file with its hosts (of two depths, so that ridge maps are fitted) and data."""
    folder.mkdir(parents=True, exist_ok=True)
    pico_bert(folder / "a", 0)
    pico_bert(folder / "b", 1, layers=1)
    with (folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *pico_reviews(400)])
    numbers = ", ".join(map(str, range(seeds)))
    text = STUDY.format(steps=steps, half=steps // 2, seeds=numbers)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


def run(file: Path, store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "run", str(file), "--store", str(store), "-q", *SIZING, *more]
    return subprocess.run(command, capture_output=True, text=True)


def start(file: Path, store: Path) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "run", str(file), "--store", str(store), "-q", *SIZING]
    with store.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*command, *OFTEN, "--executor", "ray"], stdout=log, stderr=log)


def export(store: Path) -> bytes:
    out = store.with_suffix(".csv")
    subprocess.run([*COMMAND, "export", str(store), "-o", str(out), "-q"], check=True)
    return out.read_bytes()


def finished(store: Path) -> int:
    """Trainings that are stored."""
    try:
        with Store.read(store) as opened:
            return len(opened.states())
    except PeftportError:
        return 0


def descendants(pid: int) -> dict[int, str]:
    """Process ids below one, with their command lines (Linux)."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    below: dict[int, str] = {}
    for child in parents:
        above = child
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and child != pid:
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue
            below[child] = line.decode(errors="replace")
    return below


def workers(pid: int) -> list[int]:
    return [child for child, line in descendants(pid).items() if line.startswith("ray::_Host")]


def kill(pids: list[int]) -> int:
    """How many of them were there to be killed."""
    hit = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            hit += 1
        except ProcessLookupError:
            continue
    return hit


def kill_drill(file: Path, quiet: bytes, store: Path, kills: int, seed: int) -> list[Fault]:
    """Kill at random moments while something new is stored between two kills."""
    rng, counts, orphans = random.Random(seed), dict.fromkeys(set(KINDS), 0), dict[int, str]()
    process, left, begin = start(file, store), kills, time.monotonic()
    restarts = 0
    while left:
        before = finished(store)
        while process.poll() is None and finished(store) <= before:
            time.sleep(0.1)
        if process.poll() == 0:
            break  # finished before the last kill
        if process.poll() is not None:
            if restarts == RESTARTS:
                break
            restarts += 1  # Ray gives up where a machine is too busy to start it in half a minute
            process = start(file, store)
            continue
        time.sleep(rng.uniform(0, 2))
        kind = rng.choice(KINDS)
        below = descendants(process.pid)
        victims = workers(process.pid)
        if kind == "worker":
            hit = kill([rng.choice(victims)]) if victims else 0
        else:
            hit = kill([process.pid, *(victims if kind == "both" else [])])
            process.wait()
            orphans |= below
            process = start(file, store)
        if hit:
            counts[kind] += 1
            left -= 1
            line = {"kill": kills - left, "of": kind, "stored": finished(store)}
            print(json.dumps({**line, "after_s": round(time.monotonic() - begin)}), flush=True)
    code = process.wait()
    while code and restarts < RESTARTS:
        restarts += 1
        code = start(file, store).wait()
    same = export(store) == quiet
    left_over, deadline = len(orphans), time.monotonic() + PATIENCE_S
    while left_over and time.monotonic() < deadline:
        time.sleep(1)
        left_over = sum(_same(pid, line) for pid, line in orphans.items())
    with Store.read(store) as opened:
        status, notes = opened.status(), list(opened.notes)
    found = f"{status['done']} of {status['planned']} rows, {status['failed']} failed"
    found += f", exit {code}, {len(notes)} notes, {left_over} processes left over, "
    found += f"{restarts} starts failed"
    bytes_ = "same bytes" if same else "OTHER BYTES"
    ok = same and code == 0 and not notes and not left_over
    return [
        Fault(f"`kill -9` of {name}", counts[kind], "resumes; same bytes", f"{bytes_}; {found}", ok)
        for kind, name in (
            ("worker", "a worker"),
            ("driver", "the driver"),
            ("both", "driver and workers"),
        )
    ]


def _same(pid: int, line: str) -> bool:
    """Whether a process is still there (and no zombie, and no other one of that number)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode() == line != ""
    except OSError:
        return False


def damage(file: Path, quiet: bytes, done: Path, store: Path) -> list[Fault]:
    """Bits that turned: found, not trusted, done again on request."""
    faults = []
    for what in ("a module", "the scores"):
        shutil.copytree(done, store)
        if what == "a module":
            for path in sorted((store / "modules").iterdir())[:3]:
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 1
                path.write_bytes(bytes(content))
        else:
            import sqlite3

            connection = sqlite3.connect(store / "store.sqlite")
            connection.execute(
                "UPDATE scores SET scores = zeroblob(length(scores)) "
                "WHERE rowid IN (SELECT rowid FROM scores ORDER BY key, budget LIMIT 3)"
            )
            connection.commit()
            connection.close()
        verify = [*COMMAND, "verify", str(store), "-q"]
        seen = subprocess.run(verify, capture_output=True).returncode
        mended = run(file, store, "--retry-damaged").returncode
        clean = subprocess.run(verify, capture_output=True).returncode
        same = export(store) == quiet
        faults.append(
            Fault(
                f"a bit of {what} turned",
                3,
                "verify exits 1; --retry-damaged mends; same bytes",
                f"verify {seen}, retry {mended}, verify {clean}, "
                f"{'same bytes' if same else 'OTHER BYTES'}",
                (seen, mended, clean, same) == (1, 0, 0, True),
            )
        )
        shutil.rmtree(store)
    return faults


def disks(file: Path, quiet: bytes, done: Path, work: Path) -> list[Fault]:
    """A disk that fills up and is enlarged, and a store that may only be read."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        note = "left out: needs Linux and root"
        return [Fault(name, 0, "", note, True) for name in ("full disk", "read-only store")]
    place = work / "mounted"
    place.mkdir(exist_ok=True)
    study = " ".join(f"'{part}'" for part in COMMAND)
    go = f"{study} run '{file}' --store '{place}/s' -q {' '.join(SIZING)}"
    full = f"""
        mount -t tmpfs -o size=300k none '{place}' && {go}; echo code $?
        mount -o remount,size=64m '{place}' && {go}; echo code $?
        {study} export '{place}/s' -o '{work}/full.csv' -q; echo code $?"""
    answer = _in_namespace(full)
    same = (work / "full.csv").read_bytes() == quiet
    codes = _codes(answer.stdout)
    lines = [line for line in answer.stderr.splitlines() if "no space left" in line]
    shutil.copytree(done, work / "readonly")
    read = f"""
        mount --bind '{work}/readonly' '{work}/readonly'
        mount -o remount,ro,bind '{work}/readonly'
        {study} status '{work}/readonly' -q; echo code $?
        {study} export '{work}/readonly' -o '{work}/ro.csv' -q; echo code $?
        {study} run '{file}' --store '{work}/readonly' -q {" ".join(SIZING)}; echo code $?"""
    ro = _in_namespace(read)
    refused = [line for line in ro.stderr.splitlines() if "give a folder" in line]
    ro_same = (work / "ro.csv").read_bytes() == quiet
    shutil.rmtree(work / "readonly")
    return [
        Fault(
            "full disk (300 KB), then enlarged",
            1,
            "one line and exit 1; the same command goes on; same bytes",
            f"exits {codes}, {len(lines)} line, {'same bytes' if same else 'OTHER BYTES'}",
            codes == [1, 0, 0] and same and len(lines) == 1,
        ),
        Fault(
            "read-only store",
            1,
            "status and export work; a run is refused in one line, exit 2",
            f"exits {_codes(ro.stdout)}, {len(refused)} line, "
            f"{'same bytes' if ro_same else 'OTHER BYTES'}",
            _codes(ro.stdout) == [0, 0, 2] and ro_same and len(refused) == 1,
        ),
    ]


def _in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)


def _codes(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("code ")]


class Poisoned(Runner):
    """Dies of one training."""

    poison = ""

    def work(self, bank: BankJob) -> Iterator[bytes | list[Outcome]]:
        if any(job.key == self.poison for job in bank.jobs):
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().work(bank)


def poison(file: Path, quiet: bytes, store: Path) -> Fault:
    """A training that kills whoever does it: found by halving, and nobody else fails."""
    code = subprocess.run(
        [sys.executable, __file__, "--poison", str(file), "--work", str(store)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode
    with Store.read(store) as opened:
        status, rows = opened.status(), opened.rows()
    split = len(set(rows[rows["split"] == 1]["key"]))
    again = run(file, store, "--retry-failed").returncode
    near = _close(export(store), quiet)
    failed = status["trainings"]["failed"]
    return Fault(
        "a training that kills its worker",
        1,
        "it alone fails (exit 1), its bank is flagged; --retry-failed: equal within 1e-4",
        f"exit {code}, {failed} failed, {status['trainings']['missing']} missing, {split} flagged;"
        f" retry {again}, {'equal' if near else 'NOT EQUAL'}",
        (code, failed, status["trainings"]["missing"], again) == (1, 1, 0, 0) and near,
    )


def _close(left: bytes, right: bytes) -> bool:
    """Whether two exports have the same lines with nearly the same values."""
    tables = [list(csv.DictReader(text.decode().splitlines())) for text in (left, right)]
    for table in tables:
        for line in table:
            line.pop("split")
    values = [[float(line.pop("value") or "nan") for line in table] for table in tables]
    return tables[0] == tables[1] and all(
        a == b or abs(a - b) < 1e-4 or (a != a and b != b) for a, b in zip(*values, strict=True)
    )


def poisoned_study(file: Path, store: Path) -> int:
    """Runs in a process of its own: the study through Ray, with one training that kills."""
    from peftport.study.files import find_study
    from peftport.study.sizing import Wish

    prepared = drive.prepare(find_study(str(file)))
    Poisoned.poison = prepared.plan.waves[1][len(prepared.plan.waves[1]) // 2]
    drive.Runner = Poisoned  # type: ignore[attr-defined]
    options = drive.Options("ray", quiet=True, sizing=Wish(bank=3, kernel="torch"))
    return 1 if drive.run_study(prepared, store, options)["failed"] else 0


def table(faults: list[Fault]) -> str:
    lines = ["| fault | times | expected | found | |", "|---|---|---|---|---|"]
    lines += [
        f"| {f.fault} | {f.times} | {f.expected} | {f.found} | {'ok' if f.ok else 'FAILED'} |"
        for f in faults
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for stores")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=24, help="of the study: its length")
    parser.add_argument("--steps", type=int, default=40, help="of a training")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--json", type=Path, help="file for the lines of the table")
    parser.add_argument("--poison", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.poison:
        sys.exit(poisoned_study(given.poison, given.work))
    work = given.work.absolute()
    if work.exists() and any(work.iterdir()):
        sys.exit(f"{work} is not empty; give a new folder to --work")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker a core
    file = make(work, given.seeds, given.steps)
    begin = time.monotonic()
    if run(file, work / "quiet").returncode != 0:
        sys.exit("the quiet run did not end well")
    quiet_s, quiet = time.monotonic() - begin, export(work / "quiet")
    faults = kill_drill(file, quiet, work / "killed", given.kills, given.seed)
    faults += damage(file, quiet, work / "quiet", work / "damaged")
    faults += disks(file, quiet, work / "quiet", work)
    faults.append(poison(file, quiet, work / "poisoned"))
    with Store.read(work / "quiet") as store:
        size = store.status()
    facts = {
        "rows": size["planned"],
        "trainings": size["trainings"]["planned"],
        "steps": given.steps,
        "bank": 3,
        "cores": os.cpu_count(),
        "quiet_s": round(quiet_s),
        "seconds": round(time.monotonic() - begin),
    }
    print(table(faults))
    print(json.dumps(facts))
    if given.json:
        lines = [asdict(fault) for fault in faults]
        given.json.write_text(json.dumps({**facts, "faults": lines}, indent=1) + "\n")
    sys.exit(0 if all(fault.ok for fault in faults) else 1)


if __name__ == "__main__":
    main()
