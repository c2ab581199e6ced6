"""A folder of 50 adapters, migrated with one command; killed twice, it ends as if it had not been.

    python benchmarks/migrate_kill.py

On pico hosts (random weights: this proves the machinery, and no claim about adapters): 43 adapters
of two methods and three inner sizes, five broken ones and two of another family. `kill -9` comes
after about a third and two thirds of them; then the same command goes on, and the triage and every
written file are compared byte for byte with an uninterrupted migration's.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import BertModel

from peftport.data.datasets import load_dataset
from peftport.data.tasks import Task, encode
from peftport.formats import save_module
from peftport.hosts.load import load_host
from peftport.methods.base import config_from_json
from peftport.testing.pico import pico_bert, pico_reviews, pico_t5
from peftport.train.fused import Slot, train_bank
from peftport.train.reference import TrainSpec, fresh_module

#: forms and how many adapters of each: two methods, three ranks
FORMS = (
    ({"method": "lora", "r": 2}, 11),
    ({"method": "lora", "r": 4}, 11),
    ({"method": "lora", "r": 8}, 11),
    ({"method": "bottleneck", "reduction": 4}, 10),
)


def make(root: Path) -> None:
    """Hosts, data, and the folder of 50."""
    pico_bert(root / "old")
    shutil.copytree(root / "old", root / "new")
    model = BertModel.from_pretrained(root / "old")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(root / "new")
    with (root / "reviews.csv").open("w") as file:
        rows = [(text, ("bad", "good")[label]) for text, label in pico_reviews(900)]
        csv.writer(file).writerows([("text", "label"), *rows])
    host, data = load_host(str(root / "old")), load_dataset(str(root / "reviews.csv"))
    learn = data.split("source-train")
    encoded, labels = (
        encode(host.tokenizer, [e.text for e in learn], Task()),
        [e.label for e in learn],
    )
    folder = root / "adapters"
    for facts, count in FORMS:
        config = config_from_json(facts)
        slots = [
            Slot(fresh_module(host, config, seed), encoded, labels, TrainSpec(60, 0.01, seed=seed))
            for seed in range(count)
        ]
        ((_, made),) = train_bank(host, slots)
        for seed, module in enumerate(made):
            assert not isinstance(module, Exception), module
            notes = {"head": host.head, "classes": list(data.classes), "task": Task().to_json()}
            name = "-".join(map(str, facts.values()))
            save_module(replace(module, notes=notes), folder / f"{name}/{seed:02}", spec=host.spec)
    damage(folder, folder / "lora-4/00")
    pico_t5(root / "t5")
    other = load_host(str(root / "t5"), verbalisers=("bad", "good"))
    for seed in range(2):
        module = fresh_module(other, config_from_json({"method": "lora", "r": 4}), seed)
        save_module(module, folder / f"t5/{seed}", spec=other.spec)


def damage(folder: Path, good: Path) -> None:
    """Five folders that are broken, each in its own way."""
    ways = ("cut weights", "no weights", "no config", "not json", "pickle")
    for way in ways:
        shutil.copytree(good, folder / "broken" / way)
    broken = folder / "broken"
    weights = broken / "cut weights/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    (broken / "no weights/adapter_model.safetensors").unlink()
    (broken / "no config/adapter_config.json").unlink()
    (broken / "no config/peftport.json").unlink()
    (broken / "not json/adapter_config.json").write_text("{")
    (broken / "pickle/adapter_model.safetensors").rename(broken / "pickle/adapter_model.bin")


def command(root: Path, output: Path) -> list[str]:
    line = (
        f"migrate {root}/adapters --target {root}/new --data {root}/reviews.csv -o {output} -q "
        "--budgets 0,10 --seeds 3 --native-steps 100 --rates 0.01 --head-rates 0.01 --test 100 "
        "--repair 20 --accept 0.6"
    )
    return [sys.executable, "-m", "peftport", *line.split()]


def stored(output: Path) -> int:
    file = output / "store/store.sqlite"
    try:
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)
        return int(connection.execute("SELECT count(*) FROM adapters").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def contents(output: Path) -> dict[str, bytes]:
    files = [output / "triage.csv", output / "triage.html", *(output / "adapters").rglob("*")]
    return {str(f.relative_to(output)): f.read_bytes() for f in files if f.is_file()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there and leave it")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        root = given.keep or Path(temporary)
        make(root)
        began = time.monotonic()
        subprocess.run(command(root, root / "whole"), check=True, stdout=subprocess.DEVNULL)
        print(f"uninterrupted: {time.monotonic() - began:.0f} s", flush=True)
        for wanted in (14, 28):
            process = subprocess.Popen(command(root, root / "killed"), stdout=subprocess.DEVNULL)
            while stored(root / "killed") < wanted and process.poll() is None:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed with {stored(root / 'killed')} adapters stored", flush=True)
        began = time.monotonic()
        subprocess.run(command(root, root / "killed"), check=True, stdout=subprocess.DEVNULL)
        print(f"the rest: {time.monotonic() - began:.0f} s")
        whole, killed = contents(root / "whole"), contents(root / "killed")
        with (root / "whole/triage.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
    counts = Counter(line["triage"] for line in lines)
    print(f"{len(lines)} adapters: {dict(counts)}")
    for line in lines:
        if line["triage"] == "refused":
            print(f"  {line['adapter']}: {line['why'][:110]}")
    print(f"{len(whole)} files are {'equal' if whole == killed else 'NOT EQUAL'}")
    return 0 if whole == killed and len(lines) == 50 and counts["refused"] == 7 else 1


if __name__ == "__main__":
    sys.exit(main())
