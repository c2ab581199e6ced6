"""Tables of port_quality.py: recovery by strategy, and differences with intervals."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 4000
#: (what, against what) of the differences that the claims need
AGAINST = ("pad", "ual-adapter", "scratch", "ridge head alone", "effect head alone", "source")
#: measured once, after as many steps as a source module was trained for
AS_TRAINED = ("native", "source")

Key = tuple[str, str, str, int]  # pair, method, init, budget


class Scores:
    """Who predicted what, resampled over seeds and test sentences.

    A draw takes seeds and, within each class, sentences with replacement; the same draw for all
    inits of a pair, so that differences are paired.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.right: dict[Key, dict[int, np.ndarray]] = defaultdict(dict)
        self.truth: dict[str, np.ndarray] = {}
        for row in rows:
            truth = np.array(list(row["labels"]), dtype=int)
            self.truth[row["pair"]] = truth
            key = (row["pair"], row["method"], row["init"], row["budget"])
            self.right[key][row["seed"]] = np.array(list(row["predicted"]), dtype=int) == truth
        self._draws: dict[tuple[str, int], tuple[np.ndarray, list[np.ndarray]]] = {}
        self._cache: dict[Key, tuple[float, np.ndarray]] = {}

    def accuracy(self, key: Key) -> tuple[float, np.ndarray]:
        """(mean balanced accuracy, its draws [DRAWS])"""
        if key not in self._cache:
            seeds = self.right[key]
            right = np.stack([seeds[s] for s in sorted(seeds)]).astype(np.float32)  # [K, N]
            picked, weights = self._draw(key[0], len(right))
            recalls = []
            for mask, weight in zip(self._masks(key[0]), weights, strict=True):
                by_seed = right[:, mask] @ weight.T / mask.sum()  # [K, DRAWS]
                recalls.append((by_seed * picked.T).sum(0) / len(right))
            point = np.mean([right[:, mask].mean() for mask in self._masks(key[0])])
            self._cache[key] = float(point), np.mean(recalls, axis=0)
        return self._cache[key]

    def _masks(self, pair: str) -> list[np.ndarray]:
        truth = self.truth[pair]
        return [truth == c for c in np.unique(truth)]

    def _draw(self, pair: str, seeds: int) -> tuple[np.ndarray, list[np.ndarray]]:
        if (pair, seeds) not in self._draws:
            random = np.random.default_rng(0)
            picked = random.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS)  # [DRAWS, K]
            weights = [
                random.multinomial(m.sum(), np.full(m.sum(), 1 / m.sum()), DRAWS).astype(np.float32)
                for m in self._masks(pair)
            ]
            self._draws[(pair, seeds)] = picked, weights
        return self._draws[(pair, seeds)]


def interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def tables(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """quality.csv (every number) and quality.md (recovery, and differences to the baselines)."""
    scores = Scores(rows)
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    cells = list(dict.fromkeys((row["pair"], row["method"]) for row in rows))
    budgets = config["target"]["budgets"]
    seconds = {(r["pair"], r["method"], r["init"]): r["port_seconds"] for r in rows}
    names = {r["pair"]: f"{r['source']} → {r['target']}" for r in rows}
    found: list[dict[str, Any]] = []
    for pair, method in cells:
        inits = list(
            dict.fromkeys(r["init"] for r in rows if (r["pair"], r["method"]) == (pair, method))
        )
        native, native_draws = scores.accuracy((pair, method, "native", config["source"]["steps"]))
        for init in inits:
            for budget in [config["source"]["steps"]] if init in AS_TRAINED else budgets:
                key = (pair, method, init, budget)
                if key not in scores.right:
                    continue
                point, draws = scores.accuracy(key)
                recovery = (point - 0.5) / (native - 0.5)
                low, high = interval((draws - 0.5) / (native_draws - 0.5))
                row = {"pair": pair, "hosts": names[pair], "method": method, "init": init,
                       "budget": budget, "seeds": len(scores.right[key]),
                       "balanced_accuracy": point, "recovery": recovery,
                       "recovery_low": low, "recovery_high": high,
                       "port_seconds": seconds[(pair, method, init)]}  # fmt: skip
                for other in AGAINST:
                    name = _column(other)
                    when = config["source"]["steps"] if other in AS_TRAINED else budget
                    rival = (pair, method, other, when)
                    if rival in scores.right and init not in AS_TRAINED and other != init:
                        base, base_draws = scores.accuracy(rival)
                        low, high = interval(draws - base_draws)
                        row |= {f"vs_{name}": point - base, f"vs_{name}_low": low,
                                f"vs_{name}_high": high}  # fmt: skip
                found.append(row)
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for row in found for key in row))
    with (folder / "quality.csv").open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, keys)
        writer.writeheader()
        writer.writerows({k: _round(v) for k, v in row.items()} for row in found)
    text = [_recovery(found, pair, budgets) for pair in pairs]
    text += [_differences(found, budgets)]
    (folder / "quality.md").write_text("\n".join(text), encoding="utf-8")


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _column(init: str) -> str:
    return init.replace(" ", "_").replace("-", "_")


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}"


