"""The report's tables as data frames with plain numbers, and as text, Markdown and CSV.

One line of every table says one thing; intervals are the columns ``low`` and ``high``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from peftport.report.claims import Claim
from peftport.report.evidence import ABLATIONS, INITS, Evidence
from peftport.report.resample import Interval, Resampled
from peftport.report.stats import mean_of, recovery

PLACE = ["method", "source", "target", "data"]
RUN = ["kind", "method", "source", "target", "data", "seed", "init"]
Scores = Mapping[str, Resampled]


def score_table(evidence: Evidence, scores: Scores, by: Sequence[str]) -> pd.DataFrame:
    """Mean score with its interval for every group of grid runs, init and budget.

    Args:
        by: columns that make a group, e.g. PLACE or ``["method"]``.
    Returns:
        ``by``, init, budget, runs, trainings, then for every metric its mean, low and high;
        ``one_class`` counts runs that predict a single class for every sentence (NaN: an export,
        which has no scores of single sentences, does not tell).
    """
    keys = [*by, "init", "budget"]
    grid = evidence.grid
    lines = []
    for group, cells in grid.groupby(keys, sort=True):
        lines.append({**dict(zip(keys, group, strict=True)), **_measures(scores, cells)})
    table = pd.DataFrame(lines)
    if table.empty:
        return table
    rank = {init: at for at, init in enumerate(INITS)}
    return table.sort_values(
        keys, key=lambda c: c.map(rank) if c.name == "init" else c, ignore_index=True
    )


def _measures(scores: Scores, cells: pd.DataFrame) -> dict[str, Any]:
    line: dict[str, Any] = {"runs": len(cells), "trainings": cells["key"].nunique()}
    for metric, resampled in scores.items():
        interval = mean_of(resampled, cells)
        line[metric] = interval.point if interval else float("nan")
        line[f"{metric}_low"] = interval.low if interval else float("nan")
        line[f"{metric}_high"] = interval.high if interval else float("nan")
    first = next(iter(scores.values()))
    flat = first.one_class[first.rows(cells)].sum()
    line["one_class"] = flat if np.isnan(flat) else int(flat)
    return line


def difference_table(claims: Mapping[str, Sequence[Claim]]) -> pd.DataFrame:
    """Every line behind the claims, by metric: the difference, its interval and its answer."""
    lines = [
        {
            "metric": metric, "claim": claim.name, "compared": f.compared, "method": f.method,
            "pair": f.pair, "budget": f.budget, "answer": f.answer, **_interval(f.interval),
            "p_holm": f.p_holm, **{f"mean_{name}": value for name, value in f.beside.items()},
        }
        for metric, found in claims.items()
        for claim in found
        for f in claim.findings
    ]  # fmt: skip
    return pd.DataFrame(lines)


def _interval(i: Interval | None) -> dict[str, Any]:
    if i is None:
        return {"difference": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "runs": 0,
                "trainings": 0, "seeds": 0, "interval": "", "resampled": ""}  # fmt: skip
    return {"difference": i.point, "low": i.low, "high": i.high, "p": i.p, "runs": i.runs,
            "trainings": i.trainings, "seeds": i.seeds, "interval": i.rule,
            "resampled": ", ".join([*["sentence"] * i.sentences, *i.resampled])}  # fmt: skip


def ablation_table(evidence: Evidence, scores: Resampled) -> pd.DataFrame:
    """What half of a module does, beside whole ones on the same seeds.

    Every column averages only the seeds on which an ablation of that place was run.
    """
    ablations = evidence.ablations
    keys = [*PLACE, "budget"]
    lines = []
    for group, cells in ablations.groupby(keys, sort=True):
        line = dict(zip(keys, group, strict=True))
        seeds = set(cells["seed"])
        line["seeds"] = len(seeds)
        grid = evidence.grid
        same = (grid[keys] == pd.Series(line)[keys]).all(axis=1) & grid["seed"].isin(seeds)
        both = pd.concat([grid[same], cells])
        for init in ("ported", *ABLATIONS, "sampled", "scratch"):
            interval = mean_of(scores, both[both["init"] == init])
            line[init] = interval.point if interval else float("nan")
        line["floor"] = evidence.floor(str(line["target"]), scores.metric)[1]
        lines.append(line)
    return pd.DataFrame(lines)


def recovery_table(evidence: Evidence, scores: Resampled) -> pd.DataFrame:
    """Recovery of ported modules for every place and budget, with the points it is made of."""
    ported = evidence.grid[evidence.grid["init"] == "ported"]
    probes = evidence.ablations[evidence.ablations["init"] == "probe"]
    keys = [*PLACE, "budget"]
    lines = []
    for group, cells in ported.groupby(keys, sort=True):
        line = dict(zip(keys, group, strict=True))
        target = str(line["target"])
        floor_name, floor = evidence.floor(target, scores.metric)
        found = recovery(scores, cells, evidence.native(str(line["method"]), target), floor)
        if found is None:
            continue
        probe = probes[(probes["target"] == target) & (probes["budget"] == line["budget"])]
        r = found.ratio
        lines.append({
            **line, "ported": found.ported.point, "native": found.native.point, "floor": floor,
            "probe": probe[scores.metric].mean(),
            "recovery": r.point if r else np.nan, "low": r.low if r else np.nan,
            "high": r.high if r else np.nan, "native_seeds": found.native.seeds,
            "floor_is": floor_name, "note": found.why,
        })  # fmt: skip
    return pd.DataFrame(lines)


def source_table(evidence: Evidence, scores: Scores) -> pd.DataFrame:
    """Source modules at home, native modules on the targets, and word hosts alone."""
    cells = evidence.cells[evidence.cells["kind"].isin(["source", "native", "floor"])]
    keys = ["kind", "method", "target", "data", "budget"]
    lines = [
        {**dict(zip(keys, group, strict=True)), **_measures(scores, own)}
        for group, own in cells.groupby(keys, sort=True)
    ]
    return pd.DataFrame(lines).rename(columns={"target": "host", "budget": "steps"})


def cost_table(evidence: Evidence) -> pd.DataFrame:
    """What trainings cost: how many, their trained parameters, seconds each and minutes in all."""
    costs = evidence.costs
    if costs.empty:
        return costs
    lines = []
    for (kind, method, init), own in costs.groupby(["kind", "method", "init"], sort=True):
        sizes = sorted({int(own["parameters"].min()), int(own["parameters"].max())})
        lines.append({
            "kind": kind, "method": method, "init": init, "trainings": len(own),
            "parameters": " to ".join(f"{size:,}" for size in sizes),
            "seconds_each": own["seconds"].mean(),
            "minutes": own["seconds"].sum(min_count=1) / 60,
        })  # fmt: skip
    return pd.DataFrame(lines)


def to_latex(table: pd.DataFrame) -> str:
    """A ``booktabs`` table; every special character of LaTeX is escaped."""
    head = " & ".join(_latex(str(name)) for name in table.columns)
    rows = [" & ".join(_latex(cell) for cell in row) for row in _texts(table)]
    kinds = [pd.api.types.is_numeric_dtype(table[name]) for name in table.columns]
    columns = "".join("r" if numeric else "l" for numeric in kinds)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", f"{head} \\\\", "\\midrule",
             *(f"{row} \\\\" for row in rows), "\\bottomrule", "\\end{tabular}"]  # fmt: skip
    return "\n".join(lines) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          "→": r"$\rightarrow$", "−": "$-$", "×": r"$\times$", "–": "--",
          **{char: f"\\{char}" for char in "&%$#_{}"}}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table; pipes in cells are escaped."""
    cells = [[str(name) for name in table.columns], *_texts(table)]
    rows = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells]
    rows.insert(1, "|" + "---|" * len(table.columns))
    return "\n".join(rows) + "\n"


def _texts(table: pd.DataFrame) -> Iterator[list[str]]:
    for row in table.itertuples(index=False):
        yield [number(cell) for cell in row]


def number(cell: Any) -> str:
    """A cell for people: three decimals, nothing for what is not there."""
    if isinstance(cell, float | np.floating):
        return "" if np.isnan(cell) else f"{cell:.3f}"
    return "" if cell is None else str(cell)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, two spaces apart."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = (
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    return "\n".join(padded)
