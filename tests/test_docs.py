"""The documentation: every command in it is run here or listed with the reason why not."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from peftport import load_dataset
from peftport.cli.main import run
from peftport.testing.pico import pico_bert, pico_reviews

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: not run here, each with what covers it instead
ELSEWHERE = {
    "make": "targets are what CI runs; test_project checks that they exist",
    "source": "a shell's own command",
    "pip install": "needs an index; make env installs the same extras from constraints.txt",
    "benchmarks": "hours; their own tests run them on pico hosts",
    "peftport study run": "minutes of training; tests/study runs studies on pico hosts",
    "peftport study module": "needs the key of a finished run; tests/study/test_run.py",
    "peftport assess": "tests/assessing and tests/cli run it on pico hosts",
    "peftport migrate": "tests/migrating and tests/cli run it on pico hosts",
}
#: arguments that name what is on the Hub, which no test may reach
HUB = ("org/", "google/")


def commands(page: Path) -> list[str]:
    """Commands of a page's console blocks, without comments and variables set in front of them; a
    trailing backslash continues one."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [line[2:].split("  #")[0].strip() for line in lines if line.startswith("$ ")]
    return [re.sub(r"^([A-Z_]+=\S+ )+", "", command) for command in found]


ALL = list(dict.fromkeys(c for page in PAGES for c in commands(page)))
TUTORIAL = commands(ROOT / "docs/tutorial.md")


def excused(command: str) -> bool:
    words = command.split()
    python = words[0].endswith("python") and len(words) > 1
    start = words[1].split("/")[0] if python else command
    named = any(start == name or start.startswith(f"{name} ") for name in ELSEWHERE)
    return named or any(word.startswith(HUB) for word in words)


RUN = [c for c in ALL if not excused(c)]


def test_commands_are_found() -> None:
    assert len(TUTORIAL) >= 8 and set(TUTORIAL) <= set(ALL)
    assert len(RUN) >= 15
    assert all(c.startswith("peftport ") for c in RUN), "a command that is neither run nor excused"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the documentation's names exist, on pico hosts."""
    folder = tmp_path_factory.mktemp("docs")
    pico_bert(folder / "minilm-large")
    pico_bert(folder / "minilm-base", d_model=24, layers=1, seed=1)
    words = [(text, "good" if good else "bad") for text, good in pico_reviews(300)]
    for name, columns in {"reviews.csv": "text,label", "rt.csv": "text,label"}.items():
        lines = [columns, *(f"{text},{label}" for text, label in words)]
        (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "data/reviews").mkdir(parents=True)
    lines = ["body,stars", *(f"{text},{label}" for text, label in words)]
    (folder / "data/reviews/train.csv").write_text("\n".join(lines) + "\n")
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


@pytest.fixture(scope="module")
def stores(place: Path) -> Path:
    """Stores under the names that the documentation gives to its studies."""
    spec = importlib.util.spec_from_file_location("made", ROOT / "tests/report/conftest.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["made"] = made
    spec.loader.exec_module(made)
    for at, name in enumerate(("quick", "again", "mini")):
        (place / "runs").mkdir(exist_ok=True)
        made.Study(methods=("lora",), sentences=60, seed=at).store(place / "runs" / name)
    return place


def substituted(command: str) -> list[str]:
    """The command on pico hosts and few steps, or on the quick export; nothing else changes."""
    words = shlex.split(command)[1:]
    hosts = {name: str(Path(name).absolute()) for name in ("minilm-large", "minilm-base")}
    words = [hosts.get(word, word) for word in words]
    words = ["rt.csv" if word == "rotten-tomatoes" else word for word in words]
    words = [word.replace("results/mini/export.csv", "results/quick/export.csv") for word in words]
    if words[0] == "train":
        words = [*words, "--steps", "4"]
    if words[0] == "port" and "--dry-run" not in words:
        words = [*words, "--text-count", "64", *(["--overwrite"] * ("--overwrite" not in words))]
    return words


def test_every_command_of_the_documentation_runs(
    stores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tutorial first, in its order; then the others, those that make folders first."""
    monkeypatch.chdir(stores)
    order = {"train": 0, "port": 1}
    rest = [c for c in RUN if c not in TUTORIAL]
    rest.sort(key=lambda command: order.get(command.split()[1], 2))
    made = 0
    for command in [*(c for c in TUTORIAL if c in RUN), *rest]:
        words = substituted(command)
        if "-o" in words and words[0] == "train" and Path(words[words.index("-o") + 1]).exists():
            continue  # the same folder is made on several pages
        code = run(words)
        said = capsys.readouterr()
        assert code == 0, f"{command}\n{said.err}"
        made += 1
    assert made >= 15
    assert (stores / "out/lora-on-base/adapter_config.json").is_file()
    assert (stores / "report.html").read_text().startswith("<!doctype html>")


def test_the_navigation_takes_every_page() -> None:
    """A page that no pattern takes ends up under the rest, which is there."""
    nav = yaml.safe_load((ROOT / "docs/.nav.yml").read_text())["nav"]
    assert "*" in nav
    named = re.findall(r"[\w-]+\.md", (ROOT / "docs/.nav.yml").read_text())
    assert [n for n in named if "*" not in n and not (ROOT / "docs" / n).exists()] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reference = (tmp_path / "reference.html").read_text()
    assert "plan_port" in reference and "Raises" in reference
    assert "fonts.googleapis.com" not in reference


@pytest.mark.parametrize("name", ["rotten-tomatoes", "imdb-sentences"])
def test_dataset_cards_tell_the_sizes_that_load(name: str) -> None:
    card = (ROOT / f"docs/data/{name}.md").read_text()
    data = load_dataset(name)
    assert data.digest in card
    for split in ("source-train", "target-train", "validation", "test"):
        labels = [example.label for example in data.split(split)]
        sizes = [len(labels), labels.count(0), labels.count(1)]
        assert f"| {split} | " + " | ".join(f"{n:,}" for n in sizes) + " |" in card


def test_everything_that_ships_has_a_card() -> None:
    from peftport.data.sources.base import datasets
    from peftport.hosts.packaged import NAMES

    assert [n for n in NAMES if not (ROOT / f"docs/hosts/{n}.md").is_file()] == []
    assert [n for n in datasets.names() if not (ROOT / f"docs/data/{n}.md").is_file()] == []
