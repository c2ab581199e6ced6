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
