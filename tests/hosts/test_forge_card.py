"""Cards say what the manifest and the measured scores say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftport.errors import InputError
from peftport.hosts import packaged, published
from peftport.hosts.forge.card import render, write_cards

TUNED = packaged.LARGE_TUNED


def test_a_card_for_every_host(tmp_path: Path) -> None:
    files = write_cards(tmp_path / "docs")
    assert [f.stem for f in files] == list(packaged.NAMES)
    for file in files:
        text = file.read_text()
        assert text.startswith(f"# {file.stem}\n")
        assert "Not measured yet." in text
        assert "## What it is not good for" in text and "Apache-2.0" in text


def test_numbers_are_the_manifests() -> None:
    facts = packaged.host_facts(TUNED)
    card = render(TUNED, packaged.SHIPPED, {})
    assert f"**{facts['distance']['encoder']:.3f}**" in card
    assert f"`{facts['fingerprint']}`" in card
    assert f"| tune.schedule.lr | {facts['recipe']['tune']['schedule']['lr']} |" in card
    before, after = (facts["losses"][f"held_out_{w}"]["masked"] for w in ("before", "after"))
    assert f"| masked language modelling | {before:.4f} | {after:.4f} |" in card
    assert published.SHA256 in render(packaged.LARGE, packaged.SHIPPED, {})


def test_the_shipped_cards_are_up_to_date(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs" / "hosts"
    for file in write_cards(tmp_path, scores=docs / "scores.json"):
        assert (docs / file.name).read_text() == file.read_text()


def test_scores_are_shown_by_seed(tmp_path: Path) -> None:
    scores = {
        "about": {"metric": "balanced accuracy", "sentences": 1243},
        TUNED: {"constant": 0.5, "lora": [0.75, 0.77, 0.76]},
    }
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    write_cards(tmp_path)
    card = (tmp_path / f"{TUNED}.md").read_text()
    assert "metric: balanced accuracy; sentences: 1243." in card
    assert "| constant | 0.500 |  |" in card
    assert "| lora | 0.760 | 0.750, 0.770, 0.760 |" in card
    assert "Not measured yet." in (tmp_path / f"{packaged.BASE}.md").read_text()


@pytest.mark.parametrize(
    "scores",
    [
        "{",
        "[]",
        '{"minilm-larg": {}}',
        '{"minilm-base": {"lora": ["x"]}}',
        '{"minilm-base": {"lora": []}}',
        '{"minilm-base": 1}',
        '{"about": {"metric": ["x"]}}',
    ],
)
def test_bad_scores_are_one_line(tmp_path: Path, scores: str) -> None:
    (tmp_path / "scores.json").write_text(scores)
    with pytest.raises(InputError, match="cannot read the scores") as caught:
        write_cards(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.md"))
