"""Heal a cut: distil the parent's hidden states and pooled outputs into it, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel

from peftport.hosts.forge.cut import Cut
from peftport.hosts.forge.loop import StageLog, train_stage
from peftport.hosts.forge.recipes import HealRecipe
from peftport.hosts.forge.text import Words, bucketed, pad_batch


@dataclass(frozen=True)
class Healed:
    """Held-out losses by name before and after, and the stage's log."""

    before: dict[str, float]
    after: dict[str, float]
    log: StageLog


def heal(
    parent: BertModel,
    cut: Cut,
    words: Words,
    train: Sequence[str],
    held_out: Sequence[str],
    recipe: HealRecipe,
    checkpoint: Path,
    identity: str,
    title: str = "minilm-base",
) -> Healed:
    """Train every tensor of ``cut.student`` but the embedding tables, in place.

    Args:
        parent: minilm-large, frozen.
        cut: what :func:`~peftport.hosts.forge.cut.cut` returned.
        train, held_out: sentences.
        checkpoint, identity: see :func:`~peftport.hosts.forge.loop.train_stage`.
        title: shown beside the progress.
    """
    rows = [words.single(ids, recipe.max_tokens) for ids in words.encode(train)]
    kept = [words.single(ids, recipe.max_tokens) for ids in words.encode(held_out)]
    schedule = recipe.schedule
    plan = bucketed([len(row) for row in rows], schedule.batch, schedule.steps, schedule.seed)
    held_rows = sorted(kept[: recipe.held_out], key=len)

    def losses(batch: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        ids, mask = pad_batch(batch, words.pad)
        return distillation(parent, cut, ids, mask, recipe)

    def measure() -> dict[str, float]:
        total: dict[str, float] = {}
        with torch.no_grad():
            for start in range(0, len(held_rows), 64):
                part = held_rows[start : start + 64]
                for name, value in losses(part).items():
                    total[name] = total.get(name, 0.0) + float(value) * len(part) / len(held_rows)
        return total

    before = measure()
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    trained = {
        name: p for name, p in cut.student.named_parameters() if not any(t in name for t in tables)
    }
    for name, p in cut.student.named_parameters():
        p.requires_grad_(name in trained)
    log = train_stage(
        title,
        trained,
        dict.fromkeys(trained, schedule.lr),
        schedule,
        lambda step: losses([rows[i] for i in plan[step]]),
        checkpoint,
        identity,
    )
    return Healed(before, measure(), log)


def distillation(
    parent: BertModel, cut: Cut, ids: Tensor, mask: Tensor, recipe: HealRecipe
) -> dict[str, Tensor]:
    """The losses of one batch; "variance" is what predicting the mean state would
    cost, and a "pooled" of 1 is what predicting the mean pooled output would cost.

    Args:
        ids, mask: [B, T].
    """
    with torch.no_grad():
        truth = parent(input_ids=ids, attention_mask=mask)
        state = truth.last_hidden_state @ cut.basis  # [B, T, d]
        pooled = truth.pooler_output[:, cut.pooled_units]  # [B, d]
    mine = cut.student(input_ids=ids, attention_mask=mask)
    real = mask.bool()
    hidden = F.mse_loss(mine.last_hidden_state[real], state[real])
    pooled_loss = F.mse_loss(mine.pooler_output, pooled) / cut.pooled_variance
    weight = mask.unsqueeze(-1) / mask.sum(1)[:, None, None]  # [B, T, 1]
    angle = F.cosine_similarity((mine.last_hidden_state * weight).sum(1), (state * weight).sum(1))
    cosine = (1.0 - angle).mean()
    return {
        "loss": hidden + recipe.pooled * pooled_loss + recipe.cosine * cosine,
        "hidden": hidden,
        "pooled": pooled_loss,
        "cosine": cosine,
        "variance": state[real].var(0, unbiased=False).mean(),
    }