def _recovery(found: Sequence[Mapping[str, Any]], pair: str, budgets: Sequence[int]) -> str:
    """One pair: inits down, method x budget across; balanced accuracy and recovery."""
    own = [row for row in found if row["pair"] == pair]
    methods = list(dict.fromkeys(row["method"] for row in own))
    inits = list(dict.fromkeys(row["init"] for row in own if row["init"] not in AS_TRAINED))
    seeds = {row["method"]: row["seeds"] for row in own}
    lines = [f"## {pair}: {own[0]['hosts']}", ""]
    lines.append("Balanced accuracy after 0 / 10 / 30 labelled steps (recovery after 0 steps).")
    lines += ["", "| init | " + " | ".join(f"{m} ({_count(seeds[m])})" for m in methods) + " |"]
    lines.append("| --- |" + " --- |" * len(methods))
    for init in inits:
        row = [init]
        for method in methods:
            at = {r["budget"]: r for r in own if (r["method"], r["init"]) == (method, init)}
            if not at:
                row.append("–")
                continue
            values = " / ".join(f"{at[b]['balanced_accuracy']:.3f}" for b in budgets)
            row.append(f"{values} ({at[0]['recovery']:.2f})")
        lines.append("| " + " | ".join(row) + " |")
    once = {(r["init"], r["method"]): r for r in own if r["init"] in AS_TRAINED}
    for init, name in (
        ("native", "native, as long as the source"),
        ("source", "the source's own, on its host"),
    ):
        rows = [once.get((init, m)) for m in methods]
        told = [f"{r['balanced_accuracy']:.3f} ({r['recovery']:.2f})" if r else "–" for r in rows]
        lines.append(f"| *{name}* | " + " | ".join(told) + " |")
    return "\n".join([*lines, ""])


def _differences(found: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> str:
    """Effect and distil against the baselines, with 95 % intervals."""
    lines = ["## Differences in balanced accuracy", ""]
    lines.append("95 % intervals by resampling seeds and test sentences; bold: zero is outside.")
    heads = [_column(other) for other in AGAINST]
    lines += ["", "| pair | method | strategy | steps | " +
              " | ".join(f"− {h.replace('_', ' ')}" for h in heads) + " |"]  # fmt: skip
    lines.append("| --- | --- | --- | --- |" + " --- |" * len(heads))
    for row in found:
        if row["init"] not in ("effect", "distil") or row["budget"] not in budgets:
            continue
        told = []
        for head in heads:
            if f"vs_{head}" not in row:
                told.append("–")
                continue
            low, high = row[f"vs_{head}_low"], row[f"vs_{head}_high"]
            text = f"{row[f'vs_{head}']:+.3f} [{low:+.3f}, {high:+.3f}]"
            told.append(f"**{text}**" if low > 0 or high < 0 else text)
        lines.append(
            f"| {row['pair']} | {row['method']} | {row['init']} | {row['budget']} | "
            + " | ".join(told) + " |"
        )  # fmt: skip
    return "\n".join([*lines, ""])
