"""Two studies side by side: equal ones are equal, a planted change is found, noise is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from peftport.cli.main import run
from peftport.errors import InputError
from peftport.report.compare import compare, page, text, verdict

FOUR = ("a", "b", "c", "d")
PAIRS = [(s, t) for s in FOUR for t in FOUR if s != t]


def study_of(study: Any, shift: float = 0.0, seed: int = 0, **more: Any) -> Any:
    def truth(given: Mapping[str, Any]) -> float:
        base = {"ported": 0.7, "sampled": 0.55, "scratch": 0.55}.get(given["init"], 0.6)
        return base + shift * (given["init"] == "ported" and given["method"] == "lora")

    given = {"pairs": PAIRS, "seeds": range(4), "sentences": 200, "ablations": False, **more}
    return study(truth, seed=seed, **given)


def test_a_study_does_not_differ_from_itself(study: Any) -> None:
    evidence = study_of(study).evidence()
    found = compare(evidence, evidence, 60)
    assert dict(found.coverage)["largest difference of one"] == "0.0000"
    assert (found.changes["change"] == 0).all() and set(found.changes["answer"]) == {"no"}
    assert found.settings == [] and found.notes == []
    assert verdict(found).startswith("0 of 30 ")


def test_a_planted_change_is_found_where_it_is_and_nowhere_else(study: Any) -> None:
    one, two = study_of(study).evidence(), study_of(study, shift=-0.2, seed=1).evidence()
    found = compare(one, two, 2000)
    lines = found.changes.set_index(["what", "method", "budget"])
    for budget in (0, 10):
        line = lines.loc[("ported", "lora", budget)]
        assert line["answer"] == "yes" and line["low"] < -0.2 < line["high"]
        advantage = lines.loc[("ported − scratch", "lora", budget)]
        assert advantage["answer"] == "yes" and advantage["low"] < -0.2 < advantage["high"]
        assert lines.loc[("ported", "prefix", budget)]["answer"] != "yes"
        assert lines.loc[("scratch", "lora", budget)]["answer"] != "yes"


def test_change_of_an_advantage_is_the_difference_of_two_differences(study: Any) -> None:
    one, two = study_of(study).evidence(), study_of(study, shift=-0.1, seed=1).evidence()
    line = compare(one, two, 20).changes.set_index(["what", "method", "budget"])["change"]
    means = [
        e.grid.groupby(["method", "init", "budget"])["balanced_accuracy"].mean() for e in (one, two)
    ]
    a, b = (m["lora", "ported", 0] - m["lora", "sampled", 0] for m in means)
    assert line["ported − sampled", "lora", 0] == pytest.approx(b - a)


def test_one_method_each_are_compared_with_each_other(study: Any) -> None:
    one = study_of(study, methods=("lora",)).evidence()
    two = study_of(study, methods=("prefix",), seed=1).evidence()
    found = compare(one, two, 30)
    assert found.notes == ["prefix in B is compared with lora in A"]
    assert len(found.changes) == 5 * 2


def test_studies_without_a_common_run_are_refused(study: Any) -> None:
    one = study_of(study, pairs=[("a", "b")]).evidence()
    two = study_of(study, pairs=[("c", "d")]).evidence()
    with pytest.raises(InputError, match="have no run in common"):
        compare(one, two, 30)


def test_other_sentences_are_held_fixed_and_it_is_said(study: Any) -> None:
    found = compare(study_of(study).evidence(), study_of(study, sentences=100).evidence(), 30)
    assert "sentences are held fixed" in found.notes[0]


def test_command_compares_and_writes_a_page_without_a_script(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = study(methods=("lora",), sentences=60)
    a = made.store(tmp_path / "a")
    b = study(methods=("lora",), sentences=60, seed=1).store(tmp_path / "b")
    target = tmp_path / "c.html"
    assert run(["report", str(a), str(b), "-o", str(target)]) == 0
    out = capsys.readouterr().out
    assert "beyond noise" in out and "measured in both" in out
    written = target.read_text()
    assert "<script" not in written and "What differs between A and B?" in written
    assert run(["report", str(a), str(b), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["claims"]) == 4
    assert run(["report", str(a), str(b), "--tables", str(tmp_path / "t")]) == 2
    assert "are of one study" in capsys.readouterr().err


def test_hostile_names_are_text(study: Any) -> None:
    evidence = study_of(study).evidence(name="<script>x</script>", facts=[("<b>", "<i>")])
    other = study_of(study, seed=1).evidence(name="\u202eB", facts=[("<b>", "<u>")])
    found = compare(evidence, other, 20)
    shown = page(found)
    assert "<script>" not in shown and "<i>" not in shown and "\u202e" not in shown
    assert "&lt;script&gt;" in shown
    assert "what was run differently" in text(found)
