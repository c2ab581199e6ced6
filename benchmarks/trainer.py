"""transformers' Trainer set up to do what a bank does: constant rate, no decay, rows in order."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from peftport.train.reference import TrainSpec


def constant_rate(folder: str, spec: TrainSpec, **own: Any) -> TrainingArguments:
    """Arguments for ``spec``; nothing is logged or saved.

    Args:
        folder: the Trainer insists on one.
        own: what differs between machines.
    """
    return TrainingArguments(
        folder,
        max_steps=spec.steps,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=spec.clip,
        train_sampling_strategy="sequential",  # the rows are in their order
        label_names=["labels"],
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **own,
    )
