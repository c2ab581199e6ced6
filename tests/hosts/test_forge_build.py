"""The forge from end to end in its quick form: what it writes, skips, resumes and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peftport.errors import InputError, UnknownName
from peftport.hosts import packaged
from peftport.hosts.forge import build as forge_build
from peftport.hosts.forge import loop
from peftport.hosts.forge.build import build_hosts
from peftport.hosts.forge.corpus import Corpus

BASE, TUNED, LARGE_TUNED = packaged.BASE, packaged.BASE_TUNED, packaged.LARGE_TUNED


def run(k: int) -> tuple[str, ...]:
    return tuple(f"sentence {i} of review {k} is about a {k * 7 + i} minute film" for i in range(4))


@pytest.fixture(autouse=True)
def small_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(tuple(map(run, range(20))), tuple(map(run, range(20, 30))), 30, 0)
    monkeypatch.setattr(forge_build, "build_corpus", lambda: corpus)
    monkeypatch.setenv("PEFTPORT_CACHE", str(tmp_path / "cache"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_build_materialise_skip_and_rebuild(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_hosts(out, quick=True)
    names = {*(f"{name}.safetensors" for name in (BASE, TUNED, LARGE_TUNED)), "manifest.json"}
    assert {f.name for f in out.iterdir()} == names  # and no checkpoint is left
    hosts = packaged.read_manifest(out)["hosts"]
    for name, facts in hosts.items():
        folder = packaged.materialise(name, weights=out)
        assert folder.name == f"{name}-{facts['fingerprint'][:12]}"
        assert facts["quick"] and facts["steps"] == 6
        assert set(facts["losses"]) == {
            "first_window", "last_window", "held_out_before", "held_out_after",
        }  # fmt: skip
    assert hosts[TUNED]["distance"]["encoder"] > 0
    before = snapshot(out)
    build_hosts(out, quick=True)
    assert snapshot(out) == before

    again = tmp_path / "again"
    build_hosts(again, [BASE], quick=True)
    assert (again / f"{BASE}.safetensors").read_bytes() == before[f"{BASE}.safetensors"]


def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    build_hosts(whole, [BASE, TUNED], quick=True)
    real, calls = torch.optim.AdamW.step, []

    def step(self: torch.optim.AdamW, closure: None = None) -> None:
        calls.append(1)
        if len(calls) in (4, 12):  # in the healing of base, then in the tuning of base-tuned
            raise KeyboardInterrupt
        real(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build_hosts(cut, [BASE, TUNED], quick=True)
        assert any((cut / ".work").iterdir())
    build_hosts(cut, [BASE, TUNED], quick=True)
    for name in (BASE, TUNED):
        file = f"{name}.safetensors"
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
    assert not (cut / ".work").exists()


def test_other_recipe_builds_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_hosts(tmp_path, [TUNED], quick=True)  # from the shipped base
    before = packaged.host_facts(TUNED, tmp_path)
    assert before["parent"] == BASE
    from dataclasses import replace

    monkeypatch.setattr(forge_build, "BASE_TUNED", replace(forge_build.BASE_TUNED, masked=0.3))
    build_hosts(tmp_path, [TUNED], quick=True)
    after = packaged.host_facts(TUNED, tmp_path)
    assert after["recipe"]["tune"]["masked"] == 0.3
    assert after["fingerprint"] != before["fingerprint"]


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'minilm-base'"):
        build_hosts(tmp_path / "out", ["minilm-bas"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        build_hosts(tmp_path / "file")


def test_command_line_names_the_known_hosts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "peftport.hosts.forge", "--out", str(tmp_path), "--only", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: unknown derived host 'x'; known: minilm-base, minilm-base-tuned,"
        " minilm-large-tuned\n"
    )


def test_manifest_says_how_to_repeat_it(tmp_path: Path) -> None:
    build_hosts(tmp_path, [BASE], quick=True)
    facts = json.loads((tmp_path / "manifest.json").read_text())["hosts"][BASE]
    assert facts["recipe"]["cut"]["layers"] == [0, 2, 4]
    assert facts["recipe"]["heal"]["schedule"]["steps"] == 6
    assert {"python", "torch", "transformers"} == set(facts["versions"])
    assert facts["config"]["hidden_size"] == 256 and facts["config"]["model_type"] == "bert"
