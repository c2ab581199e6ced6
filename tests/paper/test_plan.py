"""``peftport study plan paper``: the whole grid on paper, without a network or hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftport.cli.main import run
from peftport.hosts.known import KNOWN
from peftport.study.files import shipped

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "docs" / "results" / "gpu" / "probe-h200.json"


def plan(capsys: pytest.CaptureFixture[str], name: str, *more: str) -> dict[str, Any]:
    assert run(["study", "plan", name, "--json", *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_papers_grid_is_planned_offline(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "paper", "--probe", str(PROBE), "--bank", "32")
    assert found["runs"] == {"grid": 1440, "native": 80, "source": 160, "floor": 4}
    assert (found["trainings"], found["sources"]) == (1204, 160)
    assert found["device"] == "NVIDIA H200"
    assert found["device_s"] > 0
    assert found["download_bytes"] == 2 * 4 * (247_577_856 + 783_150_080)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """One method between two hosts of the grid."""
    facts = yaml.safe_load(shipped()["paper"].read_text())
    facts |= {"name": "small", "methods": {"lora": {}}, "seeds": [0], "extras": {}}
    facts["hosts"] = [host for host in facts["hosts"] if "base" in host]
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(facts))
    return str(file)


def test_hours_follow_the_probe_and_the_bank(
    small: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    large, alone = (plan(capsys, small, "--probe", str(PROBE), "--bank", k) for k in ("32", "1"))
    steps = {own["bank"]: own["step_s"] for own in json.loads(PROBE.read_text())["banks"][:3]}
    assert alone["device_s"] / large["device_s"] == pytest.approx(steps[1] / (steps[32] / 32))
    assert (alone["banks"], large["banks"]) == (alone["trainings"], 4 + 2)
    slower = json.loads(PROBE.read_text())
    for own in slower["banks"]:
        own["step_s"] *= 3
    file = tmp_path / "slower.json"
    file.write_text(json.dumps(slower))
    again = plan(capsys, small, "--probe", str(file), "--bank", "32")
    assert again["device_s"] == pytest.approx(3 * large["device_s"])


def test_without_a_probe_no_hours_are_invented(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study", "plan", small]) == 0
    said = capsys.readouterr().out
    assert "not known: give --probe" in said
    assert "2.0 GB of weights" in said


def test_what_is_no_probe_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "probe.json"
    file.write_text("{}")
    assert run(["study", "plan", "paper", "--probe", str(file)]) == 2
    assert "is no probe of format 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", KNOWN)
def test_known_sizes_are_those_of_the_configurations(name: str) -> None:
    """Weights by arithmetic: embedding, output layer, linear layers, norms and position tables."""
    found = KNOWN[name]
    spec, layers = found.spec, found.config["num_layers"]
    roles = ("q", "k", "v", "o", "up", "gate", "down")
    linear = sum(s.d_in * s.d_out for s in spec.sites if s.role in roles)
    norms = (5 * layers + 2) * spec.d_model
    tables = 2 * found.config["relative_attention_num_buckets"] * spec.heads
    words = 2 * spec.vocab_size * spec.d_model
    assert found.parameters == linear + norms + tables + words
