"""Writes figures and tables to folders, each file whole or not at all."""

from __future__ import annotations

from pathlib import Path

from peftport.atomic import write_bytes
from peftport.errors import InputError
from peftport.report import figures, html, tables
from peftport.report.build import Report


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
    """Every figure as SVG and PNG, drawn in black; the PNG on white."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, svg in html.svgs(report, ink="#000000").items():
        for kind, content in (("svg", svg.encode()), ("png", figures.to_png(svg))):
            written.append(folder / f"{_file_name(name)}.{kind}")
            write_bytes(written[-1], content)
    return written


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Every table as CSV (all digits) and Markdown (three decimals)."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, table in report.tables.items():
        csv = table.to_csv(index=False, lineterminator="\n")
        for kind, content in (("csv", csv), ("md", tables.to_markdown(table))):
            written.append(folder / f"{name}.{kind}")
            write_bytes(written[-1], content.encode())
    return written


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in name)[:80]
