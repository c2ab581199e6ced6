"""``peftport track``: a study's results into a tracker of experiments."""

from __future__ import annotations

from pathlib import Path

import click

from peftport.cli.options import quiet_option


@click.command()
@click.argument("folder", metavar="STORE", type=click.Path(path_type=Path))
@click.option("--to", "tracker", required=True, metavar="NAME", help="mlflow or trackio.")
@click.option("--project", metavar="NAME",
              help="Project or experiment there.  [default: the study's name]")  # fmt: skip
@click.option(
    "--place",
    metavar="WHERE",
    help="MLflow: a tracking URI; trackio: the id of a Space.  [default: its own]",
)
@quiet_option
def track(folder: Path, tracker: str, project: str | None, place: str | None, quiet: bool) -> None:
    """Write the finished runs of a study into a tracker: one run each, metrics at its budgets.

    It reads the store and nothing else. What is there already is left alone, so the same command
    adds what was finished since.

    \b
    Example:
      peftport track runs/quick --to mlflow --place sqlite:///mlflow.db
      peftport track runs/quick --to trackio --project ports
    """
    from peftport.study.exporters.base import exporters
    from peftport.study.store import Store

    exporter = exporters.get(tracker)()
    with Store.read(folder) as store:
        name = project or store.study.name
        count = exporter.export(store, name, place)
    if not quiet:
        click.echo(f"wrote {count} runs to {tracker}, project {name}", err=True)
