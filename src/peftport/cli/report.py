"""``peftport report``: a study's page, its tables and the four answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftport.cli.options import echo_json, json_option, quiet_option
from peftport.errors import InputError

if TYPE_CHECKING:
    from peftport.report.evidence import Evidence


@click.command()
@click.argument("store", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("other", metavar="[OTHER]", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="HTML page to write; one file that opens offline.")  # fmt: skip
@click.option("--figures", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Write every figure as SVG, PDF and PNG.")  # fmt: skip
@click.option("--tables", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Write every table as CSV, Markdown and LaTeX.")  # fmt: skip
@click.option("--with", "more", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Another store, for its ablations and native modules; repeatable.")  # fmt: skip
@json_option
@quiet_option
def report(
    store: Path,
    other: Path | None,
    output: Path | None,
    figures: Path | None,
    tables: Path | None,
    more: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Report a study: the four answers and the scores here, everything in the page.

    DIR is the store of a study, finished or not; the report says what is missing. An exported
    table (csv, parquet) will do too: intervals then hold the test sentences fixed.

    With OTHER, the store or export of another study, the two are compared: what was run
    differently, and which differences are beyond noise.

    \b
    Example:
      peftport report runs/quick -o report.html
      peftport report runs/quick --tables tables --figures figures
      peftport report runs/mini --with runs/mini-ablations -o mini.html
      peftport report runs/here runs/there -o differences.html
    """
    from peftport.report import output as write
    from peftport.report import terminal
    from peftport.report.build import build

    if output is not None:
        write.check_file(output)
    for folder in (figures, tables):
        if folder is not None:
            write.check_folder(folder)
    evidence = _evidence(store, more)
    if other is not None:
        _compare(evidence, _evidence(other, ()), output, figures or tables, as_json, quiet)
        return
    made = build(evidence)
    if output is not None:
        write.write_page(made, output)
    if figures is not None:
        write.write_figures(made, figures)
    if tables is not None:
        write.write_tables(made, tables)
    if as_json:
        echo_json(terminal.data(made))
    elif not quiet:
        click.echo(terminal.text(made))
        for path in (output, figures, tables):
            if path is not None:
                click.echo(f"wrote {path}")


def _evidence(path: Path, more: tuple[Path, ...]) -> Evidence:
    from peftport.report.exported import is_export, read_export
    from peftport.report.source import read_evidence

    if not is_export(path):
        return read_evidence(path, more)
    if more:
        raise InputError("--with needs stores; give the study's own store, not its export")
    return read_export(path)


def _compare(
    first: Evidence, second: Evidence, output: Path | None, folder: Path | None, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    from peftport.atomic import write_text
    from peftport.report import compare
    from peftport.report.resample import DRAWS

    if folder is not None:
        raise InputError("--figures and --tables are of one study; give them with one DIR")
    found = compare.compare(first, second, DRAWS)
    if output is not None:
        write_text(output, compare.page(found))
    if as_json:
        echo_json(compare.data(found))
    elif not quiet:
        click.echo(compare.text(found))
        if output is not None:
            click.echo(f"wrote {output}")
