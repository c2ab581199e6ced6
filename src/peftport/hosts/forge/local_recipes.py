"""What the hosts that are built on the user's machine are made by; the cards print this."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from peftport.hosts.forge.recipes import ConstantSchedule, HealRecipe, Schedule, TuneRecipe


@dataclass(frozen=True)
class ShallowRecipe:
    """minilm-shallow: some layers of minilm-large at its width, healed by distillation.

    Attributes:
        layers: layers of the parent that are kept.
        texts: sentences that the variance of pooled outputs comes from.
        heal: see :class:`~peftport.hosts.forge.recipes.HealRecipe`.
    """

    layers: tuple[int, ...] = (0, 2, 4)
    texts: int = 1500
    heal: HealRecipe = field(
        default_factory=lambda: HealRecipe(Schedule(300, 32, 5e-4, 30, seed=3))
    )


@dataclass(frozen=True)
class WordsRecipe:
    """minilm-words: minilm-large behind a vocabulary of its own.

    Loss = MSE of the last hidden states at the last piece of every word + ``pooled`` x MSE of the
    pooled outputs in units of their variance + ``cosine`` x (1 - cosine of mean-pooled sentences).

    Attributes:
        vocabulary: tokens of the WordPiece vocabulary, special ones included.
        trained_layers: lowest encoder layers that are trained beside the word embeddings.
        layer_lr: their full learning rate; the embeddings have the schedule's.
        max_tokens: longer sentences are left out.
        texts: sentences that the variance of pooled outputs comes from.
        held_out: sentences to measure losses on.
    """

    vocabulary: int = 8000
    trained_layers: int = 1
    layer_lr: float = 2e-4
    schedule: Schedule = field(default_factory=lambda: Schedule(400, 16, 1e-3, 40, seed=4))
    pooled: float = 0.1
    cosine: float = 0.1
    max_tokens: int = 64
    texts: int = 1500
    held_out: int = 512


@dataclass(frozen=True)
class SiblingRecipe:
    """smollm2-sibling: some layers of smollm2-135m; first the matrices that the kept layers write
    with are refitted by least squares (see ``absorb.py``), then all is trained by distillation.

    Loss = KL of the next token's distribution at ``temperature`` (times its square) +
    ``hidden`` x MSE of the last hidden states in units of their variance + ``stream`` x mean over
    the layers of (1 - cosine) between the residual streams that the next kept layer reads.

    Attributes:
        layers: layers of the parent that are kept.
        fitted: sentences for the least squares; ``ridge`` is its penalty.
        texts: sentences to train on; every other one stands in the prompt.
        prompt: what a sentence stands in.
        every: the next token is compared at every so many-th position, and at the last one.
        max_tokens: rows are cut there; a sentence is shortened so that its prompt stays whole.
        held_out: rows to measure losses on.
    """

    layers: tuple[int, ...]
    schedule: Schedule
    fitted: int = 1000
    ridge: float = 1e-2
    texts: int = 20_000
    prompt: str = "Review: {text} Sentiment:"
    temperature: float = 1.0
    hidden: float = 1.0
    stream: float = 1.0
    every: int = 4
    max_tokens: int = 48
    held_out: int = 64


@dataclass(frozen=True)
class DriftRecipe:
    """minilm-base-drift-1 to -6: minilm-base along one continued pretraining at a constant rate.

    Attributes:
        tune: objective and schedule, as minilm-base-tuned's.
        stops: steps after which a descendant is saved, one for each host.
    """

    tune: TuneRecipe = field(
        default_factory=lambda: TuneRecipe(ConstantSchedule(2600, 16, 1e-3, 100, seed=5))
    )
    stops: tuple[int, ...] = (30, 50, 95, 300, 1000, 2600)


def evenly(count: int, of: int) -> tuple[int, ...]:
    """``count`` of the numbers 0..of-1, evenly, the first and the last among them."""
    return tuple(round(i * (of - 1) / (count - 1)) for i in range(count))


def quick(recipe: Any) -> Any:
    """The same recipe in a few steps: checks the code, makes no useful host."""
    if isinstance(recipe, ShallowRecipe):
        return replace(recipe, texts=8, heal=quick(recipe.heal))
    if isinstance(recipe, DriftRecipe):
        return replace(recipe, tune=quick(recipe.tune), stops=(1, 2, 3, 4, 5, 6))
    short = replace(recipe.schedule, steps=6, batch=4, warmup=1)
    found = replace(recipe, schedule=short, held_out=8)
    if isinstance(found, WordsRecipe):
        found = replace(found, vocabulary=300, texts=8)
    if isinstance(found, SiblingRecipe):
        found = replace(found, fitted=16, texts=64)
    return found
