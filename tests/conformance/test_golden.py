"""Our methods on transformers 5 against AdapterHub's and PEFT's numbers from transformers 4.57.

float32: logits, loss and gradients to 1e-5. float64: twenty steps of the reference trainer (AdamW,
constant rate, global norm clipped at 1, no dropout, no weight decay, fixed batches) to 1e-8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from peftport.methods.attach import attach, trainable
from peftport.methods.base import Module, method_of
from peftport.train.reference import TrainSpec, train

from .conftest import FACTS  # type: ignore[import-not-found]

Make = Callable[..., Any]


def logits(host: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """bert: class logits [B, C]; t5: those of every target position [B, W, V]."""
    if host.words is None:
        return host.model(**inputs).logits
    return host.model(**inputs, labels=host.words.padded(labels)).logits


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.detach() - theirs).norm() / theirs.norm()).item()


def test_forward_and_gradients_in_float32(
    case: Any, tiny_host: Make, batches: Any, close: Make
) -> None:
    host = tiny_host(case.host)
    live = trainable(case.module(host.spec))
    inputs, labels = batches.tensors(0)
    with attach(host.model, live, spec=host.spec):
        assert relative(logits(host, inputs, labels), case.numbers["logits"]) < 1e-5
        loss = host.family.loss(host.model, inputs, labels, host.words)
        assert relative(loss, case.numbers["loss"]) < 1e-5
        grads = iter(torch.autograd.grad(loss, [t for _, t in live.tensors()]))
    ours = replace(
        live,
        state={s: {n: next(grads) for n in tensors} for s, tensors in live.state.items()},
        head={n: next(grads) for n in live.head},
    )
    close(ours, case.named("grad", host.spec), 1e-5)


@pytest.mark.usefixtures("float64_norm")
def test_twenty_steps_in_float64(
    case: Any, tiny_host: Make, batches: Any, close: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tiny_host(case.host, torch.float64)
    monkeypatch.setattr("peftport.train.reference.train_batches", lambda *_: batches.order)
    losses: list[Tensor] = []
    own_loss = type(host.family).loss

    def spy(*args: Any) -> Tensor:
        losses.append(own_loss(*args))
        return losses[-1]

    monkeypatch.setattr(type(host.family), "loss", spy)
    spec = TrainSpec(steps=FACTS["steps"], lr=FACTS["rate"], clip=FACTS["clip"], batch_size=4)
    start = case.module(host.spec)
    [(_, trained)] = train(host, start, batches.encoded, batches.labels, spec)
    assert relative(torch.stack(losses), case.numbers["losses"]) < 1e-8
    close(trained, finished(case.named("final", host.spec), host), 1e-8)


def finished(module: Module, host: Any) -> Module:
    config, state = method_of(module.config).finish(host.spec, module.config, module.state)
    return replace(module, config=config, state=state)
