"""``peftport migrate``: a folder of adapters to a new host, with a triage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from peftport.cli.assess import columns_from, measuring_options, settings_from
from peftport.cli.options import (
    echo_json,
    echo_table,
    json_option,
    push_options,
    quiet_option,
)

#: characters of a reason on a terminal; the files hold all of it
_WHY = 100


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="HOST",
              help="The new host: packaged name, Hub id@revision or folder.")  # fmt: skip
@click.option(
    "--data",
    required=True,
    metavar="DATA|TABLE",
    help="One dataset for all, or a csv or YAML table: adapter, dataset, labels, task.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path),
              help="Folder of the results; the same one goes on.")  # fmt: skip
@click.option("--repair", type=int, default=0, show_default=True, metavar="STEPS",
              help="Train what does not pass for so many steps, and look again.")  # fmt: skip
@click.option("--accept", type=float, default=0.9, show_default=True, metavar="RECOVERY",
              help="Write what recovers more; its interval must lie above.")  # fmt: skip
@click.option("--source", metavar="HOST",
              help="The host of all adapters.  [default: what each folder says]")  # fmt: skip
@click.option("--strategy", default="auto", show_default=True, metavar="NAME",
              help="A name of 'peftport list strategies', or auto.")  # fmt: skip
@click.option("--text-column", help="Column of the text, where DATA is one dataset.")
@click.option("--label-column", help="Column of the label, where DATA is one dataset.")
@click.option("--lm", "language_model", is_flag=True,
              help="No labels: measure the loss of held-out text (decoder hosts).")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N",
              help="Do about so many adapters now; the same command goes on.")  # fmt: skip
@measuring_options("0,10,30", seeds=3)
@push_options
@json_option
@quiet_option
def migrate(
    folder: Path,
    target: str,
    data: str,
    output: Path,
    repair: int,
    accept: float,
    source: str | None,
    strategy: str,
    text_column: str | None,
    label_column: str | None,
    language_model: bool,
    limit: int | None,
    push_to_hub: str | None,
    public: bool,
    as_json: bool,
    quiet: bool,
    **measuring: Any,
) -> None:
    """Port and assess every adapter below FOLDER; write those that pass.

    The triage says of each: keep, repaired, retrain, or refused and why. An interrupted migration
    goes on with the same command.

    \b
    Example:
      peftport migrate adapters --target minilm-base --data reviews.csv -o migrated --repair 30
      peftport migrate adapters --target org/host --data table.yaml -o migrated
    """
    settings = settings_from(measuring, accept)
    from peftport.hub import check_push, push

    if push_to_hub is not None:
        check_push(push_to_hub)
    from peftport.migrating import migrate as run
    from peftport.migrating.triage import COLUMNS, CSV, HTML

    found = run(
        folder,
        target,
        data,
        output,
        source=source,
        strategy=strategy,
        repair=repair,
        columns=columns_from(text_column, label_column),
        language_model=language_model,
        settings=settings,
        limit=limit,
        quiet=quiet or as_json,
    )
    where = ""
    if push_to_hub is not None and (found.count("keep") or found.count("repaired")):
        only = ("adapters/**", CSV, HTML)
        where = push(found.folder, push_to_hub, public=public, only=only)
    if as_json:
        echo_json([asdict(line) for line in found.lines])
        return
    rows = [line.shown for line in found.lines]
    echo_table(COLUMNS, ([*row[:-1], _short(row[-1])] for row in rows))
    kinds = ("keep", "repaired", "retrain", "refused")
    click.echo(f"\n{', '.join(f'{found.count(kind)} {kind}' for kind in kinds)}.")
    click.echo(f"Saved in {output}: {CSV}, {HTML}, adapters")
    if where:
        click.echo(f"Pushed to {where}")


def _short(text: str) -> str:
    return text if len(text) <= _WHY else text[: _WHY - 1] + "…"
