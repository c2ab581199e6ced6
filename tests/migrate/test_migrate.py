"""A folder of adapters: triage, cards, resuming, and one failure that stops nobody."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

import peftport
from peftport.assessing import Settings, Thresholds
from peftport.assessing.bench import Bench
from peftport.cli.main import run
from peftport.errors import InputError
from peftport.migrating.find import find_adapters
from peftport.migrating.table import assigned_to, read_assigned
from peftport.migrating.triage import CSV, HTML, Line, html

ARGS = (
    "--budgets 0,10 --seeds 3 --native-steps 80 --rates 0.01 --head-rates 0.01 --test 120 "
    "--repair 40 --accept 0.6 --bank 12 -q"
)


def command(shop: Path, output: Path) -> list[str]:
    return (
        f"migrate {shop}/adapters --target {shop}/new --data {shop}/reviews.csv -o {output} {ARGS}"
    ).split()


def lines(output: Path) -> dict[str, dict[str, str]]:
    with (output / CSV).open(newline="") as file:
        return {row["adapter"]: row for row in csv.DictReader(file)}


def contents(output: Path) -> dict[str, bytes]:
    """All that a user gets: triage and adapters."""
    files = [output / CSV, output / HTML, *sorted((output / "adapters").rglob("*"))]
    return {str(f.relative_to(output)): f.read_bytes() for f in files if f.is_file()}


@pytest.fixture(scope="session")
def whole(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted migration."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert run(command(shop, output)) == 0
    return output


def test_every_adapter_gets_one_line(shop: Path, whole: Path) -> None:
    found = lines(whole)
    assert set(found) == set(find_adapters(shop / "adapters", whole)) and len(found) == 10
    triage = {name: row["triage"] for name, row in found.items()}
    assert {n for n, kind in triage.items() if kind == "refused"} == {
        "broken/cut", "broken/empty", "t5-lora",
    }  # fmt: skip
    assert "cannot read" in found["broken/cut"]["why"]
    assert "family" in found["t5-lora"]["why"] or "sites" in found["t5-lora"]["why"]
    assert triage["lora-0"] == triage["lora-1"] == "keep"
    assert triage["lora-2"] != "keep", "it was trained for one step"
    for name, row in found.items():
        assert (whole / "adapters" / name).is_dir() == (row["triage"] in ("keep", "repaired"))
        assert bool(row["folder"]) == (row["triage"] in ("keep", "repaired"))


def test_what_is_kept_is_the_port_and_its_card_says_what_it_is_worth(
    shop: Path, whole: Path
) -> None:
    made = peftport.load_module(whole / "adapters/lora-0")
    ported = peftport.port(shop / "adapters/lora-0", str(shop / "new"), whole.parent / "port")
    assert made.digest == ported.module.digest
    text = (whole / "adapters/lora-0/README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == str(shop / "new")
    (result,) = front["model-index"][0]["results"]
    values = {m["type"]: m["value"] for m in result["metrics"]}
    assert values["balanced_accuracy"] > 0.8
    assert float(lines(whole)["lora-0"]["score"]) == pytest.approx(values["balanced_accuracy"])
    assert "unknown" not in text and "works as it is" in text
    model = AutoModelForSequenceClassification.from_pretrained(shop / "new", num_labels=2)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(model, str(whole / "adapters/lora-0")).eval()
        logits = theirs(input_ids=torch.tensor([[1, 7, 9, 12, 2]])).logits
    assert logits.shape == (1, 2)


def test_killed_twice_it_ends_as_if_it_had_not_been(
    shop: Path, whole: Path, tmp_path: Path
) -> None:
    output, counts = tmp_path / "out", []
    for wanted in (1, 3):
        done = subprocess.Popen([sys.executable, "-m", "peftport", *command(shop, output)])
        deadline = time.monotonic() + 200
        while stored(output) < wanted and done.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(done.pid, signal.SIGKILL)
        assert done.wait() == -signal.SIGKILL, "it was to be killed on the way"
        counts.append(stored(output))
    assert 0 < counts[0] < counts[1] < 7
    before = kept(output)
    assert run(command(shop, output)) == 0
    assert {n: kept(output)[n] for n in before} == before, "what was done is not done again"
    assert contents(output) == contents(whole)


def stored(output: Path) -> int:
    return len(kept(output))


def kept(output: Path) -> dict[str, Any]:
    """Adapter to what the store holds of it."""
    file = output / "store/store.sqlite"
    if not file.is_file():
        return {}
    try:
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)
        return {n: row for n, *row in connection.execute("SELECT * FROM adapters").fetchall()}
    except sqlite3.OperationalError:  # not made yet
        return {}


def test_the_same_command_again_trains_nothing(
    shop: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(whole)
    monkeypatch.setattr(Bench, "run", lambda *args: pytest.fail("something was trained again"))
    assert run(command(shop, whole)) == 0
    assert contents(whole) == before


def test_one_failure_in_a_bank_stops_nobody_else(
    shop: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Bench.run

    def spoiled(self: Bench, ported: Any, *args: Any) -> Any:
        if "bottleneck-1" in ported:
            raise ValueError("something nobody thought of")
        return real(self, ported, *args)

    monkeypatch.setattr(Bench, "run", spoiled)
    assert run([*command(shop, tmp_path / "out"), "--limit", "3"]) == 0  # the first two units
    found, sound = lines(tmp_path / "out"), lines(whole)
    bad = found.pop("bottleneck-1")
    assert bad["triage"] == "refused" and "nobody thought of" in bad["why"]
    assert {n: r["triage"] for n, r in found.items()} == {n: sound[n]["triage"] for n in found}
    assert {"bottleneck-0", "lora-0", "lora-1"} <= set(found)


def test_another_plan_or_folder_is_refused(
    shop: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command(shop, whole), "--accept", "0.5"]) == 2
    assert "other settings" in capsys.readouterr().err
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    assert run(command(shop, tmp_path / "used")) == 2
    assert "in use" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds no adapter"):
        find_adapters(tmp_path / "used", tmp_path / "out")


# The table ---------------------------------------------------------------------------------------


def test_a_table_gives_each_adapter_its_data(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    (tmp_path / "task.yaml").write_text("template: 'review: {text}'\n")
    (tmp_path / "t.csv").write_text(
        "adapter,dataset,labels,task\nlora-*,a.csv,neg=0;pos=1,task.yaml\n*,rotten-tomatoes,,\n"
    )
    rows = read_assigned(str(tmp_path / "t.csv"))
    first = assigned_to("lora-3", rows)
    assert first.dataset == str(tmp_path / "a.csv")
    assert first.labels == {"neg": "0", "pos": "1"} and first.task == {"template": "review: {text}"}
    assert assigned_to("x/y", rows).dataset == "rotten-tomatoes"
    lines = [{"adapter": "lora-*", "dataset": "a.csv", "labels": {"neg": 0, "pos": 1}}]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(lines))
    (only,) = read_assigned(str(tmp_path / "t.yaml"))
    assert only.labels == {"neg": 0, "pos": 1}
    with pytest.raises(InputError, match="no line for 'bottleneck'"):
        assigned_to("bottleneck", [only])
    (whole,) = read_assigned(str(tmp_path / "a.csv"))
    assert (whole.pattern, whole.dataset) == ("*", str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"dataset": "d"}, "has no adapter"),
        ({"adapter": "a"}, "has no dataset"),
        ({"adapter": "a", "dataset": "d", "lables": 1}, "did you mean 'labels'"),
        ({"adapter": "a", "dataset": "d", "labels": "neg"}, "DATA=ADAPTER"),
        ({"adapter": "a", "dataset": "d", "task": "no.yaml"}, "cannot read the task"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    (tmp_path / "t.yaml").write_text(json.dumps([row]))
    with pytest.raises(InputError, match=words):
        read_assigned(str(tmp_path / "t.yaml"))


def test_the_page_escapes_whatever_a_name_holds() -> None:
    evil = Line.refused("<script>alert(1)</script>\u202e", "'\"><img src=x onerror=1>")
    page = html([evil], "<b>host</b>", Thresholds())
    assert "<script" not in page and "<img" not in page and "<b>" not in page
    assert "&lt;script&gt;" in page and "\u202e" not in page
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_recovery_needs_native_modules(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="native"):
        peftport.migrate(
            shop / "adapters", str(shop / "new"), str(shop / "reviews.csv"), tmp_path / "o",
            settings=Settings(native_steps=0),
        )  # fmt: skip
    assert not (tmp_path / "o").exists()
