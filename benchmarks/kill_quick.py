"""Kill a study at random moments, resume it, and compare its export with an uninterrupted one.

    python benchmarks/kill_quick.py --work /tmp/drill --study quick --kills 10

Prints one line a kill and the verdict; exits with 1 when the exports differ. The uninterrupted
store is kept in the work folder and used again.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from peftport.errors import PeftportError
from peftport.study.store import Store

COMMAND = [sys.executable, "-c", "from peftport.cli.main import main; main()", "study"]


def start(study: str, store: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, "run", study, "--store", str(store), "-q"])


def results(store: Path) -> int:
    """Units that are stored."""
    try:
        with Store.read(store) as opened:
            return len(opened.states())
    except PeftportError:
        return 0


def run_to_end(study: str, store: Path) -> float:
    """Seconds that it took; a failed run ends the drill."""
    begin = time.monotonic()
    if start(study, store).wait() != 0:
        sys.exit(f"the study in {store} did not end well")
    return time.monotonic() - begin


def drill(study: str, store: Path, kills: int, mean_s: float, seed: int) -> list[dict[str, object]]:
    """Start and kill; the moments are uniform over twice ``mean_s`` after the first new unit."""
    rng = random.Random(seed)
    lines: list[dict[str, object]] = []
    for number in range(1, kills + 1):
        before, begin = results(store), time.monotonic()
        process = start(study, store)
        while process.poll() is None and results(store) <= before:
            time.sleep(0.05)
        wait_s = rng.uniform(0, 2 * mean_s)
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
        line: dict[str, object] = {
            "kill": number,
            "after_s": round(time.monotonic() - begin, 2),
            "killed": code == -signal.SIGKILL,
            "units_before": before,
            "units_after": results(store),
        }
        print(json.dumps(line), flush=True)
        lines.append(line)
    return lines


def export(store: Path, file: Path) -> bytes:
    command = [*COMMAND, "export", str(store), "--format", "csv", "-o", str(file), "-q"]
    subprocess.run(command, check=True)
    return file.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="quick", help="name or file of a study")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores and exports")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    quiet, killed = given.work / "quiet", given.work / "killed"
    if killed.exists():
        sys.exit(f"{killed} exists; remove it or give another --work")
    quiet_s = run_to_end(given.study, quiet)
    with Store.read(quiet) as store:
        train_s = sum(store.seconds().values())
        units = len(store.states())
    lines = drill(given.study, killed, given.kills, train_s / (given.kills + 1) / 2, given.seed)
    resumed_s = run_to_end(given.study, killed)
    same = export(quiet, given.work / "quiet.csv") == export(killed, given.work / "killed.csv")
    with Store.read(killed) as store:
        notes = store.notes
    verdict = {
        "study": given.study,
        "units": units,
        "kills": sum(bool(line["killed"]) for line in lines),
        "quiet_s": round(quiet_s, 1),
        "train_s": round(train_s, 1),
        "last_resume_s": round(resumed_s, 1),
        "exports_equal": same,
        "notes": notes,
    }
    print(json.dumps(verdict, indent=2))
    sys.exit(0 if same and not notes else 1)


if __name__ == "__main__":
    main()
