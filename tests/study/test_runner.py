"""Where each init starts and what it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftport.data.datasets import load_dataset
from peftport.data.leaks import guard
from peftport.errors import InputError
from peftport.methods.base import Module
from peftport.study.chosen import Trial, choose
from peftport.study.drive import Prepared, prepare
from peftport.study.executors.base import BankJob, Job
from peftport.study.grid import parse_study, read_study
from peftport.study.materials import OTHER, SAME, TARGET, gather
from peftport.study.modules import from_bytes, to_bytes
from peftport.study.runner import Runner
from peftport.train.reference import fresh_module


@pytest.fixture(scope="module")
def prepared(pico: Path) -> Prepared:
    return prepare(read_study(pico / "pico.yaml"))


@pytest.fixture(scope="module")
def runner(prepared: Prepared) -> Runner:
    return Runner(prepared.materials, 1, "torch")


def job_of(
    prepared: Prepared,
    runner: Runner,
    init: str,
    target: str,
    seed: int = 1,
    method: str = "bottleneck",
) -> Job:
    """The job of an init with the source module that belongs to it."""
    for key, t in prepared.plan.trainings.items():
        if (t.init, t.host, t.seed) == (init, target, seed) and t.method in ("", method):
            if not t.sources:
                return Job(key, t)
            keys = {training: name for name, training in prepared.plan.trainings.items()}
            (outcome,) = runner.do(BankJob((Job(keys[t.sources[0]], t.sources[0]),)))
            return Job(key, t, outcome.module)
    raise AssertionError(f"no {init} on {target}")


def modules(prepared: Prepared, runner: Runner, init: str, target: str = "b") -> dict[int, Module]:
    bank = BankJob((job_of(prepared, runner, init, target),))
    return {budget: m for budget, (m,) in runner.modules(bank) if isinstance(m, Module)}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def body(module: Module) -> dict[str, torch.Tensor]:
    return {name: t for name, t in module.tensors() if not name.startswith("head/")}


def test_ported_by_copy_is_the_source_module(prepared: Prepared, runner: Runner) -> None:
    job = job_of(prepared, runner, "ported", "b")
    assert job.source is not None
    source, ported = from_bytes(job.source), modules(prepared, runner, "ported")
    assert equal(body(ported[0]), body(source))
    assert equal(ported[0].head, source.head)
    assert ported[0].fingerprint == prepared.materials.specs["b"].fingerprint
    assert not equal(body(ported[2]), body(source))


@pytest.mark.parametrize("target", ["b", "c"])
def test_halves_are_ported_and_fresh(prepared: Prepared, runner: Runner, target: str) -> None:
    ported = modules(prepared, runner, "ported", target)[0]
    fresh = fresh_module(runner.host(target), ported.config, 1)
    head_only = modules(prepared, runner, "head-only", target)[0]
    body_only = modules(prepared, runner, "body-only", target)[0]
    assert equal(head_only.head, ported.head)
    assert equal(body(head_only), body(fresh))
    assert equal(body_only.head, fresh.head)
    assert equal(body(body_only), body(ported))


def test_sampled_is_drawn_by_the_runs_seed(prepared: Prepared, runner: Runner) -> None:
    ported = modules(prepared, runner, "ported")[0]
    sampled = modules(prepared, runner, "sampled")[0]
    other = job_of(prepared, runner, "sampled", "b", seed=2)
    (_, (second,)), *_ = runner.modules(BankJob((other,)))
    assert isinstance(second, Module)
    for name, tensor in sampled.tensors():
        assert tensor.shape == dict(ported.tensors())[name].shape
    assert not equal(body(sampled), body(ported))
    assert not equal(body(sampled), body(second))
    assert not equal(sampled.head, ported.head)


def test_scratch_and_native_begin_fresh(prepared: Prepared, runner: Runner) -> None:
    scratch = modules(prepared, runner, "scratch")[0]
    fresh = fresh_module(runner.host("b"), prepared.materials.configs[("bottleneck", "b")], 1)
    assert equal(body(scratch), body(fresh))
    assert equal(scratch.head, fresh.head)
    assert list(modules(prepared, runner, "native")) == [4]


def test_a_probe_trains_its_head_alone(prepared: Prepared, runner: Runner) -> None:
    probe = modules(prepared, runner, "probe")
    assert equal(body(probe[0]), body(probe[2]))
    assert not equal(probe[0].head, probe[2].head)


def test_a_banks_numbers_do_not_depend_on_what_was_done_before(
    prepared: Prepared, runner: Runner
) -> None:
    for init, target, method in (
        ("ported", "c", "lora"),
        ("ported", "c", "bottleneck"),
        ("sampled", "b", "lora"),
        ("sampled", "b", "bottleneck"),
        ("scratch", "c", "lora"),
    ):
        bank = BankJob((job_of(prepared, runner, init, target, method=method),))
        (again,) = Runner(prepared.materials, 1, "torch").do(bank)
        (first,) = runner.do(bank)
        assert first.error is None
        assert first.module == again.module
        for left, right in zip(first.measures, again.measures, strict=True):
            assert left.scores.tobytes() == right.scores.tobytes()
            assert left.module == right.module


def test_modules_survive_as_bytes(prepared: Prepared, runner: Runner) -> None:
    module = modules(prepared, runner, "ported", "c")[2]
    again = from_bytes(to_bytes(module))
    assert again == module.__class__(
        module.config, again.state, again.head, module.fingerprint, module.host, again.notes
    )
    assert again.digest == module.digest
    assert list(again.state) == list(module.state)
    assert to_bytes(again) == to_bytes(module)
    content = to_bytes(module)
    for broken in (b"", content[:100], content[:-3], b"x" * 200, b"\0" * 200):
        with pytest.raises(InputError, match="not a module"):
            from_bytes(broken)


DATA = """
name: data
hosts: [a, b]
pairs: [[a, b]]
data:
  target: reviews.csv
  other: other.csv
  settings: [same, other]
  train: 50
  test: 20
