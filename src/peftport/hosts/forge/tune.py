"""Continued pretraining: masked language modelling and next-sentence choice, no labels.

Next-sentence choice goes through the pooler: of all second sentences of the batch, which one
follows this first sentence in its review? Every sentence is encoded alone, as a task would do it.
(Asking the classic question of a pair instead, does b follow a, was no better than chance after
250 steps here.) The heads of the MLM objective start fresh and are thrown away. Embeddings are
frozen, so that a tuned host shares them with its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from peftport.hosts.forge.loop import StageLog, train_stage
from peftport.hosts.forge.recipes import TuneRecipe
from peftport.hosts.forge.text import Words, bucketed, pad_batch

Runs = Sequence[Sequence[str]]
#: token ids of a sentence and of the one that follows it
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Tuned:
    """Held-out losses by name before and after, and the stage's log."""

    before: dict[str, float]
    after: dict[str, float]
    log: StageLog


class Heads(nn.Module):
    """The MLM transform over tied, frozen embeddings."""

    def __init__(self, model: BertModel, seed: int) -> None:
        super().__init__()
        d, vocab = model.config.hidden_size, model.config.vocab_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transform = nn.Linear(d, d)
            nn.init.normal_(self.transform.weight, std=0.02)
        self.norm = nn.LayerNorm(d, eps=model.config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab))
        self._tied = [model.embeddings.word_embeddings.weight]  # a list: not a parameter of this

    def words(self, states: Tensor) -> Tensor:
        """Logits over the vocabulary  [N, d] -> [N, V]"""
        return F.linear(self.norm(F.gelu(self.transform(states))), self._tied[0], self.bias)


def tune(
    title: str,
    model: BertModel,
    words: Words,
    train: Runs,
    held_out: Runs,
    recipe: TuneRecipe,
    checkpoint: Path,
    identity: str,
    stop: int | None = None,
) -> Tuned:
    """Train the encoder layers and the pooler of ``model`` in place.

    Args:
        train, held_out: runs of neighbouring sentences.
        checkpoint, identity: see :func:`~peftport.hosts.forge.loop.train_stage`.
        stop: steps after which to stop, of the recipe's; all by default. The batches are those of
            the whole recipe.
    """
    schedule = recipe.schedule
    pairs = make_pairs(words, train, recipe.max_tokens)
    held = make_pairs(words, held_out, recipe.max_tokens)
    held = held[:: max(1, len(held) // recipe.held_out)][: recipe.held_out]  # of many reviews
    lengths = [len(a) + len(b) for a, b in pairs]
    plan = bucketed(lengths, schedule.batch, schedule.steps, schedule.seed)
    heads = Heads(model, schedule.seed)

    def measure() -> dict[str, float]:
        total: dict[str, float] = {}
        with torch.no_grad():
            for i in range(0, len(held), schedule.batch):
                part = held[i : i + schedule.batch]
                found = objectives(model, heads, words, part, recipe, [schedule.seed, 23, i])
                for name, value in found.items():
                    total[name] = total.get(name, 0.0) + float(value) * len(part) / len(held)
        return total

    def losses_at(step: int) -> dict[str, Tensor]:
        batch = [pairs[i] for i in plan[step]]
        return objectives(model, heads, words, batch, recipe, [schedule.seed, 29, step])

    trained: dict[str, nn.Parameter] = {}
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith("embeddings."))
        if p.requires_grad:
            trained[name] = p
    rates = dict.fromkeys(trained, schedule.lr)
    for name, p in heads.named_parameters():
        trained[f"heads.{name}"] = p
        rates[f"heads.{name}"] = recipe.head_lr
    before = measure()
    until = schedule if stop is None else replace(schedule, steps=stop)
    log = train_stage(title, trained, rates, until, losses_at, checkpoint, identity)
    return Tuned(before, measure(), log)


def make_pairs(words: Words, runs: Runs, max_tokens: int) -> list[Pair]:
    """Neighbouring sentences two by two, as token ids with special tokens."""
    found = [(run[i], run[i + 1]) for run in runs for i in range(0, len(run) - 1, 2)]
    first = words.encode([a for a, _ in found])
    second = words.encode([b for _, b in found])
    return [
        (words.single(a, max_tokens), words.single(b, max_tokens))
        for a, b in zip(first, second, strict=True)
    ]


def objectives(
    model: BertModel,
    heads: Heads,
    words: Words,
    pairs: Sequence[Pair],
    recipe: TuneRecipe,
    seed: Sequence[int],
) -> dict[str, Tensor]:
    """Both losses of N pairs; the vocabulary is projected at masked positions only."""
    rows = [a for a, _ in pairs] + [b for _, b in pairs]
    ids, mask = pad_batch(rows, words.pad)  # [2N, T]
    shown, chosen = hide(ids, words, recipe.masked, seed)
    out = model(input_ids=shown, attention_mask=mask)
    masked = F.cross_entropy(heads.words(out.last_hidden_state[chosen]), ids[chosen])
    first, second = F.normalize(out.pooler_output, dim=1).chunk(2)  # [N, d] each
    logits = first @ second.T / recipe.temperature  # [N, N]
    target = torch.arange(len(pairs))
    following = F.cross_entropy(logits, target)
    return {
        "loss": masked + recipe.next_sentence * following,
        "masked": masked,
        "next_sentence": following,
        "next_sentence_accuracy": (logits.detach().argmax(1) == target).float().mean(),
    }


def hide(ids: Tensor, words: Words, share: float, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """BERT's masking: of the chosen tokens 80% become [MASK], 10% a random token, 10% stay.

    Args:
        ids: [B, T].
    Returns:
        The ids to show [B, T] and which positions to predict [B, T] bool (at least one).
    Source: Devlin et al. 2019, arXiv 1810.04805, section 3.1.
    """
    rng = np.random.default_rng(list(seed))
    draw = torch.from_numpy(rng.random(tuple(ids.shape)))
    how = torch.from_numpy(rng.random(tuple(ids.shape)))
    noise = torch.from_numpy(rng.integers(words.size, size=tuple(ids.shape)))
    special = (ids == words.cls) | (ids == words.sep) | (ids == words.pad)
    draw[special] = 2.0
    chosen = draw < max(share, float(draw.min()) + 1e-12)
    shown = torch.where(chosen & (how < 0.8), words.mask, ids)
    return torch.where(chosen & (how >= 0.9), noise, shown), chosen
