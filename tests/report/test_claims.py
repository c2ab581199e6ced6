"""Four claims with known answers, and no answer where there is not enough data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from peftport.report.claims import Claim, all_claims
from peftport.report.evidence import Evidence
from peftport.report.resample import Resampled

METHODS = ("lora", "prefix", "bottleneck", "compacter")
SIX = [("big", "big2"), ("big2", "big"), ("big", "small"), ("big2", "small"), ("small", "big"),
        ("big2", "big3")]  # fmt: skip


def claims(evidence: Evidence) -> list[Claim]:
    return all_claims(evidence, Resampled(evidence, "balanced_accuracy", draws=300))


def answers(evidence: Evidence) -> list[str]:
    return [claim.answer for claim in claims(evidence)]


def test_a_quick_study_beats_both_controls_and_says_little_of_hosts(study: Any) -> None:
    found = claims(study(methods=METHODS, sentences=300).evidence())
    assert [c.answer for c in found] == ["yes", "yes", "no", "not enough data"]
    told = " ".join(found[0].sentences)
    assert "conditional on 1 source host, 2 target hosts, one source module per method" in told
    assert "48 distinct trainings, 3 seeds, 300 test sentences" in told
    assert "big → small: yes for bottleneck, compacter, lora, prefix." in told
    assert "2 host pairs, at least 3 needed" in " ".join(found[3].sentences)


def test_no_difference_is_a_no_with_its_reason(study: Any) -> None:
    found = claims(study(lambda run: 0.6, methods=METHODS).evidence())
    assert [c.answer for c in found[:3]] == ["no", "no", "no"]
    assert "not shown: the interval includes 0" in found[0].sentences[0]


def test_a_better_control_is_a_no_that_says_so(study: Any) -> None:
    evidence = study(lambda run: 0.8 if run["init"] == "scratch" else 0.6, sentences=600).evidence()
    found = claims(evidence)[0]
    assert found.answer == "no"
    assert "scratch is better" in found.sentences[0]


def test_one_budget_is_not_enough_for_a_yes(study: Any) -> None:
    def truth(run: Mapping[str, Any]) -> float:
        return 0.8 if run["init"] == "ported" and run["budget"] == 0 else 0.6

    found = claims(study(truth, sentences=300).evidence())[0]
    pooled = {f.budget: f.answer for f in found.findings if f.method == "all"}
    assert pooled == {0: "yes", 10: "no"}
    assert found.answer == "no"
    assert claims(study(budgets=(0,)).evidence())[0].answer == "not enough data"


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_fewer_than_three_seeds_are_not_enough(study: Any, seeds: tuple[int, ...]) -> None:
    found = claims(study(seeds=seeds).evidence())
    assert {c.answer for c in found} == {"not enough data"}
    assert f"{len(seeds)} seed" in found[0].sentences[0]
    assert "at least 3 needed" in found[0].sentences[0]


def test_methods_that_differ_are_told_apart(study: Any) -> None:
    truth = {"lora": 0.9, "prefix": 0.65, "bottleneck": 0.55, "compacter": 0.7}
    evidence = study(
        lambda run: truth[run["method"]] if run["init"] == "ported" else 0.5,
        methods=METHODS, sentences=600,
    ).evidence()  # fmt: skip
    found = claims(evidence)[2]
    assert found.answer == "yes"
    largest = found.findings[0]
    assert largest.interval is not None and largest.interval.low < 0.35 < largest.interval.high
    assert "advantage of lora minus that of bottleneck" in found.sentences[0]
    assert largest.p_holm is not None and largest.p_holm == pytest.approx(2 / 576)


@pytest.mark.parametrize("methods", [METHODS[:2], METHODS[:3]])
def test_few_methods_with_three_seeds_cannot_be_told_apart(
    study: Any, methods: tuple[str, ...]
) -> None:
    """Three methods have 36 labellings: 1/36 at best, and two budgets share 0.05."""
    made = study(lambda run: 0.9 if run["method"] == "lora" else 0.5, methods=methods)
    found = claims(made.evidence())[2]
    assert found.answer == "not enough data"
    assert "cannot reach p = 0.05" in found.sentences[0]


def test_hosts_matter_when_ported_depends_on_them(study: Any) -> None:
    def truth(run: Mapping[str, Any]) -> float:
        far = (run["source"] == "small") != (run["target"] == "small")
        return 0.5 if run["init"] != "ported" else 0.55 if far else 0.85

    made = study(truth, pairs=SIX, methods=("lora",), seeds=range(4), sentences=300)
    found = claims(made.evidence())[3]
    assert found.answer == "yes"
    assert "same-size pairs (3) minus other-size pairs (3) +0." in found.sentences[0]
    interval = found.findings[0].interval
    assert interval is not None and interval.low < 0.3 < interval.high
    flat = study(pairs=SIX, methods=("lora",), seeds=range(4), sentences=300).evidence()
    assert claims(flat)[3].answer == "no"


def test_pooled_hosts_are_resampled_when_there_are_enough(study: Any) -> None:
    found = claims(study(pairs=SIX, methods=("lora",)).evidence(one_source=False))[0]
    interval = found.findings[0].interval
    assert interval is not None
    assert interval.resampled == ("seed", "source", "target")
    assert "conditional" not in " ".join(found.sentences)


def test_ablations_and_floor_stand_beside_every_line(study: Any) -> None:
    evidence = study(sentences=1000).evidence()
    for claim in claims(evidence)[:2]:
        for line in claim.findings:
            assert set(line.beside) == {
                "ported", "scratch", "sampled", "head-only", "body-only", "probe", "floor",
            }  # fmt: skip
            assert line.beside["head-only"] == pytest.approx(0.65, abs=0.06)
            assert line.beside["floor"] == 0.5


def test_unknown_sizes_leave_the_size_question_open(study: Any) -> None:
    found = claims(study(pairs=SIX, methods=("lora",)).evidence(sizes={}))[3]
    assert not any("same-size" in sentence for sentence in found.sentences)
