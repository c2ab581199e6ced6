"""Train modules of a target host towards given predictions: no label is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peftport.data.batches import train_batches
from peftport.data.tasks import Encoded
from peftport.errors import RunError
from peftport.hosts.load import Host
from peftport.hosts.packed.layout import pack
from peftport.methods.attach import attach, frozen, trainable
from peftport.methods.bank import Bank, has_bank
from peftport.methods.base import Module

#: of both distributions; Hinton et al. 2015, arXiv 1503.02531
TEMPERATURE = 2.0
CLIP = 1.0


@dataclass(frozen=True)
class Steps:
    """How modules are trained.

    Attributes:
        steps: optimiser steps (AdamW, constant rate, no weight decay).
        batch: texts a step and module.
        rate: learning rate of the body and of the head.
        seed: decides the order of the texts.
    """

    steps: int
    batch: int
    rate: float
    seed: int = 0


def distil(
    host: Host, starts: Sequence[Module], encoded: Encoded, logits: Sequence[Tensor], how: Steps
) -> list[Module]:
    """Modules after some steps towards predictions, all at once where the host has a program.

    The loss is T^2 KL(softmax(z / T) || softmax(own / T)) with z the given logits: Hinton et al.
    2015, arXiv 1503.02531, section 2.

    Args:
        host: frozen target host.
        starts: modules of one config; they are not changed.
        encoded: unlabelled texts in the host's tokens.
        logits: for every module the class logits that it is to approach, [texts, C].
        how: steps, batch size, rate, order.

    Raises:
        RunError: a loss or gradient became NaN or infinite.
    """
    orders = train_batches(encoded.lengths, how.batch, how.steps, how.seed)
    if host.program is not None and has_bank(starts[0].config):
        return _in_a_bank(host, starts, encoded, logits, how, orders)
    return [
        _alone(host, start, encoded, own, how, orders)
        for start, own in zip(starts, logits, strict=True)
    ]


def divergence(scores: Tensor, wanted: Tensor) -> Tensor:
    """T^2 KL for every text, [N]; scores and wanted are logits [N, C]."""
    own = F.log_softmax(scores / TEMPERATURE, dim=-1)
    goal = F.log_softmax(wanted / TEMPERATURE, dim=-1)
    return F.kl_div(own, goal, reduction="none", log_target=True).sum(-1) * TEMPERATURE**2


def _in_a_bank(
    host: Host,
    starts: Sequence[Module],
    encoded: Encoded,
    logits: Sequence[Tensor],
    how: Steps,
    orders: list[list[int]],
) -> list[Module]:
    program, count = host.program, len(starts)
    assert program is not None
    dtype = next(host.model.parameters()).dtype
    bank = Bank(host.spec, starts, dtype=dtype, grad=True)
    adam = torch.optim.AdamW(bank.leaves, lr=how.rate, weight_decay=0.0)
    for step, rows in enumerate(orders):
        packed = pack([[encoded.ids[i] for i in rows]] * count)
        wanted = torch.cat([own[rows] for own in logits])[packed.order].to(dtype)
        bank.refresh()
        scores = program.scores(packed, bank.layer)  # [count * batch, C]
        losses = divergence(scores, wanted).view(count, -1).mean(1)
        grads = torch.autograd.grad(losses.sum(), bank.leaves, allow_unused=True)
        norms = torch.linalg.vector_norm(bank.gradients(grads), dim=1)  # [count]
        _need_finite(norms + 0 * losses.detach(), step, host)
        scale = (CLIP / (norms + 1e-6)).clamp(max=1.0)
        for leaf, grad in zip(bank.leaves, grads, strict=True):
            if grad is not None:
                leaf.grad = grad * scale.view(-1, *[1] * (grad.dim() - 1))
        adam.step()
    return [bank.module(k, host.spec) for k in range(count)]


def _alone(
    host: Host,
    start: Module,
    encoded: Encoded,
    logits: Tensor,
    how: Steps,
    orders: list[list[int]],
) -> Module:
    live = trainable(start, next(host.model.parameters()).dtype)
    leaves = [tensor for _, tensor in live.tensors()]
    adam = torch.optim.AdamW(leaves, lr=how.rate, weight_decay=0.0)
    with attach(host.model, live, spec=host.spec):
        for step, rows in enumerate(orders):
            batch = encoded.batch(rows, host.pad_id)
            scores = host.family.scores(host.model, batch, host.words)
            loss = divergence(scores, logits[rows].to(scores.dtype)).mean()
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = grad
            norm = torch.nn.utils.clip_grad_norm_(leaves, CLIP)
            _need_finite(norm + 0 * loss.detach(), step, host)
            adam.step()
    return frozen(live)


def _need_finite(norms: Tensor, step: int, host: Host) -> None:
    if not bool(torch.isfinite(norms).all()):
        raise RunError(
            f"distillation on '{host.ref}' diverged at step {step + 1}; lower the option 'rate'"
        )
