"""Writes figures and tables to folders, each file whole or not at all."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import pandas as pd

from peftport.atomic import write_bytes
from peftport.errors import InputError
from peftport.report import html, tables
from peftport.report.build import Report
from peftport.report.evidence import METRIC_NAMES
from peftport.report.explore import ALL
from peftport.report.figures import panels, style
from peftport.report.figures.curves import learning_curves

#: file names that differ from a figure's name on the page
NAMES = {"effects": "differences"}


def check_file(path: Path) -> None:
    """Raises InputError unless a file can be written there."""
    if path.is_dir():
        raise InputError(f"cannot write '{path}': it is a folder; give a file, e.g. report.html")
    if not path.absolute().parent.is_dir():
        raise InputError(f"cannot write '{path}': its folder does not exist; make it first")


def check_folder(path: Path) -> None:
    """Raises InputError where a folder cannot be made."""
    if path.exists() and not path.is_dir():
        raise InputError(f"cannot write into '{path}': it is a file; give a folder")
    if not path.exists():
        check_file(path)


def write_page(report: Report, path: Path) -> None:
    write_bytes(path, html.render(report).encode())


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Every figure as SVG, PDF and PNG, drawn in black; the PNG on white."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, (chart, label) in charts(report).items():
        svg = style.to_svg(chart, label, ink="#000000")
        kinds = {"svg": svg.encode(), "pdf": style.to_pdf(svg), "png": style.to_png(svg)}
        for kind, content in kinds.items():
            written.append(folder / f"{_file_name(name)}.{kind}")
            write_bytes(written[-1], content)
    return written


def charts(report: Report) -> dict[str, tuple[alt.Chart, str]]:
    """Every figure with what it shows, by file name: those of the page as it opens, and learning
    curves of every method with a panel for each host pair."""
    evidence, made = report.evidence, {}
    filters = {"metric": report.metric, "method": ALL, "pair": ALL, "data": ALL,
               "budget": evidence.budgets[0]}  # fmt: skip
    for panel in panels.shown(report.explored):
        rows = panels.chosen(panel, report.explored[panel.table], filters)
        if len(rows):
            name = NAMES.get(panel.name, panel.name)
            made[name] = (panels.static(panel, rows), f"{panel.title}. {panel.caption}")
    scores = report.tables["scores"]
    for method, chart in learning_curves(evidence, scores, report.metric).items():
        label = f"{method}: {METRIC_NAMES[report.metric]} by steps on the target and init."
        made[f"curves-{method}"] = (chart, label)
    return made


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Every table as CSV (all digits), Markdown and LaTeX (three decimals); what the page explores
    as CSV."""
    folder.mkdir(exist_ok=True)
    files: dict[str, str] = {}
    for name, table in report.tables.items():
        files[f"{name}.csv"] = _csv(table)
        files[f"{name}.md"] = tables.to_markdown(table)
        files[f"{name}.tex"] = tables.to_latex(table)
    files |= {f"explored-{n}.csv": _csv(t) for n, t in report.explored.items() if len(t)}
    for name, content in files.items():
        write_bytes(folder / name, content.encode())
    return [folder / name for name in files]


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n"))


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in name)[:80]
