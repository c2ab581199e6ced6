"""``peftport train``: one module, saved in its library's format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftport.cli.options import (
    device_options,
    echo_json,
    json_option,
    new_folder,
    parse_settings,
    quiet_option,
    read_mapping,
)
from peftport.errors import InputError

if TYPE_CHECKING:
    from peftport.data.datasets import Dataset
    from peftport.data.tasks import Task

#: rates at which each method trains well on the default hosts; a study searches its own
RATES = {"lora": 1e-3, "bottleneck": 1e-3, "compacter": 3e-3, "prefix": 1e-2}


@click.command()
@click.argument("method")
@click.option("--host", required=True, help="Packaged name, Hub id@revision or folder.")
@click.option("--data", required=True, help="Dataset name, Hub id@revision, file or folder.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--steps", default=100, show_default=True, help="Optimiser steps.")
@click.option("--batch", default=16, show_default=True, help="Examples a step.")
@click.option("--lr", type=float, help="Learning rate.  [default: one that suits the method]")
@click.option("--head-lr", type=float, help="Learning rate of the head.  [default: as --lr]")
@click.option("--seed", default=0, show_default=True, help="Start and order of the data.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A method's option.")
@click.option("--task", "task_file", type=click.Path(path_type=Path), help="YAML of the task.")
@click.option("--template", help="What the host reads; {text} stands for the text.")
@click.option("--verbaliser", "words", multiple=True, help="Word of a class, in label order.")
@click.option("--head", type=click.Choice(["pooler", "mean"]), default="pooler", show_default=True,
              help="Classification head of an encoder.")  # fmt: skip
@click.option("--text-column", help="Column of the text.  [default: text]")
@click.option("--label-column", help="Column of the label.  [default: label]")
@device_options()
@json_option
@quiet_option
def train(
    method: str,
    host: str,
    data: str,
    output: Path,
    steps: int,
    batch: int,
    lr: float | None,
    head_lr: float | None,
    seed: int,
    settings: tuple[str, ...],
    task_file: Path | None,
    template: str | None,
    words: tuple[str, ...],
    head: str,
    text_column: str | None,
    label_column: str | None,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train one module of METHOD and save it in its library's format.

    It learns from the data's source-train split and is tested on its test split; what was
    measured goes into the folder's README.md. Without --device and --dtype the reference trainer
    does it; on a GPU or in bfloat16 it is a bank of one.

    \b
    Example:
      peftport train lora --host minilm-base --data rotten-tomatoes -o out/lora
      peftport train prefix --host google/t5-v1_1-base --data reviews.csv -o out/prefix \\
        --set length=8 --template "sentiment: {text}" --label-column stars
    """
    from peftport.hosts.packed.device import dtype_named, use_deterministic, use_device
    from peftport.methods.base import methods
    from peftport.train.reference import TrainSpec

    # what can be refused is refused before the first slow step, in the order of its cost
    kind = methods.get(method)()
    new_folder(output)
    given = parse_settings(settings)
    kind.config_class.from_json(given)
    rate = RATES.get(method, 1e-3) if lr is None else lr
    spec = TrainSpec(steps=steps, lr=rate, head_lr=head_lr, batch_size=batch, seed=seed)
    where, weights = use_device(device or "cpu"), dtype or "float32"
    facts = _task_facts(task_file, template, words)
    dataset = _dataset(data, text_column, label_column)
    task = _task(facts, dataset)

    from peftport.cli.training import run_training
    from peftport.hosts.load import check_length, inspect_host, load_host, longest_text
    from peftport.study.materials import check_dtype, config_of

    host_spec = inspect_host(host)
    check_dtype(host, host_spec, weights)
    config = config_of(method, given, host_spec)
    check_length(host, longest_text(host), task.max_tokens, config.shift)
    if where.type != "cpu":
        use_deterministic(where)
    loaded = load_host(
        host,
        labels=len(dataset.classes),
        head=head,
        dtype=dtype_named(weights),
        device=where,
        verbalisers=task.verbalisers,
    )
    result = run_training(loaded, config, dataset, task, spec, quiet=quiet)
    result.save(output)
    if as_json:
        echo_json({**result.to_json(), "folder": str(output)})
    else:
        click.echo(f"{result.sentence()} Saved in {output}")


def _task_facts(file: Path | None, template: str | None, words: tuple[str, ...]) -> dict[str, Any]:
    """What the user says of the task, checked as far as it can be without the data."""
    from peftport.data.tasks import Task

    if file and (template or words):
        raise InputError("give --task or --template and --verbaliser, not both")
    facts = dict(read_mapping(file, "task")) if file else {}
    if template:
        facts["template"] = template
    if words:
        facts["verbalisers"] = list(words)
    Task.from_json(facts)
    return facts


def _dataset(ref: str, text: str | None, label: str | None) -> Dataset:
    from peftport.data.columns import Columns
    from peftport.data.datasets import load_dataset

    if text is None and label is None:
        return load_dataset(ref)
    columns = Columns()
    return load_dataset(
        ref, columns=replace(columns, text=text or columns.text, label=label or columns.label)
    )


def _task(facts: dict[str, Any], dataset: Dataset) -> Task:
    """The task; the classes' own names are its words unless the user gives others."""
    from peftport.data.tasks import Task

    task = Task.from_json({"verbalisers": list(dataset.classes), **facts})
    task.check(dataset.classes)
    return task
