"""A pico study: three BERTs of random weights and a csv whose labels follow from its words."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from peftport.cli.main import run
from peftport.testing.pico import pico_bert, pico_reviews

PICO = """
name: pico
hosts: [a, b, c]
pairs: [[a, b], [a, c]]
data: {target: reviews.csv, settings: [same], test: 40}
methods: {lora: {r: 2}, bottleneck: {}}
source: {steps: 4, batch: 8, seeds: [0]}
target: {budgets: [0, 2], batch: 8}
seeds: [1, 2]
strategy: {texts: 32}
extras: {native: {seeds: [1]}, ablations: {seeds: [1]}}
rates:
  provenance: none
  table: {lora: {any: {any: {lr: 1e-3}}}, bottleneck: {any: {any: {lr: 1e-3}}}}
"""


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study's file, hosts and data; nobody writes to it."""
    folder = tmp_path_factory.mktemp("pico")
    pico_bert(folder / "a", 0)
    pico_bert(folder / "b", 1)
    pico_bert(folder / "c", 2, d_model=16, layers=1)
    with (folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *pico_reviews(600)])
    (folder / "pico.yaml").write_text(PICO)
    return folder


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``peftport study ...`` in this process."""

    def call(*args: object) -> Answer:
        capsys.readouterr()
        code = run(["study", *map(str, args)])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
