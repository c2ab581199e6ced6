"""What benchmarks/bank_vs_peft.py trains: texts, modules, and the order of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from unittest.mock import patch

import numpy as np

from peftport.data.batches import train_batches
from peftport.data.datasets import load_dataset
from peftport.data.tasks import Encoded, Task, encode
from peftport.errors import InputError
from peftport.hosts.load import Host, load_host
from peftport.methods.base import methods
from peftport.testing.pico import pico_reviews
from peftport.train.fused import Slot, train_bank
from peftport.train.reference import TrainSpec, fresh_module

ORDERS = ("shuffled", "bucketed")
_LINEAR = ("q", "k", "v", "o", "up", "gate", "down")
#: training texts whose loss is compared after the last step
_HELD = 64


@dataclass(frozen=True)
class Settings:
    """What is trained and measured.

    Attributes:
        host: packaged name, path or Hub id of an encoder with a classification head.
        method: method name.
        steps, batch, lr: of every training; head and body share the rate, no dropout, no decay,
            gradients clipped at 1.
        order: one of :data:`ORDERS`.
        data: a dataset's name, or ``pico``.
        sentences: how many test sentences are scored.
    """

    host: str
    method: str
    steps: int = 20
    batch: int = 16
    lr: float = 3e-3
    order: str = "shuffled"
    data: str = "rotten-tomatoes"
    sentences: int = 300


class Work:
    """One host, one method and their texts. Training k starts from a module of seed k and reads
    batches of seed k."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.host: Host = load_host(settings.host)
        if not self.host.family.head_parameters(self.host.model):
            raise InputError(
                f"host '{settings.host}' has no classification head; the benchmark needs one"
            )
        self.config = methods.get(settings.method)().default_config(self.host.spec)
        train, test = _texts(settings.data)
        test = test[: settings.sentences]
        self.encoded = self._encode([text for text, _ in train])
        self.labels = [label for _, label in train]
        self.test = self._encode([text for text, _ in test])

    def _encode(self, texts: Sequence[str]) -> Encoded:
        return encode(self.host.tokenizer, texts, Task())

    def slot(self, seed: int) -> Slot:
        own = self.settings
        spec = TrainSpec(steps=own.steps, lr=own.lr, batch_size=own.batch, seed=seed)
        module = fresh_module(self.host, self.config, seed)
        return Slot(module, self.encoded, self.labels, spec)

    @property
    def held(self) -> tuple[Encoded, list[int]]:
        """Training texts, evenly spread, whose mean cross entropy is a training's final loss."""
        every = max(1, len(self.labels) // _HELD)
        return Encoded(self.encoded.ids[::every][:_HELD]), self.labels[::every][:_HELD]

    def batches(self, slot: Slot) -> list[list[int]]:
        """The rows of every step's batch."""
        own = slot.spec
        make = train_batches if self.settings.order == "bucketed" else shuffled_batches
        return make(slot.encoded.lengths, own.batch_size, own.steps, own.seed)

    def tokens(self, slots: Sequence[Slot], *, padded: bool = False) -> int:
        """Tokens that trainings read, padding left out or in."""
        total = 0
        for slot in slots:
            lengths = np.asarray(slot.encoded.lengths)[self.batches(slot)]  # [steps, B]
            total += int(lengths.max(1).sum() * lengths.shape[1] if padded else lengths.sum())
        return total

    @cached_property
    def operations(self) -> int:
        """Operations a token costs in training: 2 forward and 2 backward (the weights are frozen,
        so only the gradient of the input is computed) for every weight of the host's linear
        layers. Attention, norms, embeddings, the module and the head are not counted."""
        sites = self.host.spec.sites
        return 4 * sum(site.d_in * site.d_out for site in sites if site.role in _LINEAR)


def _texts(data: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(training, test) sentences with labels."""
    if data == "pico":
        return pico_reviews(300), pico_reviews(100, seed=1)
    found = load_dataset(data)
    train, test = (
        [(e.text, e.label) for e in found.split(name)] for name in ("source-train", "test")
    )
    return train, test


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, steps: int, seed: int
) -> list[list[int]]:
    """``train_batches`` without its bucketing: each epoch one random permutation, as a DataLoader
    with shuffle=True and Trainer's default sampler read it; what does not fill a batch opens the
    next epoch."""
    random = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.int64)
    while len(order) < steps * batch_size:
        order = np.concatenate([order, random.permutation(len(lengths))])
    batches: list[list[int]] = order[: steps * batch_size].reshape(steps, batch_size).tolist()
    return batches


@contextmanager
def batches_in(order: str) -> Iterator[None]:
    """peftport's trainers read their batches in this order."""
    with ExitStack() as stack:
        if order == "shuffled":
            for trainer in ("fused", "reference"):
                stack.enter_context(
                    patch(f"peftport.train.{trainer}.train_batches", shuffled_batches)
                )
        yield


def run_banks(work: Work, runs: int, bank: int) -> None:
    """So many trainings, a bank after another; nothing is kept."""
    for start in range(0, runs, bank):
        slots = [work.slot(seed) for seed in range(start, min(start + bank, runs))]
        for _ in train_bank(work.host, slots):
            pass
