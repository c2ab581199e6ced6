"""Calibrate `peftport predict` on measured ports, and say how well it does on hosts left out.

    python benchmarks/predict_calibrate.py measure --store runs/mini-ablations \\
        --recovery docs/results/mini/export.csv -o docs/results/predict/points.json
    python benchmarks/predict_calibrate.py fit docs/results/predict/points.json \\
        -o docs/results/predict

`measure` ports every source module of the stores to every target of their grids, in memory, with
the study's own strategy, and measures features on unlabelled Rotten Tomatoes sentences; what the
same modules (host, method, seed) recovered there is read from the exports. The store of
mini-ablations holds mini's own source modules; --store and --recovery can be given more than once.
`fit` writes the calibration that ships with peftport, and tables and figures of its errors on hosts
that were left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from peftport import load_host
from peftport.port_folder.texts import read_texts
from peftport.porting import Correspondence, apply_port, plan_port
from peftport.porting.weights import HostFiles
from peftport.predicting import FEATURES, measure
from peftport.predicting.model import VARIANTS, Point, fit, left_out
from peftport.report.tables import to_markdown
from peftport.study.modules import from_bytes
from peftport.study.store import Store

#: texts that ports are fitted on, and the first ones of them that answers are compared on
TEXTS, COMPARED = 512, 128
METRIC = "balanced_accuracy"
FLOOR = 0.5
SHIPPED = Path(__file__).parents[1] / "src" / "peftport" / "predicting" / "calibration.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--store", type=Path, action="append", required=True)
    measuring.add_argument("--seeds", type=int, nargs="+", default=[0])
    measuring.add_argument("--recovery", type=Path, action="append", required=True)
    measuring.add_argument("-o", "--output", type=Path, required=True)
    fitting = commands.add_parser("fit")
    fitting.add_argument("points", type=Path)
    fitting.add_argument("-o", "--output", type=Path, required=True)
    fitting.add_argument("--calibration", type=Path, default=SHIPPED)
    given = parser.parse_args(arguments)
    if given.command == "measure":
        found = list(measured(given.store, recoveries(given.recovery), given.seeds))
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(found, indent=0) + "\n")
    else:
        points = [Point(**{**p, "recovery": {int(b): r for b, r in p["recovery"].items()}})
                  for p in ({k: v for k, v in row.items() if k != "seed"}
                            for row in json.loads(given.points.read_text()))]  # fmt: skip
        publish(points, given.output, given.calibration)
    return 0


def recoveries(exports: Sequence[Path]) -> dict[tuple[str, str, str, int], dict[int, float]]:
    """Recovery by budget of each ported module by (source, target, method, seed); the native
    module is the mean over its seeds."""
    found: dict[tuple[str, str, str, int], dict[int, float]] = {}
    for path in exports:
        rows = pd.read_csv(path)
        rows = rows[rows.metric == METRIC]
        native = rows[rows.kind == "native"].groupby(["target", "method"]).value.mean()
        ported = rows[(rows.kind == "grid") & (rows.init == "ported") & (rows.data == "same")]
        for row in ported.itertuples():
            gain = native[row.target, row.method] - FLOOR
            key = (row.source, row.target, row.method, int(row.seed))
            found.setdefault(key, {})[int(row.budget)] = (row.value - FLOOR) / gain
    return found


def measured(
    stores: Sequence[Path],
    recovered: dict[tuple[str, str, str, int], dict[int, float]],
    seeds: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """One row for every source module and target: names, features, recovery by budget."""
    texts = read_texts("rotten-tomatoes", count=TEXTS)
    for folder in stores:
        with Store.read(folder) as store:
            study = store.study
            sources = store.rows()
            sources = sources[(sources.kind == "source") & (sources.data == "same")]
            sources = sources[sources.seed.isin(seeds)]
            for source, target in study.pairs:
                ours, theirs = load_host(source), load_host(target)
                hosts = Correspondence(ours, theirs, texts)
                few = Correspondence(ours, theirs, texts[:COMPARED])
                files = (
                    HostFiles(ours.spec, ours.path, known=True),
                    HostFiles(theirs.spec, theirs.path, known=True),
                )
                for row in sources[sources.source == source].itertuples():
                    key = (source, target, row.method, int(row.seed))
                    module = from_bytes(store.module(row.key))
                    same = ours.spec.shape_digest == theirs.spec.shape_digest
                    name = study.strategy.same_shape if same else study.strategy.otherwise
                    plan = plan_port(ours.spec, theirs.spec, module, strategy=name, have_texts=True)
                    ported = apply_port(plan, module, hosts=hosts)
                    yield {
                        "source": source,
                        "target": target,
                        "method": row.method,
                        "seed": int(row.seed),
                        "features": measure(
                            module, files, plan.layer_map, hosts=few, ported=ported
                        ),
                        "recovery": recovered[key],
                    }
                print(f"{source} -> {target}", file=sys.stderr, flush=True)


def publish(points: Sequence[Point], folder: Path, shipped: Path) -> None:
    """Calibration, tables and figure."""
    folder.mkdir(parents=True, exist_ok=True)
    calibrations = {variant: fit(points, variant) for variant in VARIANTS}
    facts = {variant: c.to_json() for variant, c in calibrations.items()}
    shipped.write_text(json.dumps(facts, indent=1) + "\n")
    rows = []
    for point in points:
        rows.append({k: v for k, v in asdict(point).items() if k in ("source", "target", "method")})
    frame = pd.DataFrame(rows)
    budgets = list(points[0].recovery)
    lines = []
    for variant in VARIANTS:
        for budget in budgets:
            y = np.array([p.recovery[budget] for p in points])
            left = left_out(points, variant, budget)
            frame[f"recovery_{budget}"] = y
            frame[f"{variant}_{budget}"] = left
            lines.append(_line(variant, budget, "all", y, left))
            for method in sorted(set(frame.method)):
                own = (frame.method == method).to_numpy()
                lines.append(_line(variant, budget, method, y[own], left[own]))
            same = np.array([p.features["same_shape"] == 1 for p in points])
            lines.append(_line(variant, budget, "same shape", y[same], left[same]))
            lines.append(_line(variant, budget, "other shape", y[~same], left[~same]))
    lines += _without_descendants(points, frame)
    # what knowing nothing but method and shape would say
    for budget in budgets:
        y = np.array([p.recovery[budget] for p in points])
        lines.append(_line("method and shape only", budget, "all", y, _plain(points, budget)))
    table = pd.DataFrame(lines)
    (folder / "left_out.md").write_text(to_markdown(table))
    frame.round(4).to_csv(folder / "left_out.csv", index=False)
    single = []
    for name in FEATURES:
        values = [p.features[name] for p in points]
        y = [p.recovery[0] for p in points]
        rho = spearmanr(values, y).statistic if len(set(values)) > 1 else float("nan")
        single.append({"feature": name, "Spearman with recovery at 0": rho})
    text = to_markdown(pd.DataFrame(single))
    (folder / "features.md").write_text(text)
    chart = (
        alt.Chart(frame)
        .mark_circle(size=45, opacity=0.7)
        .encode(
            x=alt.X("texts_0:Q", title="predicted recovery, host left out"),
            y=alt.Y("recovery_0:Q", title="measured recovery at 0 steps"),
            color=alt.Color("method:N", scale=alt.Scale(
                range=["#0072B2", "#E69F00", "#009E73", "#CC79A7"])),
            tooltip=["source", "target", "method", "recovery_0", "texts_0"],
        )
        .properties(width=420, height=320)
    )  # fmt: skip
    line = alt.Chart(pd.DataFrame({"a": [-0.2, 1.2]})).mark_line(color="grey").encode(x="a", y="a")
    for suffix in ("svg", "png"):
        (line + chart).save(folder / f"left_out.{suffix}", ppi=110)
    print(table[table.ports == "all"].to_string(index=False))


def _line(variant: str, budget: int, which: str, y: np.ndarray, left: np.ndarray) -> dict[str, Any]:
    error = np.abs(y - left)
    varies = len(set(left)) > 1 and len(set(y)) > 1
    return {
        "features": variant,
        "budget": budget,
        "ports": which,
        "n": len(y),
        "Spearman": spearmanr(left, y).statistic if varies else float("nan"),
        "mean error": float((left - y).mean()),
        "mean absolute error": float(error.mean()),
        "error at 95%": float(np.quantile(error, 0.95, method="higher")),
    }


def _without_descendants(points: Sequence[Point], frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Descendants of one host resemble each other, so here all of the drift study's are left out at
    once; and what the table says of the other ports alone."""
    drift = frame.target.str.contains("-drift-").to_numpy()
    if drift.all() or not drift.any():
        return []
    lines = []
    for variant in VARIANTS:
        model = fit([p for p, own in zip(points, drift, strict=True) if not own], variant)
        said = [
            {found.budget: found.score for found in model.predict(p.method, p.features)}
            for p, own in zip(points, drift, strict=True)
            if own
        ]
        for budget in points[0].recovery:
            y = frame[f"recovery_{budget}"].to_numpy()
            left = frame[f"{variant}_{budget}"].to_numpy()
            scores = np.array([by_budget[budget] for by_budget in said])
            lines.append(_line(variant, budget, "drift, by the others", y[drift], scores))
            lines.append(_line(variant, budget, "not drift", y[~drift], left[~drift]))
    return lines


def _plain(points: Sequence[Point], budget: int) -> np.ndarray:
    """The mean of the same method and kind of pair over ports that do not touch the host."""
    found = []
    for point in points:
        alike = [
            p.recovery[budget]
            for p in points
            if point.target not in (p.source, p.target)
            and p.method == point.method
            and p.features["same_shape"] == point.features["same_shape"]
        ]
        found.append(float(np.mean(alike)) if alike else float("nan"))
    return np.array(found)


if __name__ == "__main__":
    sys.exit(main())