methods: {lora: {}}
source: {steps: 1}
target: {budgets: [0]}
seeds: [0]
strategy: {texts: 30}
rates: {provenance: none, table: {lora: {any: {any: {lr: 0.1}}}}}
"""


def test_no_sentence_is_on_both_sides(pico: Path) -> None:
    """``other`` has sentences that contain a test sentence of the target."""
    dataset = load_dataset(str(pico / "reviews.csv"))
    tests = dataset.split("test")
    lines = ["text,label"]
    lines += [f'"so they say that {e.text} and nothing else",{e.label}' for e in tests]
    lines += [f'"own sentence number {i} here",{i % 2}' for i in range(200)]
    (pico / "other.csv").write_text("\n".join(lines))
    materials = gather(parse_study(DATA, base=pico))
    protected = [e.text for split in ("validation", "test") for e in dataset.split(split)]
    guard({"protected": protected, **{n: p.texts for n, p in materials.parts.items()}})
    assert set(materials.parts) == {TARGET, SAME, OTHER}
    assert all(len(part.texts) <= 50 for part in materials.parts.values())
    assert len(materials.measured.texts) == 20
    assert set(materials.measured.texts) <= {e.text for e in dataset.split("test")}
    assert materials.unlabelled == materials.parts[TARGET].texts[:30]
    assert materials.guard["dropped from source-train other"] > 0
    assert materials.guard["validation and test"] == len(protected)
    # the sentences are chosen by their texts: a larger cap keeps them
    more = gather(parse_study(DATA.replace("test: 20", "test: 30"), base=pico))
    assert more.measured.texts[:20] == materials.measured.texts


def test_a_search_measures_on_validation_sentences(pico: Path) -> None:
    text = DATA[: DATA.index("rates:")].replace("[same, other]", "[same]")
    text += "rates: {search: {rates: [0.1], head-rates: [0.1], seeds: [9]}}"
    dataset = load_dataset(str(pico / "reviews.csv"))
    measured = gather(parse_study(text.replace("  other: other.csv\n", ""), base=pico)).measured
    assert set(measured.texts) == {e.text for e in dataset.split("validation")}


def test_a_candidate_that_failed_is_not_chosen() -> None:
    def trial(lr: float, score: float | None) -> Trial:
        return Trial("lora", "a", "ported", lr, 0.1, score)

    name = ("lora", "a", "ported")
    assert choose([trial(0.1, 0.6), trial(0.2, 0.7), trial(0.3, 0.9)])[name].lr == 0.3
    assert choose([trial(0.1, 0.6), trial(0.2, 0.7), trial(0.3, None)])[name].lr == 0.2
    # the mean over pairs and seeds decides; one failure among them counts as failed
    mixed = [trial(0.1, 0.6), trial(0.1, 0.6), trial(0.3, 0.9), trial(0.3, None)]
    assert choose(mixed)[name].lr == 0.1
    assert choose([trial(0.2, 0.7), trial(0.1, 0.7)])[name].lr == 0.1
    with pytest.raises(InputError, match="every candidate of lora / a / ported failed"):
        choose([trial(0.1, None)])
