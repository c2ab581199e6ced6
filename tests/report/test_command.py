"""``peftport report``: what it prints, writes and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftport.cli.main import run


@pytest.fixture
def store(study: Any, tmp_path: Path) -> Path:
    made: Path = study(methods=("lora",), sentences=60).store(tmp_path / "store")
    return made


def test_writes_the_page_and_prints_the_answers(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, tables, figures = tmp_path / "r.html", tmp_path / "t", tmp_path / "f"
    folders = ["--tables", str(tables), "--figures", str(figures)]
    assert run(["report", str(store), "-o", str(page), *folders]) == 0
    out = capsys.readouterr().out
    assert "1. Do ported modules beat modules trained from scratch?  YES" in out
    assert page.read_text().startswith("<!doctype html>")
    names = {"curves", "differences", "pairs", "heat", "saved", "curves-lora"}
    kinds = ("svg", "pdf", "png")
    assert {p.name for p in figures.iterdir()} == {f"{n}.{k}" for n in names for k in kinds}
    assert (figures / "heat.pdf").read_bytes().startswith(b"%PDF")
    assert (figures / "curves-lora.png").read_bytes().startswith(b"\x89PNG")
    assert "currentColor" not in (figures / "curves-lora.svg").read_text()
    assert {"scores.csv", "scores.md", "scores.tex", "missing.csv", "explored-effects.csv"} <= {
        p.name for p in tables.iterdir()
    }
    assert not list(tmp_path.rglob("*.tmp"))
    first = page.read_bytes()
    assert run(["report", str(store), "-q", "-o", str(page)]) == 0
    assert (page.read_bytes(), capsys.readouterr().out) == (first, "")


def test_json(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(store), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["claims"]) == 4


def test_bad_input_is_one_line_and_writes_nothing(
    study: Any, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = study(methods=("lora",), sentences=60)
    empty = made.store(tmp_path / "empty", skip=["lora", "big", "small"])
    afile = tmp_path / "afile"
    afile.write_text("x")
    page = tmp_path / "page.html"
    for args, words in [
        ([str(tmp_path / "none"), "-o", str(page)], "no store in"),
        ([str(empty), "-o", str(page)], "has no finished run to report"),
        ([str(store), "-o", str(tmp_path)], "it is a folder"),
        ([str(store), "-o", str(tmp_path / "no" / "r.html")], "its folder does not exist"),
        ([str(store), "--tables", str(afile)], "it is a file"),
        ([str(store), "--figures", str(tmp_path / "no" / "f")], "its folder does not exist"),
    ]:
        assert run(["report", *args]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not page.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["afile", "empty", "store"]


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "--help"]) == 0
    assert "peftport report runs/quick -o report.html" in capsys.readouterr().out


def test_no_torch() -> None:
    code = (
        "import sys, peftport.cli.report, peftport.report.source, peftport.report.html, "
        "peftport.report.output, peftport.report.terminal; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
