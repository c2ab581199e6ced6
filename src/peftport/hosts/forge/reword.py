"""Teach an encoder a new vocabulary: distil the parent's states at the ends of words.

Parent and student read the same sentence in different tokens. Where a word ends, by its character
in the sentence, both have a token that stands for the word so far; there their last hidden
states are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from peftport.hosts.forge.heal import Healed
from peftport.hosts.forge.local_recipes import WordsRecipe
from peftport.hosts.forge.loop import train_stage
from peftport.hosts.forge.text import Words, bucketed, pad_batch


@dataclass(frozen=True)
class Row:
    """One sentence in the parent's and in the student's tokens, special ones included.

    Attributes:
        old, new: token ids.
        old_ends, new_ends: positions of the last tokens of the same words, pair by pair.
    """

    old: list[int]
    new: list[int]
    old_ends: list[int]
    new_ends: list[int]


def aligned(old: Words, new: Words, texts: Sequence[str], max_tokens: int) -> list[Row]:
    """Sentences in both vocabularies; those too long in either are left out."""
    rows = []
    for (a, a_ends), (b, b_ends) in zip(old.located(texts), new.located(texts), strict=True):
        both = sorted(a_ends.keys() & b_ends.keys())
        if not both or max(len(a), len(b)) > max_tokens - 2:
            continue
        starts = [1 + a_ends[at] for at in both], [1 + b_ends[at] for at in both]  # after [CLS]
        rows.append(Row(old.single(a, max_tokens), new.single(b, max_tokens), *starts))
    return rows


def reword(
    parent: BertModel,
    student: BertModel,
    words: tuple[Words, Words],
    train: Sequence[str],
    held_out: Sequence[str],
    pooled_variance: float,
    recipe: WordsRecipe,
    checkpoint: Path,
    identity: str,
) -> Healed:
    """Train the word embeddings and the lowest layers of ``student`` in place.

    Args:
        parent: frozen.
        words: the parent's tokenizer and the student's.
        train, held_out: sentences.
        pooled_variance: of the parent's pooled outputs.
        checkpoint, identity: see :func:`~peftport.hosts.forge.loop.train_stage`.
    """
    schedule, pads = recipe.schedule, (words[0].pad, words[1].pad)
    rows = aligned(*words, train, recipe.max_tokens)
    held = aligned(*words, held_out, recipe.max_tokens)[: recipe.held_out]
    held.sort(key=lambda row: len(row.new))
    plan = bucketed([len(row.new) for row in rows], schedule.batch, schedule.steps, schedule.seed)

    def losses(batch: Sequence[Row]) -> dict[str, Tensor]:
        return rewording(parent, student, batch, pads, pooled_variance, recipe)

    def measure() -> dict[str, float]:
        total: dict[str, float] = {}
        with torch.no_grad():
            for start in range(0, len(held), 64):
                part = held[start : start + 64]
                for name, value in losses(part).items():
                    total[name] = total.get(name, 0.0) + float(value) * len(part) / len(held)
        return total

    trained, rates = _trained(student, recipe)
    before = measure()
    log = train_stage(
        "minilm-words", trained, rates, schedule,
        lambda step: losses([rows[i] for i in plan[step]]), checkpoint, identity,
    )  # fmt: skip
    return Healed(before, measure(), log)


def _trained(
    student: BertModel, recipe: WordsRecipe
) -> tuple[dict[str, nn.Parameter], dict[str, float]]:
    """What is trained, by name, and its full learning rate; the rest is frozen."""
    rates = {"embeddings.word_embeddings.": recipe.schedule.lr}
    rates |= {f"encoder.layer.{i}.": recipe.layer_lr for i in range(recipe.trained_layers)}
    found: dict[str, nn.Parameter] = {}
    lr: dict[str, float] = {}
    for name, p in student.named_parameters():
        rate = [value for prefix, value in rates.items() if name.startswith(prefix)]
        p.requires_grad_(bool(rate))
        if rate:
            found[name], lr[name] = p, rate[0]
    return found, lr


def rewording(
    parent: BertModel,
    student: BertModel,
    batch: Sequence[Row],
    pads: tuple[int, int],
    pooled_variance: float,
    recipe: WordsRecipe,
) -> dict[str, Tensor]:
    """The losses of B sentences; "variance" is what predicting the mean state would cost, and a
    "pooled" of 1 is what predicting the mean pooled output would cost."""
    old_ids, old_mask = pad_batch([row.old for row in batch], pads[0])  # [B, T_old]
    new_ids, new_mask = pad_batch([row.new for row in batch], pads[1])  # [B, T_new]
    with torch.no_grad():
        truth = parent(input_ids=old_ids, attention_mask=old_mask)
    mine = student(input_ids=new_ids, attention_mask=new_mask)
    which = torch.tensor([i for i, row in enumerate(batch) for _ in row.old_ends])
    old_at = torch.tensor([at for row in batch for at in row.old_ends])
    new_at = torch.tensor([at for row in batch for at in row.new_ends])
    state = truth.last_hidden_state[which, old_at]  # [words, d]
    hidden = F.mse_loss(mine.last_hidden_state[which, new_at], state)
    pooled = F.mse_loss(mine.pooler_output, truth.pooler_output) / pooled_variance
    angle = F.cosine_similarity(
        mean_pooled(mine.last_hidden_state, new_mask),
        mean_pooled(truth.last_hidden_state, old_mask),
    )
    cosine = (1.0 - angle).mean()
    return {
        "loss": hidden + recipe.pooled * pooled + recipe.cosine * cosine,
        "hidden": hidden,
        "pooled": pooled,
        "cosine": cosine,
        "variance": state.var(0, unbiased=False).mean(),
    }


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens  [B, T, d], [B, T] -> [B, d]"""
    weight = mask.unsqueeze(-1) / mask.sum(1)[:, None, None]
    return (states * weight).sum(1)
