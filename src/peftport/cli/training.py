"""Train one module, measure it, and write it with a card."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from peftport import __version__
from peftport.cli.card import module_card
from peftport.data.datasets import Dataset
from peftport.data.tasks import Task, encode
from peftport.errors import RunError
from peftport.formats import library_for, save_module
from peftport.hosts.load import Host
from peftport.hosts.packed.device import wide
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, Module
from peftport.train.evaluate import bank_scores, class_scores
from peftport.train.fused import Slot, train_bank, trains_in_banks
from peftport.train.metrics import metrics
from peftport.train.reference import TrainSpec, fresh_module, train

#: a progress bar moves so often; each move costs a copy of the module
TICKS = 20


@dataclass(frozen=True)
class Trained:
    """A trained module and what is known of it.

    Attributes:
        module: the module; its notes hold the facts below.
        spec: its host.
        facts: host, data, task, training and scores, as JSON.
        seconds: how long the training took.
    """

    module: Module
    spec: HostSpec
    facts: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**self.facts, "seconds": round(self.seconds, 1)}

    def sentence(self) -> str:
        """One line for a terminal."""
        scores, data = self.facts["scores"], self.facts["data"]
        return (
            f"{self.facts['method']['method']} on {self.facts['host']['name']}: balanced accuracy "
            f"{scores['balanced_accuracy']:.3f}, AUC {scores['auc']:.3f} on {data['test']} test "
            f"sentences ({self.facts['training']['steps']} steps in {self.seconds:.0f} s)."
        )

    def save(self, folder: Path) -> None:
        """Write the module and its card; the folder appears whole or not at all."""
        library, _ = library_for(self.module, self.spec)
        card = module_card(self.facts, library)
        save_module(self.module, folder, spec=self.spec, extra={"README.md": card})


def run_training(
    host: Host, config: MethodConfig, dataset: Dataset, task: Task, spec: TrainSpec, *, quiet: bool
) -> Trained:
    """Train on source-train, score the test split: with the reference trainer, or as a bank of one
    where the host's weights are narrower than float32 or lie on an accelerator.

    Raises:
        InputError: a split without examples.
        RunError: the training diverged.
    """
    learn, test = dataset.split("source-train"), dataset.split("test")
    texts = encode(host.tokenizer, [example.text for example in learn], task)
    labels = [example.label for example in learn]
    ticks = sorted({round(spec.steps * i / TICKS) for i in range(1, TICKS + 1)})
    start = fresh_module(host, config, spec.seed)
    plain = host.device.type == "cpu" and wide(host.dtype) == host.dtype
    in_bank = not plain and trains_in_banks(host, config)
    if in_bank:
        trained = _bank_of_one(host, Slot(start, texts, labels, spec), ticks)
    else:
        trained = train(host, start, texts, labels, spec, ticks)
    began = time.monotonic()
    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=spec.steps, unit="step", desc=config.method, disable=hidden) as bar:
        for step, reached in trained:
            bar.update(step - bar.n)
            module = reached
    seconds = time.monotonic() - began
    truth = np.array([example.label for example in test])
    encoded = encode(host.tokenizer, [example.text for example in test], task)
    if in_bank:
        [scores] = bank_scores(host, [module], encoded)
    else:
        scores = class_scores(host, module, encoded)
    if not np.isfinite(scores).all():
        raise RunError(
            f"{config.method} on '{host.ref}' diverged: its scores after {spec.steps} steps are "
            "not finite; lower the rate"
        )
    facts = {
        "peftport": __version__,
        "method": module.config.to_json(),
        "parameters": module.size,
        "host": {
            "name": host.ref,
            "family": host.spec.family,
            "head": host.head,
            "fingerprint": host.spec.fingerprint,
            "dtype": str(host.dtype).removeprefix("torch."),
            "device": host.device.type,
        },
        "data": {
            "name": dataset.name,
            "digest": dataset.digest,
            "classes": list(dataset.classes),
            "train": len(learn),
            "test": len(test),
        },
        "task": task.to_json(),
        "training": asdict(spec),
        "scores": metrics(scores, truth),
        "host_alone": metrics(class_scores(host, None, encoded), truth),
    }
    notes = {**facts, "head": host.head}  # the kind of head decides the format
    return Trained(replace(module, notes=notes), host.spec, facts, seconds)


def _bank_of_one(host: Host, slot: Slot, ticks: Sequence[int]) -> Iterator[tuple[int, Module]]:
    """What the reference trainer does, as a bank."""
    for step, [made] in train_bank(host, [slot], ticks):
        if isinstance(made, RunError):
            raise made
        yield step, made
