"""The README's numbers are those of the committed export, recomputed here with pandas alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
EXPORT = ROOT / "docs" / "results" / "quick" / "export.csv"


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    frame = pd.read_csv(EXPORT)
    return frame[frame["metric"] == "balanced_accuracy"]


@pytest.mark.parametrize("target", ["minilm-large-tuned", "minilm-base"])
@pytest.mark.parametrize("method", ["lora", "prefix", "bottleneck", "compacter"])
def test_the_readme_table_is_the_export(scores: pd.DataFrame, target: str, method: str) -> None:
    grid = scores[(scores["kind"] == "grid") & (scores["target"] == target)]
    means = grid[grid["method"] == method].groupby(["budget", "init"])["value"].mean()
    cells = [means[b, init] for b in (0, 10) for init in ("ported", "sampled", "scratch")]
    row = f"| {target} | {method} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"
    assert row in (ROOT / "README.md").read_text()


def test_the_readme_pooled_differences_are_the_export(scores: pd.DataFrame) -> None:
    grid = scores[scores["kind"] == "grid"]
    cells = grid.pivot_table(
        index=["method", "target", "seed", "budget"], columns="init", values="value"
    )
    text = (ROOT / "README.md").read_text()
    for control in ("scratch", "sampled"):
        difference = (cells["ported"] - cells[control]).groupby("budget").mean()
        for budget in (0, 10):
            assert f"{difference[budget]:+.3f} [" in text


def test_the_export_is_the_whole_grid(scores: pd.DataFrame) -> None:
    kinds = scores.drop_duplicates(["kind", "method", "source", "target", "seed", "init"])
    assert kinds["kind"].value_counts().to_dict() == {
        "grid": 72,
        "ablation": 24,
        "native": 8,
        "source": 4,
    }


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    frame = pd.read_csv(ROOT / "docs" / "results" / "mini" / "export.csv")
    return frame[frame["metric"] == "balanced_accuracy"]


@pytest.mark.parametrize("method", ["lora", "prefix", "bottleneck", "compacter"])
@pytest.mark.parametrize("source", ["large", "base"])
@pytest.mark.parametrize("target", ["large", "base"])
def test_the_readme_table_of_the_full_study_is_its_export(
    full: pd.DataFrame, method: str, source: str, target: str
) -> None:
    grid = full[(full["kind"] == "grid") & (full["method"] == method)]
    grid = grid[grid["source"].str.contains(source) & grid["target"].str.contains(target)]
    means = grid.groupby(["budget", "init"])["value"].mean()
    cells = [f"{means[b, 'ported']:.3f}, {means[b, 'scratch']:.3f}" for b in (0, 10, 30)]
    row = f"| {method} | {source} → {target} | " + " | ".join(cells) + " |"
    assert row in (ROOT / "README.md").read_text()


def test_the_readme_differences_of_the_full_study_are_its_export(full: pd.DataFrame) -> None:
    grid = full[full["kind"] == "grid"]
    keys = ["method", "source", "target", "data", "seed", "budget"]
    cells = grid.pivot_table(index=keys, columns="init", values="value")
    assert len(cells) == 480 * 3
    text = (ROOT / "README.md").read_text()
    for control in ("scratch", "sampled"):
        difference = (cells["ported"] - cells[control]).groupby("budget").mean()
        line = next(row for row in text.splitlines() if row.startswith(f"| ported beats {control}"))
        for budget in (0, 10):
            assert f"| {difference[budget]:+.3f} [" in line
    late = (cells["ported"] - cells["scratch"]).groupby("budget").mean()[30]
    assert f"pooled mean over scratch is {late:+.3f}" in " ".join(text.split())
