"""Numbers of one case: logits, loss and gradients in float32, twenty AdamW steps in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from hosts import WORDS
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

#: TrainSpec of the trajectories; the tests use the same
RATE, CLIP, STEPS = 1e-2, 1.0, 20


def word_targets(labels: Tensor) -> Tensor:
    """Ids of the label words  [B, W], padded with -100."""
    width = max(map(len, WORDS))
    rows = [list(WORDS[i]) + [-100] * (width - len(WORDS[i])) for i in labels.tolist()]
    return torch.tensor(rows)


def logits_and_loss(host: str, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """bert: class logits [B, C]; t5: logits of every target position [B, W, V]."""
    inputs: dict[str, Any] = {k: batch[k] for k in ("input_ids", "attention_mask")}
    if host == "bert":
        logits = model(**inputs).logits
        return logits, F.cross_entropy(logits, batch["labels"])
    targets = word_targets(batch["labels"])
    logits = model(**inputs, labels=targets).logits
    return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


@contextmanager
def true_float64() -> Iterator[None]:
    """Keep float64 where transformers' T5 casts to float32 (its layer norm and its softmax), so
    that a trajectory in float64 is one."""
    norm, cast = T5LayerNorm.forward, torch.Tensor.float

    def forward(self: Any, hidden: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))

    def keep(self: Tensor) -> Tensor:
        return self if self.dtype == torch.float64 else cast(self)

    T5LayerNorm.forward = forward
    torch.Tensor.float = keep  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        T5LayerNorm.forward = norm
        torch.Tensor.float = cast  # type: ignore[method-assign]


def single(
    host: str, model: nn.Module, parameters: dict[str, nn.Parameter], batch: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Logits, loss and the gradient of every trained parameter."""
    logits, loss = logits_and_loss(host, model, batch)
    grads = torch.autograd.grad(loss, list(parameters.values()))
    numbers = {"logits": logits.detach(), "loss": loss.detach()}
    return numbers | {f"grad/{key}": grad for key, grad in zip(parameters, grads, strict=True)}


def trajectory(
    host: str,
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    batches: list[dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Loss and gradient norm of every step [20], and the parameters after the last.

    AdamW with its defaults (betas 0.9 and 0.999, eps 1e-8), no weight decay, a constant rate, the
    global gradient norm over body and head clipped at 1. The model is in float64 already.
    """
    trained = list(parameters.values())
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    losses, norms = [], []
    for step in range(STEPS):
        optimiser.zero_grad()
        _, loss = logits_and_loss(host, model, batches[step % len(batches)])
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(trained, CLIP).detach())
        optimiser.step()
        losses.append(loss.detach())
    numbers = {"losses": torch.stack(losses), "norms": torch.stack(norms)}
    return numbers | {f"final/{key}": p.detach().clone() for key, p in parameters.items()}
