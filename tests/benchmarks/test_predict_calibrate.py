"""The calibration's arithmetic on made-up numbers, and the drift study's curve on quick's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from peftport.predicting import FEATURES, Calibration
from peftport.predicting.model import Point
from peftport.report.build import build
from peftport.report.exported import read_export

FOLDER = Path(__file__).parents[2] / "benchmarks"
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def calibrate() -> ModuleType:
    return script("predict_calibrate")


def test_recovery_is_a_share_of_the_native_gain(calibrate: ModuleType, tmp_path: Path) -> None:
    rows = [
        ("native", "b", "b", "same", 0, "native", 150, 0.70),
        ("native", "b", "b", "same", 1, "native", 150, 0.90),
        ("grid", "a", "b", "same", 0, "ported", 0, 0.65),
        ("grid", "a", "b", "same", 0, "ported", 30, 0.80),
        ("grid", "a", "b", "same", 0, "scratch", 0, 0.51),
        ("grid", "a", "b", "other", 0, "ported", 0, 0.99),
    ]
    columns = ["kind", "source", "target", "data", "seed", "init", "budget", "value"]
    frame = pd.DataFrame(rows, columns=columns).assign(method="lora", metric="balanced_accuracy")
    frame.to_csv(tmp_path / "export.csv", index=False)
    found = calibrate.recoveries([tmp_path / "export.csv"])
    assert found == {("a", "b", "lora", 0): {0: pytest.approx(0.5), 30: pytest.approx(1.0)}}


def test_what_is_published_rests_on_hosts_left_out(calibrate: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = []
    for source, target in (("a", "b"), ("a", "c"), ("b", "c"), ("c", "b"), ("a", "d")):
        for method in ("lora", "prefix"):
            for _ in range(4):
                features = {name: float(rng.normal()) for name in FEATURES}
                features["same_shape"] = float(target == "b")
                value = 0.4 + 0.2 * features["kappa"]
                points.append(Point(source, target, method, features, {0: value, 10: value}))
    calibrate.publish(points, tmp_path / "out", tmp_path / "calibration.json")
    facts = json.loads((tmp_path / "calibration.json").read_text())
    assert Calibration.from_json(facts["texts"]).points == len(points)
    table = (tmp_path / "out" / "left_out.md").read_text()
    assert "method and shape only" in table and "| texts" in table
    frame = pd.read_csv(tmp_path / "out" / "left_out.csv")
    assert len(frame) == len(points)
    error = (frame.texts_0 - frame.recovery_0).abs().mean()
    assert error < (frame.weights_0 - frame.recovery_0).abs().mean()  # kappa needs texts
    assert (tmp_path / "out" / "left_out.svg").stat().st_size > 1000


def test_descendants_are_predicted_without_any_of_them(
    calibrate: ModuleType, tmp_path: Path
) -> None:
    """The two families follow opposite rules: only who saw a sister knows the descendants'."""
    rng = np.random.default_rng(0)
    others = [("a", "b"), ("a", "c"), ("b", "c"), ("c", "b"), ("b", "d")]
    points = []
    for source, target in [*others, *(("a", f"a-drift-{n}") for n in range(3))]:
        for number in range(8):
            features = {name: float(rng.normal()) for name in FEATURES}
            features["same_shape"] = float(number % 2)
            sign = -1.0 if "drift" in target else 1.0
            value = sign * features["kappa"]
            points.append(Point(source, target, "lora", features, {0: value}))
    calibrate.publish(points, tmp_path / "out", tmp_path / "calibration.json")
    lines = (tmp_path / "out" / "left_out.md").read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    found = {c[2]: (int(c[3]), float(c[4])) for c in cells if c[:2] == ["texts", "0"]}
    assert found["drift, by the others"][0] == 24 and found["drift, by the others"][1] < -0.8
    assert found["not drift"][0] == 40 and found["not drift"][1] > 0.3


def test_the_curve_is_ordered_by_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    drift = script("drift_curve")
    monkeypatch.setattr(drift, "distance", {"minilm-large-tuned": 0.6, "minilm-base": 0.02}.get)
    evidence = read_export(RESULTS / "quick" / "export.csv")
    table = drift.curve(build(evidence).tables["recovery"], evidence.cells)
    assert list(table.distance[:4]) == [0.02, 0.6, 0.02, 0.6]
    rows = evidence.cells[(evidence.cells.kind == "grid") & (evidence.cells.budget == 10)]
    rows = rows[(rows.method == "lora") & (rows.target == "minilm-base")]
    line = table[(table.method == "lora") & (table.budget == 10) & (table.distance == 0.02)]
    for init in ("ported", "sampled", "scratch"):
        mean = rows[rows.init == init].balanced_accuracy.mean()
        assert float(line[init].iloc[0]) == pytest.approx(mean)
    assert not table.drop(columns=["recovery", "low", "high"]).isna().any().any()
    assert "relative weight distance" in drift.drawn(table).to_json()
