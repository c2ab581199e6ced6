"""Finds a study by the name of a shipped one or by its file."""

from __future__ import annotations

from pathlib import Path

from peftport.errors import InputError, UnknownName
from peftport.study.grid import Study, read_study


def study_folder() -> Path:
    """Where the shipped studies are: inside an installed package, else in the repository."""
    here = Path(__file__).resolve()
    installed = here.parent / "files"
    return installed if installed.is_dir() else here.parents[3] / "studies"


def shipped() -> dict[str, Path]:
    """Name to file of every shipped study."""
    found: dict[str, Path] = {}
    for path in sorted(study_folder().glob("*.yaml")):
        if path.read_text(encoding="utf-8").startswith("name:"):
            found[path.stem] = path
    return found


def find_study(name: str) -> Study:
    """A study by name (``quick``) or by file (``my-study.yaml``).

    Raises:
        InputError: no such study, or its file declares something that cannot be.
    """
    studies = shipped()
    if name in studies:
        return read_study(studies[name])
    if Path(name).suffix in (".yaml", ".yml") or Path(name).exists():
        if Path(name).is_dir():
            raise InputError(f"'{name}' is a folder; give a study's name or its YAML file")
        return read_study(Path(name))
    raise UnknownName("study", name, studies)
