"""From an exported table (csv, parquet) to the evidence of a report, without its store.

An export has every run's metrics and no scores of single sentences. Intervals then resample hosts
and seeds only, and what the export does not say (what is missing, the machine) stays unknown.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peftport.errors import InputError
from peftport.report.evidence import METRICS, Evidence, tidy, visible

NEEDED = ("method", "source", "target", "data", "seed", "init", "budget", "metric", "value", "key")
SUFFIXES = (".csv", ".parquet")
#: a constant prediction is looked for among up to this many classes
MOST_CLASSES = 50


def is_export(path: Path) -> bool:
    """Whether a path names an exported table and not a store's folder."""
    return path.suffix.lower() in SUFFIXES


def read_export(path: Path) -> Evidence:
    """The evidence in a table that ``peftport study export`` wrote.

    Args:
        path: csv or parquet; the study's name is the file's, or its folder's for ``export.csv``.

    Raises:
        InputError: no such file, not a table, or columns are missing.
    """
    frame = _read(path)
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise InputError(
            f"'{path}' lacks the columns {', '.join(missing)}; give what peftport study export "
            "wrote, or the store's folder"
        )
    try:
        cells = tidy(frame[frame["metric"].isin([*METRICS, "constant"])])
    except (ValueError, TypeError):
        raise InputError(
            f"'{path}' has text where seed, budget or value should be numbers; export it again"
        ) from None
    if not any(metric in cells.columns for metric in METRICS):
        raise InputError(f"'{path}' has none of the metrics {', '.join(METRICS)}; export it again")
    constants = _constants(cells)
    name = path.parent.name if path.stem == "export" else path.stem
    digests = sorted(set(frame["study"].dropna())) if "study" in frame.columns else []
    hosts = sorted({*cells["source"], *cells["target"]} - {""})
    shapes = _packaged_shapes()
    ported = frame[frame["init"] == "ported"]
    seeds = ported["source_seed"].nunique() if "source_seed" in frame.columns else 1
    return Evidence(
        cells=cells.drop(columns="constant", errors="ignore"),
        scores=lambda key, budget: None,
        labels=np.array([], dtype=np.int64),
        name=visible(name),
        sizes={host: str(shapes[host]) for host in hosts if host in shapes},
        facts=_facts(path, cells, digests),
        one_source=seeds <= 1,
        digest=visible(", ".join(map(str, digests))),
        volumes={h: float(shapes[h][0] * shapes[h][1] ** 2) for h in hosts if h in shapes},
        costs=_costs(frame),
        constants=constants,
        complete=False,
    )


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except OSError as error:
        reason = error.strerror or "not a table"
        raise InputError(f"cannot read '{path}': {reason}; give an export or a store") from None
    except (ValueError, UnicodeDecodeError):  # pandas' and pyarrow's parsers raise kinds of it
        raise InputError(
            f"cannot read '{path}': it is no table; give what peftport study export wrote"
        ) from None


def _constants(cells: pd.DataFrame) -> dict[str, float]:
    """Metric to the constant prediction's score, as far as runs show it.

    A run whose accuracy is the most frequent class's share and whose balanced accuracy is 1/k
    predicts one of k classes for everything; without such a run k is unknown.
    """
    if "constant" not in cells.columns:
        return {}
    found = {"accuracy": float(cells["constant"].max())}
    if {"accuracy", "balanced_accuracy"} <= set(cells.columns):
        flat = cells[np.isclose(cells["accuracy"], cells["constant"])]["balanced_accuracy"]
        for classes in range(2, MOST_CLASSES + 1):
            if np.isclose(flat, 1 / classes, atol=1e-9).any():
                return {**found, "balanced_accuracy": 1 / classes, "auc": 0.5}
    return found


def _packaged_shapes() -> dict[str, tuple[int, int]]:
    """Layers and width of the hosts that come with peftport, from their manifest."""
    text = (resources.files("peftport") / "hosts/weights/manifest.json").read_text("utf-8")
    shapes = {
        name: (host["config"]["num_hidden_layers"], host["config"]["hidden_size"])
        for name, host in json.loads(text)["hosts"].items()
    }
    # the published parent is not shipped and so not in the manifest; its sibling keeps its shape
    return {"minilm-large": shapes["minilm-large-tuned"], **shapes}


def _facts(path: Path, cells: pd.DataFrame, digests: list[Any]) -> list[tuple[str, str]]:
    pairs = cells[["source", "target"]].drop_duplicates()
    pairs = pairs[(pairs["source"] != pairs["target"]) & (pairs["source"] != "")]
    counts = cells.drop_duplicates(["kind", "method", "source", "target", "data", "seed", "init"])
    lines = [
        ("Read from", f"the export '{path.name}', which has no scores of single sentences"),
        ("Study", f"grid {', '.join(map(str, digests)) or 'unknown'}"),
        ("Host pairs", f"{len(pairs)}: " + ", ".join(
            f"{source} → {target}" for source, target in pairs.itertuples(index=False))),
        ("Methods", ", ".join(sorted(set(cells["method"]) - {""}))),
        ("Data settings", ", ".join(sorted(set(cells["data"])))),
        ("Seeds", ", ".join(str(s) for s in sorted(set(cells["seed"])))),
        ("Finished runs", "; ".join(
            f"{kind} {count:,}" for kind, count in counts["kind"].value_counts().items())),
        ("Distinct trainings", f"{cells['key'].nunique():,}"),
    ]  # fmt: skip
    return [(name, visible(text)) for name, text in lines]


def _costs(frame: pd.DataFrame) -> pd.DataFrame:
    if "parameters" not in frame.columns:
        return pd.DataFrame()
    kind = frame["kind"] if "kind" in frame.columns else "grid"
    costs = frame.assign(kind=kind).drop_duplicates("key")
    costs = costs[["key", "kind", "method", "init", "parameters"]].reset_index(drop=True)
    for column in ("kind", "method", "init"):
        costs[column] = [visible(v) if pd.notna(v) else "" for v in costs[column]]
    return costs[costs["kind"] != "rate"].assign(seconds=float("nan"))
