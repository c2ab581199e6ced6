"""What the page carries: explored tables and every run, as compact JSON that no text can break."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from peftport.report.evidence import Evidence
from peftport.report.explore import ALL, pair_names

#: longer keys say no more to a reader; `peftport study` finds a run by the start of its key
KEY = 12


def drawable(evidence: Evidence, tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Explored tables with the columns that only drawing needs."""
    made = dict(tables)
    if len(made["curves"]):
        made["curves"] = made["curves"].assign(floor=_floors(evidence, made["curves"]))
    for name in ("effects", "directions"):
        if len(made[name]):
            # pooled rows come first
            made[name] = made[name].assign(rank=[int(m != ALL) for m in made[name]["method"]])
    if len(made["heat"]):
        text = ["–" if np.isnan(r) else f"{r:.2f}" for r in made["heat"]["recovery"]]
        made["heat"] = made["heat"].assign(text=text)
    if len(made["saved"]):
        made["saved"] = _saved(made["saved"])
    return made


def _floors(evidence: Evidence, curves: pd.DataFrame) -> list[float]:
    """Floor of every line: the mean over the targets that it pools."""
    pairs = evidence.grid[["source", "target"]].drop_duplicates()
    targets: dict[str, list[str]] = {ALL: sorted(set(pairs["target"]))}
    for name, target in zip(pair_names(pairs), pairs["target"], strict=True):
        targets[name] = [target]
    keys = list(zip(curves["pair"], curves["metric"], strict=True))
    known = {
        (pair, metric): float(np.mean([evidence.floor(t, metric)[1] for t in targets[pair]]))
        for pair, metric in set(keys)
    }
    return [known[key] for key in keys]


def _saved(table: pd.DataFrame) -> pd.DataFrame:
    """Infinite steps are drawn at the edge and told in words."""
    told = [_steps(s, m) for s, m in zip(table["saved"], table["most"], strict=True)]
    ends = [
        f"{_steps(low, m)} to {_steps(high, m)}"
        for low, high, m in zip(table["low"], table["high"], table["most"], strict=True)
    ]
    beyond = ["yes" if np.isinf(s) else "no" for s in table["saved"]]
    cut = {c: np.minimum(table[c], table["most"]) for c in ("saved", "low", "high")}
    return table.assign(saved_text=told, interval_text=ends, beyond=beyond, **cut)


def _steps(value: float, most: float) -> str:
    return f"over {most:.0f}" if np.isinf(value) else f"{value:.0f}"


def run_table(evidence: Evidence) -> pd.DataFrame:
    """One line per run and budget: what it is, its training and its metrics."""
    cells = evidence.cells
    runs = cells[["kind", "method", "source", "target", "data", "seed", "init", "budget"]].copy()
    runs["key"] = [str(key)[:KEY] for key in cells["key"]]
    return runs.assign(**{metric: cells[metric] for metric in evidence.metrics})


def packed(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Tables by column: numbers to four digits, texts as a list of levels and their numbers."""
    return {name: {str(c): _column(table[c]) for c in table} for name, table in tables.items()}


def _column(column: pd.Series) -> dict[str, Any]:
    if pd.api.types.is_numeric_dtype(column):
        return {"n": [None if v != v else round(float(v), 4) for v in column.tolist()]}
    values = [str(value) for value in column]
    levels = list(dict.fromkeys(values))
    number = {level: at for at, level in enumerate(levels)}
    return {"levels": levels, "at": [number[value] for value in values]}


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or a line.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
