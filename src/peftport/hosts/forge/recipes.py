"""What the default hosts are made by. The cards print these very objects."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace


@dataclass(frozen=True)
class Schedule:
    """AdamW with a linear warm-up to ``lr``, then a cosine down to zero."""

    steps: int
    batch: int
    lr: float
    warmup: int
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.warmup < self.steps or self.lr <= 0:
            raise ValueError(f"schedule needs steps > warmup >= 0, batch >= 1, lr > 0, got {self}")

    def share(self, step: int) -> float:
        """Share of the full learning rate at a step (from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        return 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """AdamW with a linear warm-up to ``lr``, which then stays: where it stops changes nothing of
    what came before."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.warmup < 0 or self.lr <= 0:
            raise ValueError(f"schedule needs steps, batch >= 1, warmup >= 0, lr > 0, got {self}")

    def share(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0


@dataclass(frozen=True)
class CutRecipe:
    """How minilm-base is cut from minilm-large before any training.

    Attributes:
        layers: layers of the parent that are kept, by stride.
        d_model, heads, d_ff: the cut's shape; the width of a head stays the parent's.
        texts: sentences that the statistics (PCA, importance, layer norms) come from.
        max_tokens: sentences are cut there.
        seed: of the rotation inside the kept subspace.
    """

    layers: tuple[int, ...] = (0, 2, 4)
    d_model: int = 256
    heads: int = 8
    d_ff: int = 1024
    texts: int = 1500
    max_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True)
class HealRecipe:
    """Distillation of minilm-large into the cut: loss = MSE of the last hidden states +
    ``pooled`` x MSE of the pooled outputs in units of their variance + ``cosine`` x (1 - cosine
    of mean-pooled sentences)."""

    schedule: Schedule = field(default_factory=lambda: Schedule(1100, 64, 1e-3, 100))
    pooled: float = 0.1
    cosine: float = 0.1
    max_tokens: int = 64
    held_out: int = 512


@dataclass(frozen=True)
class TuneRecipe:
    """Continued pretraining: masked language modelling plus next-sentence choice.

    Attributes:
        schedule: a batch is that many pairs of neighbouring sentences.
        head_lr: for the MLM transform, which starts fresh and is thrown away.
        masked: share of tokens to predict; of those 80% become [MASK], 10% a random token.
        next_sentence: weight of the next-sentence loss, which trains the pooler.
        temperature: of the softmax over cosines of pooled outputs.
        max_tokens: of each sentence.
        held_out: pairs to measure losses on.
    """

    schedule: Schedule
    head_lr: float = 2e-3
    masked: float = 0.15
    next_sentence: float = 1.0
    temperature: float = 0.05
    max_tokens: int = 48
    held_out: int = 256


LARGE_TUNED = TuneRecipe(Schedule(steps=1000, batch=16, lr=4e-4, warmup=100, seed=1))
BASE_TUNED = TuneRecipe(Schedule(steps=1000, batch=16, lr=5e-4, warmup=100, seed=2))


def quick(recipe: HealRecipe | TuneRecipe) -> HealRecipe | TuneRecipe:
    """The same recipe in a few steps: checks the code, makes no useful host."""
    return replace(
        recipe, schedule=replace(recipe.schedule, steps=6, batch=4, warmup=1), held_out=8
    )


def recipe_digest(*parts: object) -> str:
    """Identity of recipes (dataclasses) and plain values, for checkpoints."""
    facts = [asdict(p) if hasattr(p, "__dataclass_fields__") else p for p in parts]  # type: ignore[call-overload]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
