"""The reference trainer: it learns, it repeats itself, and budgets are points of one trajectory."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from peftport.data.tasks import Encoded, Task, encode
from peftport.errors import InputError, RunError
from peftport.hosts.load import Host, load_host
from peftport.methods.base import Module, config_from_json
from peftport.testing.pico import pico_bert, pico_reviews, taught_pico_t5
from peftport.train.evaluate import class_scores
from peftport.train.metrics import metrics
from peftport.train.reference import TrainSpec, fresh_module, train

LORA = config_from_json({"method": "lora", "r": 4})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return load_host(str(pico_bert(tmp_path_factory.mktemp("bert"))))


def data(host: Host, count: int = 64, seed: int = 3) -> tuple[Encoded, np.ndarray]:
    rows = pico_reviews(count, seed)
    task = Task()
    return encode(host.tokenizer, [text for text, _ in rows], task), np.array([c for _, c in rows])


def last(host: Host, module: Module, spec: TrainSpec, **options: object) -> Module:
    return list(train(host, module, *data(host), spec, **options))[-1][1]  # type: ignore[arg-type]


def test_it_learns(bert: Host) -> None:
    spec = TrainSpec(120, lr=1e-2)
    *_, (_, module) = train(bert, fresh_module(bert, LORA, 0), *data(bert, 400), spec)
    encoded, labels = data(bert, 100, seed=9)
    assert metrics(class_scores(bert, module, encoded), labels)["balanced_accuracy"] > 0.8


def test_a_module_on_t5_beats_its_host(tmp_path) -> None:
    host = load_host(str(taught_pico_t5(tmp_path, steps=200)), verbalisers=("negative", "positive"))
    module = last(host, fresh_module(host, LORA, 0), TrainSpec(60, lr=1e-2))
    encoded, labels = data(host, 100, seed=9)
    alone = metrics(class_scores(host, None, encoded), labels)["balanced_accuracy"]
    assert metrics(class_scores(host, module, encoded), labels)["balanced_accuracy"] > alone + 0.2


def test_budgets_are_points_of_one_trajectory(bert: Host) -> None:
    start = fresh_module(bert, LORA, 0)
    points = dict(train(bert, start, *data(bert), TrainSpec(9, lr=1e-2), (0, 4, 9)))
    assert points[0].digest == start.digest
    assert points[4].digest == last(bert, start, TrainSpec(4, lr=1e-2)).digest
    assert points[9].digest == last(bert, start, TrainSpec(9, lr=1e-2)).digest
    assert len({p.digest for p in points.values()}) == 3


def test_measuring_between_budgets_changes_nothing(bert: Host) -> None:
    start, spec = fresh_module(bert, LORA, 0), TrainSpec(6, lr=1e-2)
    encoded, _ = data(bert)
    for _, module in train(bert, start, *data(bert), spec, (0, 3, 6)):
        class_scores(bert, module, encoded)
    assert module.digest == last(bert, start, spec).digest


def test_the_seed_decides_the_order_and_the_start_is_not_touched(bert: Host) -> None:
    start = fresh_module(bert, LORA, 0)
    before = start.digest
    runs = [last(bert, start, TrainSpec(5, lr=1e-2, seed=s)).digest for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert start.digest == before


def test_rates_reach_their_group(bert: Host) -> None:
    start = fresh_module(bert, LORA, 0)
    probe = last(bert, start, TrainSpec(3, lr=1e-2, only_head=True))
    assert all(
        torch.equal(probe.state[s][n], t) for s, ts in start.state.items() for n, t in ts.items()
    )
    assert not torch.equal(probe.head["classifier.weight"], start.head["classifier.weight"])
    slow = last(bert, start, TrainSpec(1, lr=1e-2, head_lr=1e-5))
    moved = slow.head["classifier.weight"] - start.head["classifier.weight"]
    assert moved.abs().max() < 2e-5  # the first AdamW step moves each entry by about its rate
    site = next(iter(start.state))
    assert (slow.state[site]["B"] - start.state[site]["B"]).abs().max() > 5e-3


def test_clipping_bounds_the_gradient_not_the_step(bert: Host) -> None:
    """AdamW's first step hides the scale; the second tells clipped from unclipped."""
    start = fresh_module(bert, LORA, 0)
    tight = last(bert, start, TrainSpec(4, lr=1e-2, clip=1e-4)).digest
    assert tight != last(bert, start, TrainSpec(4, lr=1e-2, clip=1e4)).digest


def test_divergence_is_a_failed_run(bert: Host) -> None:
    start = fresh_module(bert, LORA, 0)
    site = next(iter(start.state))
    broken = {**start.state, site: {**start.state[site], "A": torch.full((4, 32), float("nan"))}}
    with pytest.raises(RunError, match=r"lora on .* diverged at step 1"):
        last(bert, replace(start, state=broken), TrainSpec(3, lr=1e-2))
    assert not getattr(bert.model, "_peftport_attached", False)


def test_the_host_stays_frozen(bert: Host) -> None:
    before = {name: p.clone() for name, p in bert.model.named_parameters()}
    last(bert, fresh_module(bert, LORA, 0), TrainSpec(3, lr=1e-2))
    assert all(torch.equal(before[n], p) for n, p in bert.model.named_parameters())


def test_a_mean_pooled_head_ignores_padding(tmp_path) -> None:
    host = load_host(str(pico_bert(tmp_path)), head="mean")
    module = last(host, fresh_module(host, LORA, 0), TrainSpec(3, lr=1e-2))
    encoded, _ = data(host, 20)
    together = class_scores(host, module, encoded, rows=20)
    assert np.allclose(together, class_scores(host, module, encoded, rows=1), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": -1},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.inf},
        {"head_lr": -1.0},
        {"head_lr": math.nan},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_specs_refuse_nonsense(options: dict) -> None:
    with pytest.raises(InputError, match="got"):
        TrainSpec(**{"steps": 1, "lr": 1e-3, **options})


def test_budgets_beyond_the_steps_are_refused(bert: Host) -> None:
    with pytest.raises(InputError, match=r"budgets must lie in 0\.\.5"):
        last(bert, fresh_module(bert, LORA, 0), TrainSpec(5, lr=1e-3), budgets=(0, 9))
