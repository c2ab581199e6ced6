"""``peftport assess``: what one adapter is worth on another host, on the user's own data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from peftport.cli.options import echo_json, echo_table, json_option, quiet_option, read_mapping
from peftport.errors import InputError

if TYPE_CHECKING:
    from peftport.assessing import Settings
    from peftport.data.columns import Columns

Command = TypeVar("Command", bound=Callable[..., Any])


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """``0,10,30``"""

    name = "N,N,..."

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected numbers like 0,10,30, got '{value}'", param, ctx)


def measuring_options(budgets: str, seeds: int) -> Callable[[Command], Command]:
    """How modules are trained and judged; passed by name, read by :func:`settings_from`."""
    options = [
        click.option("--budgets", type=Numbers(int), default=budgets, show_default=True,
                     help="Steps before each measurement; begins with 0."),
        click.option("--seeds", type=int, default=seeds, show_default=True,
                     help="Trainings of every init."),
        click.option("--native-steps", type=int, default=150, show_default=True,
                     help="Steps of native modules, the ceiling of recovery."),
        click.option("--no-native", is_flag=True,
                     help="Train none: recovery stays unknown, so nothing can be said to work."),
        click.option("--rates", type=Numbers(float), default="0.001,0.003,0.01", show_default=True,
                     help="Short list of learning rates, chosen from for every init."),
        click.option("--head-rates", type=Numbers(float), default="0.001,0.01", show_default=True,
                     help="The same for the head."),
        click.option("--batch", type=int, default=16, show_default=True, help="Examples a step."),
        click.option("--sampled", default="gaussian", show_default=True, metavar="KIND",
                     help="How the sampled control is drawn: gaussian, permuted or spectrum."),
        click.option("--test", type=int, default=1000, show_default=True,
                     help="Use at most so many test texts."),
        click.option("--margin", type=float, default=0.05, show_default=True,
                     help="A lead over scratch that is worth having, in points of the score."),
        click.option("--level", type=float, default=0.05, show_default=True,
                     help="Level of the tests against the controls, Holm-corrected over budgets."),
        click.option("--bank", type=click.IntRange(1), default=16, show_default=True,
                     help="Most modules that are trained together."),
    ]  # fmt: skip

    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def settings_from(given: dict[str, Any], accept: float) -> Settings:
    """What :func:`measuring_options` passed."""
    from peftport.assessing import Settings, Thresholds

    names = ("budgets", "seeds", "rates", "head_rates", "batch", "sampled", "test", "bank")
    return Settings(
        **{name: given[name] for name in names},
        native_steps=0 if given["no_native"] else given["native_steps"],
        thresholds=Thresholds(accept, given["margin"], given["level"]),
    )


def columns_from(text: str | None, label: str | None) -> Columns | None:
    """Named columns; None where the usual ones are meant."""
    from peftport.data.columns import Columns

    if text is None and label is None:
        return None
    usual = Columns()
    return replace(usual, text=text or usual.text, label=label or usual.label)


def labels_from(pairs: tuple[str, ...]) -> dict[str, int | str] | None:
    """``("neg=0", "pos=positive")`` as a label map; None without any."""
    found: dict[str, int | str] = {}
    for pair in pairs:
        name, equals, value = pair.rpartition("=")
        if not equals or not name or not value:
            raise InputError(f"--label expects DATA=ADAPTER, got '{pair}'; e.g. --label pos=1")
        found[name] = value
    return found or None


@click.command()
@click.argument("adapter")
@click.option("--target", required=True, metavar="HOST",
              help="The new host: packaged name, Hub id@revision or folder.")  # fmt: skip
@click.option("--data", required=True, metavar="DATA",
              help="Labelled texts: dataset, csv, jsonl, parquet, folder, Hub id.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="New folder for summary, facts and scores.")  # fmt: skip
@click.option("--task", "task_file", type=click.Path(path_type=Path),
              help="YAML of the task.  [default: what the adapter records]")  # fmt: skip
@click.option("--source", metavar="HOST",
              help="The host it was trained on.  [default: what its folder says]")  # fmt: skip
@click.option("--strategy", default="auto", show_default=True, metavar="NAME",
              help="A name of 'peftport list strategies', or auto.")  # fmt: skip
@click.option("--text-column", help="Column of the text.  [default: text]")
@click.option("--label-column", help="Column of the label.  [default: label]")
@click.option("--label", "labels", multiple=True, metavar="DATA=ADAPTER",
              help="Which class of the data is which of the adapter's.")  # fmt: skip
@click.option("--lm", "language_model", is_flag=True,
              help="No labels: measure the loss of held-out text (decoder hosts).")  # fmt: skip
@click.option("--accept", type=float, default=0.9, show_default=True, metavar="RECOVERY",
              help="Recovery that counts as working; its interval must lie above.")  # fmt: skip
@measuring_options("0,10,30,100", seeds=5)
@json_option
@quiet_option
def assess(
    adapter: str,
    target: str,
    data: str,
    output: Path | None,
    task_file: Path | None,
    source: str | None,
    strategy: str,
    text_column: str | None,
    label_column: str | None,
    labels: tuple[str, ...],
    language_model: bool,
    accept: float,
    as_json: bool,
    quiet: bool,
    **measuring: Any,
) -> None:
    """What is ADAPTER worth on another host, on your own data?

    It is ported, and modules that start as it, as noise of its distribution and from scratch are
    trained side by side, beside native modules. The first line answers: works as it is, works
    after N steps, ahead of scratch, no better than scratch, worse, or can't tell.

    \b
    Example:
      peftport assess out/lora --target minilm-base --data reviews.csv -o out/lora-assessed
      peftport assess org/adapter --target org/host --data org/data --budgets 0,10,30 --seeds 3
    """
    settings = settings_from(measuring, accept)
    task = dict(read_mapping(task_file, "task")) if task_file else None
    given = labels_from(labels)
    from peftport.assessing import assess as run
    from peftport.assessing.show import HEADER, sentences, table

    def tell(what: str, count: int) -> None:
        if not quiet and not as_json:
            click.echo(f"training: {what} ({count})", err=True)

    found = run(
        adapter,
        target,
        data,
        output,
        source=source,
        strategy=strategy,
        task=task,
        columns=columns_from(text_column, label_column),
        labels=given,
        language_model=language_model,
        settings=settings,
        progress=tell,
    )
    if as_json:
        echo_json(found.facts())
        return
    answer, *rest = sentences(found)
    click.echo(answer)
    click.echo()
    echo_table(HEADER, table(found.judgement))
    click.echo()
    for line in rest:
        click.echo(line)
    if output is not None:
        click.echo(f"Saved in {output}")
