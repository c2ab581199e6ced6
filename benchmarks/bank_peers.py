"""Four ways to run the same trainings: a bank, the reference trainer, and PEFT twice.

Each side is called with slots, trains them and says how long that took and where it ended. What is
not timed: loading the host, wrapping it for PEFT, setting the initial parameters, tokenising.
"""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bank_work import Work
from peft import (
    PeftConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainer import constant_rate
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer

from peftport.data.tasks import Encoded
from peftport.errors import RunError
from peftport.formats import peft as layout
from peftport.hosts.load import load_host, quiet_transformers
from peftport.methods.attach import attach
from peftport.methods.base import Module
from peftport.train.evaluate import bank_scores, class_scores
from peftport.train.fused import Slot, train_bank
from peftport.train.reference import train


@dataclass(frozen=True)
class Trained:
    """Seconds of some trainings, and the final loss of each."""

    seconds: float
    losses: list[float]


#: name -> training by that way, in the order in which they are printed
Sides = dict[str, Callable[[Sequence[Slot]], Trained]]
#: scores [N, C] of one module by a loop over padded batches of so many texts in the given order
Score = Callable[[Module, int], np.ndarray]


def sides_of(work: Work) -> tuple[Sides, Score]:
    """All ways to train, and the loop that an evaluation is compared with. PEFT's are missing for
    a method that PEFT does not have."""
    sides: Sides = {}
    score: Score = lambda module, rows: _attached_scores(work, module, rows)  # noqa: E731
    if layout.why_not(work.slot(0).module, work.host.spec) is None:
        theirs = Theirs(work)
        sides |= {"trainer": theirs.by_trainer, "loop": theirs.by_loop}
        score = theirs.scores
    sides |= {
        "reference": lambda slots: by_reference(work, slots),
        "bank": lambda slots: by_bank(work, slots)[0],
    }
    return sides, score


def by_bank(work: Work, slots: Sequence[Slot]) -> tuple[Trained, list[Module]]:
    began = time.perf_counter()
    [(_, made)] = train_bank(work.host, slots)
    seconds = time.perf_counter() - began
    modules: list[Module] = []
    for module in made:
        if isinstance(module, RunError):
            raise module
        modules.append(module)
    return Trained(seconds, held_losses(work, modules)), modules


def held_losses(work: Work, modules: Sequence[Module]) -> list[float]:
    """Loss of every module by a bank."""
    held, labels = work.held
    scores = bank_scores(work.host, modules, held)  # [K, N, C]
    return [_loss(torch.from_numpy(s), labels) for s in scores]


def by_reference(work: Work, slots: Sequence[Slot]) -> Trained:
    began = time.perf_counter()
    made = [list(train(work.host, s.module, s.encoded, s.labels, s.spec))[-1][1] for s in slots]
    seconds = time.perf_counter() - began
    held, labels = work.held
    scores = [torch.from_numpy(class_scores(work.host, module, held)) for module in made]
    return Trained(seconds, [_loss(s, labels) for s in scores])


class Theirs:
    """PEFT's model of the same host: a copy of its own, since PEFT rewrites the model.

    The host has no dropout, as in our trainers, also where Trainer puts it in training mode.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        host = load_host(work.settings.host)
        for part in host.model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        if work.settings.method == "prefix":
            _let_prefixes_run(host.model)
        with tempfile.TemporaryDirectory() as folder:
            layout.write(Path(folder), work.slot(0).module, work.host.spec, None)
            config = PeftConfig.from_pretrained(folder)
        config.inference_mode = False
        self._model = get_peft_model(host.model, config)
        self._leaves = [p for p in self._model.parameters() if p.requires_grad]
        self._collate = DataCollatorWithPadding(host.tokenizer)

    def _examples(self, encoded: Encoded, labels: Sequence[int] | None = None) -> list[Any]:
        rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in encoded.ids]
        if labels is None:
            return rows
        return [{**row, "labels": int(label)} for row, label in zip(rows, labels, strict=True)]

    def _set(self, module: Module) -> None:
        with tempfile.TemporaryDirectory() as folder:
            layout.write(Path(folder), module, self._work.host.spec, None)
            tensors = load_file(Path(folder) / layout.WEIGHTS)
        set_peft_model_state_dict(self._model, tensors)
        now = get_peft_model_state_dict(self._model)
        assert set(now) == set(tensors), "PEFT's parameters have other names"
        assert all(torch.equal(now[name], tensors[name]) for name in now), "PEFT kept its own"
        for leaf in self._leaves:
            leaf.grad = None

    def _final_loss(self) -> float:
        held, labels = self._work.held
        return _loss(self._score(held, 64), labels)

    @torch.no_grad()
    def _score(self, encoded: Encoded, rows: int) -> Tensor:
        self._model.eval()
        loader = DataLoader(self._examples(encoded), batch_size=rows, collate_fn=self._collate)
        return torch.cat([self._model(**batch).logits for batch in loader])

    def scores(self, module: Module, rows: int) -> np.ndarray:
        self._set(module)
        return self._score(self._work.test, rows).numpy()

    def by_loop(self, slots: Sequence[Slot]) -> Trained:
        """A DataLoader with PEFT's collator, torch's AdamW, and nothing else."""
        seconds, losses = 0.0, []
        for slot in slots:
            self._set(slot.module)
            self._model.eval()
            examples = self._examples(slot.encoded, slot.labels)
            batches = self._work.batches(slot)
            began = time.perf_counter()
            loader = DataLoader(examples, batch_sampler=batches, collate_fn=self._collate)
            optimiser = torch.optim.AdamW(self._leaves, lr=slot.spec.lr, weight_decay=0.0)
            for batch in loader:
                loss = self._model(**batch).loss
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._leaves, slot.spec.clip)
                optimiser.step()
            seconds += time.perf_counter() - began
            losses.append(self._final_loss())
        return Trained(seconds, losses)

    def by_trainer(self, slots: Sequence[Slot]) -> Trained:
        """transformers' Trainer; only its ``train()`` is timed."""
        seconds, losses = 0.0, []
        for slot in slots:
            self._set(slot.module)
            examples = self._examples(slot.encoded, slot.labels)
            rows = [row for batch in self._work.batches(slot) for row in batch]
            with tempfile.TemporaryDirectory() as folder, quiet_transformers():
                arguments = constant_rate(
                    folder, slot.spec, use_cpu=True, dataloader_pin_memory=False
                )
                trainer = Trainer(
                    self._model,
                    arguments,
                    train_dataset=[examples[row] for row in rows],  # type: ignore[arg-type]
                    data_collator=self._collate,
                )
                trainer.remove_callback(PrinterCallback)
                began = time.perf_counter()
                trainer.train()
                seconds += time.perf_counter() - began
            losses.append(self._final_loss())
        return Trained(seconds, losses)


def _loss(scores: Tensor, labels: Sequence[int]) -> float:
    return F.cross_entropy(scores, torch.tensor(labels)).item()


@torch.no_grad()
def _attached_scores(work: Work, module: Module, rows: int) -> np.ndarray:
    """What PEFT's loop does, for a method that PEFT does not have: our module attached."""
    host, texts = work.host, work.test
    with attach(host.model, module, spec=host.spec):
        parts = [
            host.family.scores(
                host.model,
                texts.batch(range(start, min(start + rows, len(texts))), host.pad_id),
                host.words,
            )
            for start in range(0, len(texts), rows)
        ]
    return torch.cat(parts).numpy()


def _let_prefixes_run(model: Any) -> None:
    """PEFT 0.21 refuses a prefix on BERT under transformers 5, where the pairs' argument has a new
    name and a mask of two axes may not be longer than the tokens. Both are bridged here, and the
    arithmetic is transformers' own; final losses show that it is the right one."""
    body = model.base_model
    inner = body.forward
    if "past_key_values" in inspect.signature(inner).parameters:
        return

    def forward(
        input_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        seen = attention_mask.bool()[:, None, None]  # [B, 1, 1, l + T]
        mask = seen.expand(-1, -1, input_ids.shape[1], -1)
        return inner(input_ids, attention_mask=mask, cache=past_key_values, **kwargs)

    body.forward = forward
