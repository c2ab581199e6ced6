"""The golden files are small, complete, and of the versions that constraints-adapters.txt pins."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).resolve().parent / "data"
FACTS = json.loads((DATA / "golden.json").read_text())


def test_every_case_is_there_and_all_of_it_is_small() -> None:
    assert sorted(FACTS["cases"]) == sorted(p.name for p in (DATA / "cases").iterdir())
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) < 1_500_000
    assert not [p for p in DATA.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_they_were_made_with_the_pinned_versions() -> None:
    pins = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints-adapters.txt").read_text(), re.M)
    )
    made = {name: version.split("+")[0] for name, version in FACTS["versions"].items()}
    assert made == {name: pins[name] for name in made}
