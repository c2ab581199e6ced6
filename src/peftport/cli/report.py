"""``peftport report``: a study's page, its tables and the four answers."""

from __future__ import annotations

from pathlib import Path

import click

from peftport.cli.options import echo_json, json_option, quiet_option
from peftport.errors import InputError


@click.command()
@click.argument("store", metavar="DIR", type=click.Path(path_type=Path))
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

    \b
    Example:
      peftport report runs/quick -o report.html
      peftport report runs/quick --tables tables --figures figures
      peftport report runs/mini --with runs/mini-ablations -o mini.html
    """
    from peftport.report import output as write
    from peftport.report import terminal
    from peftport.report.build import build
    from peftport.report.exported import is_export, read_export
    from peftport.report.source import read_evidence

    if output is not None:
        write.check_file(output)
    for folder in (figures, tables):
        if folder is not None:
            write.check_folder(folder)
    if is_export(store) and more:
        raise InputError("--with needs stores; give the study's own store, not its export")
    made = build(read_export(store) if is_export(store) else read_evidence(store, more))
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
