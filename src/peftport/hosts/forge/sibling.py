"""Fewer layers of a Llama, healed by distillation of its parent, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from peftport.hosts.forge.absorb import absorb
from peftport.hosts.forge.local_recipes import SiblingRecipe
from peftport.hosts.forge.loop import StageLog, train_stage
from peftport.hosts.forge.text import bucketed, pad_batch, some

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Healed:
    """Held-out losses by name: of the untrained cut, after the least-squares fit, after training;
    and the log of the training."""

    before: dict[str, float]
    fitted: dict[str, float]
    after: dict[str, float]
    log: StageLog


def keep_blocks(parent: LlamaForCausalLM, layers: Sequence[int]) -> LlamaForCausalLM:
    """A student with some layers of ``parent`` and everything else of it, unchanged.

    Raises:
        ValueError: a layer that the parent does not have.
    """
    count = parent.config.num_hidden_layers
    if not all(0 <= i < count for i in layers):
        raise ValueError(f"layers must lie in 0..{count - 1}, got {layers}")
    config = {**parent.config.to_dict(), "num_hidden_layers": len(layers), "layer_types": None}
    student = LlamaForCausalLM(LlamaConfig(**config)).eval()
    student.model.embed_tokens.load_state_dict(parent.model.embed_tokens.state_dict())
    student.model.norm.load_state_dict(parent.model.norm.state_dict())
    student.lm_head.load_state_dict(parent.lm_head.state_dict())
    for new, i in zip(student.model.layers, layers, strict=True):
        new.load_state_dict(parent.model.layers[i].state_dict())
    return student


def heal_blocks(
    title: str,
    parent: LlamaForCausalLM,
    student: LlamaForCausalLM,
    train: Rows,
    held_out: Rows,
    pad: int,
    recipe: SiblingRecipe,
    checkpoint: Path,
    identity: str,
) -> Healed:
    """Fit by least squares, then train every layer and the last norm of ``student`` in place;
    embeddings (and the head that is tied to them) stay.

    Args:
        train, held_out: token ids of texts.
        checkpoint, identity: see :func:`~peftport.hosts.forge.loop.train_stage`.
    """
    schedule = recipe.schedule
    plan = bucketed([len(row) for row in train], schedule.batch, schedule.steps, schedule.seed)
    held = sorted(held_out[: recipe.held_out], key=len)

    def losses(batch: Rows) -> dict[str, Tensor]:
        return distillation(parent, student, *pad_batch(batch, pad), recipe)

    def measure() -> dict[str, float]:
        total: dict[str, float] = {}
        with torch.no_grad():
            for start in range(0, len(held), schedule.batch):
                part = held[start : start + schedule.batch]
                for name, value in losses(part).items():
                    total[name] = total.get(name, 0.0) + float(value) * len(part) / len(held)
        return total

    trained = {
        name: p
        for name, p in student.named_parameters()
        if name.startswith(("model.layers.", "model.norm."))
    }
    for name, p in student.named_parameters():
        p.requires_grad_(name in trained)
    before = measure()
    absorb(parent, student, recipe.layers, some(train, recipe.fitted), pad, recipe.ridge)
    fitted = measure()
    log = train_stage(
        title, trained, dict.fromkeys(trained, schedule.lr), schedule,
        lambda step: losses([train[i] for i in plan[step]]), checkpoint, identity,
    )  # fmt: skip
    return Healed(before, fitted, measure(), log)


def distillation(
    parent: LlamaForCausalLM,
    student: LlamaForCausalLM,
    ids: Tensor,
    mask: Tensor,
    recipe: SiblingRecipe,
) -> dict[str, Tensor]:
    """The losses of one batch; a "hidden" of 1 is what predicting the mean state would cost.

    The first token takes no part: its state is an attention sink, tens of times as large as the
    others'.

    Args:
        ids, mask: [B, T], padded on the right.
    """
    with torch.no_grad():
        truth = parent.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    mine = student.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    real = mask.bool()
    real[:, 0] = False
    state, own = truth.last_hidden_state[real], mine.last_hidden_state[real]  # [N, d]
    hidden = F.mse_loss(own, state) / state.var(0, unbiased=False).mean()
    # what student layer j + 1 reads should be what the parent's layer of that place reads
    stream = [
        1.0 - F.cosine_similarity(mine.hidden_states[j][real], truth.hidden_states[i][real])
        for j, i in enumerate(recipe.layers)
        if j > 0
    ]
    away = torch.stack(stream).mean()
    asked = asked_positions(mask, recipe.every)
    with torch.no_grad():
        expected = parent.lm_head(truth.last_hidden_state[asked]) / recipe.temperature  # [M, V]
    logits = student.lm_head(mine.last_hidden_state[asked]) / recipe.temperature
    kl = F.kl_div(
        logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    kl = kl * recipe.temperature**2
    return {
        "loss": kl + recipe.hidden * hidden + recipe.stream * away,
        "kl": kl,
        "hidden_share": hidden,
        "stream": away,
    }


def asked_positions(mask: Tensor, every: int) -> Tensor:
    """Where the next token is compared: every so many-th position but the first, and each row's
    last  [B, T] -> [B, T] bool"""
    last = mask.sum(1) - 1
    place = torch.arange(mask.shape[1])
    chosen = (place % every == 0) & (place > 0)
    return (chosen[None] | (place[None] == last[:, None])) & mask.bool()
