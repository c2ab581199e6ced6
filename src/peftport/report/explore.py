"""What the page's filters show: every method, host pair, data setting, metric and budget, alone and
pooled, each with its interval. Explored, not planned: nothing here is adjusted for how much was
looked at."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from peftport.report.evidence import CONTROLS, INITS, Evidence, pair_name
from peftport.report.resample import FACTORS, Interval, Resampled
from peftport.report.stats import Paired, mean_of, paired, share

ALL = "all"
#: directions are compared by the advantage over this control
DIRECTION_CONTROL = "scratch"
#: words by which a host's name says that it was trained on to follow instructions or a domain
TUNED = re.compile(r"(?:^|[-_/. ])(tuned|instruct|it|chat|flan|sft|dpo|rlhf)(?:$|[-_/. \d])", re.I)
CUT = ["metric", "method", "pair", "data"]


class Cut(NamedTuple):
    """A selection; ``all`` pools."""

    method: str
    pair: str
    data: str


def explore(evidence: Evidence, scores: Mapping[str, Resampled]) -> dict[str, pd.DataFrame]:
    """Tables by name: curves, saved, heat, effects, directions; columns CUT first."""
    curves, saved, heat = _curves(evidence, scores)
    effects, directions = _effects(evidence, scores)
    return {"curves": curves, "saved": saved, "heat": heat, "effects": effects,
            "directions": directions}  # fmt: skip


def levels(values: Sequence[str]) -> list[str]:
    """``all``, then the single ones where there are several."""
    found = sorted(set(values))
    return [ALL, *(found if len(found) > 1 else [])]


def _cuts(cells: pd.DataFrame, methods: Sequence[str]) -> Iterator[tuple[Cut, np.ndarray]]:
    """Every combination of method, host pair and data setting with its rows ``[U]``."""
    names = {
        "method": cells["method"].to_numpy(object),
        "pair": pair_names(cells),
        "data": cells["data"].to_numpy(object),
    }
    options = [methods, levels(names["pair"].tolist()), levels(names["data"].tolist())]
    for chosen in itertools.product(*options):
        cut, mask = Cut(*chosen), np.ones(len(cells), dtype=bool)
        for column, value in cut._asdict().items():
            mask &= (names[column] == value) if value != ALL else True
        yield cut, mask


def pair_names(cells: pd.DataFrame) -> np.ndarray:
    """``source → target`` of every line ``[U]``."""
    names = [pair_name(s, t) for s, t in zip(cells["source"], cells["target"], strict=True)]
    return np.array(names, dtype=object)


def _curves(
    evidence: Evidence, scores: Mapping[str, Resampled]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Mean score by init and budget, steps saved, and recovery of single host pairs."""
    curves: list[dict[str, Any]] = []
    saved: list[dict[str, Any]] = []
    heat: list[dict[str, Any]] = []
    for metric, resampled in scores.items():
        cells = evidence.grid.dropna(subset=[metric]).reset_index(drop=True)
        rows = resampled.rows(cells)
        factors = {factor: cells[factor].to_numpy(object) for factor in FACTORS}
        inits, budgets = cells["init"].to_numpy(object), cells["budget"].to_numpy()
        natives = _natives(evidence, resampled)
        for cut, mask in _cuts(cells, evidence.methods):
            found: dict[tuple[str, int], Interval] = {}
            for init, budget in itertools.product(INITS, evidence.budgets):
                own = mask & (inits == init) & (budgets == budget)
                if not own.any():
                    continue
                i = found[init, budget] = resampled.mean(
                    {factor: column[own] for factor, column in factors.items()}, rows[own]
                )
                curves.append({"metric": metric, **cut._asdict(), "init": init, "budget": budget,
                               **_numbers(i)})  # fmt: skip
            saved += [{"metric": metric, **cut._asdict(), **line} for line in saved_steps(found)]
            if mask.any() and (cut.pair != ALL or cells[mask]["target"].nunique() == 1):
                first = cells[mask].iloc[0]
                place = (cut.method, str(first["source"]), str(first["target"]))
                heat += [
                    {"metric": metric, **cut._asdict(), **line}
                    for line in _recovered(evidence, metric, place, found, natives)
                ]
    return pd.DataFrame(curves), pd.DataFrame(saved), pd.DataFrame(heat)


def _numbers(i: Interval) -> dict[str, Any]:
    return {"mean": i.point, "low": i.low, "high": i.high, "runs": i.runs,
            "trainings": i.trainings}  # fmt: skip


def _natives(evidence: Evidence, scores: Resampled) -> dict[tuple[str, str], Interval]:
    """Natively trained modules: (method, target) to their mean."""
    found = {}
    for method, host in itertools.product(evidence.methods, set(evidence.grid["target"])):
        native = mean_of(scores, evidence.native(method, host))
        if native is not None:
            found[method, host] = native
    return found


def _recovered(
    evidence: Evidence, metric: str, place: tuple[str, str, str],
    found: Mapping[tuple[str, int], Interval], natives: Mapping[tuple[str, str], Interval],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    method, source, target = place
    native = natives.get((method, target))
    for budget in evidence.budgets:
        ported = found.get(("ported", budget))
        if ported is None or native is None:
            continue
        r = share(ported, native, evidence.floor(target, metric)[1])
        ratio = r.ratio
        yield {
            "source": source, "target": target, "budget": budget,
            "recovery": ratio.point if ratio else np.nan, "low": ratio.low if ratio else np.nan,
            "high": ratio.high if ratio else np.nan, "ported": ported.point,
            "native": native.point, "floor": r.floor, "runs": ported.runs, "note": r.why,
        }  # fmt: skip


def saved_steps(found: Mapping[tuple[str, int], Interval]) -> Iterator[dict[str, Any]]:
    """Steps from scratch until the score that ported modules have after ``budget`` steps, minus
    these steps; measured budgets are joined by straight lines.

    ``saved``, ``low`` and ``high`` are infinite where scratch does not get there; ``most`` is what
    the largest budget could show.
    """
    budgets = sorted(budget for init, budget in found if init == "scratch")
    if len(budgets) < 2:
        return
    curve = np.array([found["scratch", b].point for b in budgets])
    draws = np.stack([found["scratch", b].draws for b in budgets], axis=1)  # [B, n]
    for budget in budgets[:-1]:
        ported = found.get(("ported", budget))
        if ported is None:
            continue
        point = float(crossing(budgets, curve[None], np.array([ported.point]))[0]) - budget
        spread = np.sort(crossing(budgets, draws, ported.draws)) - budget
        at = [round(q * (len(spread) - 1)) for q in (0.025, 0.975)]
        yield {"budget": budget, "saved": point, "low": float(spread[at[0]]),
               "high": float(spread[at[1]]), "most": budgets[-1] - budget,
               "runs": ported.runs}  # fmt: skip


def crossing(budgets: Sequence[int], curves: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """First step at which each curve ``[B, n]`` over ``budgets [n]`` reaches its goal ``[B]``;
    infinite where it does not.

    >>> crossing([0, 10, 30], np.array([[0.5, 0.6, 0.7]]), np.array([0.65]))
    array([20.])
    """
    first = np.where(curves[:, 0] >= goal, float(budgets[0]), np.inf)
    for at in range(len(budgets) - 1):
        left, right = curves[:, at], curves[:, at + 1]
        inside = np.isinf(first) & (left < goal) & (right >= goal)
        rise = np.where(inside, right - left, 1.0)
        step = budgets[at] + (goal - left) / rise * (budgets[at + 1] - budgets[at])
        first = np.where(inside, step, first)
    return first


def _effects(
    evidence: Evidence, scores: Mapping[str, Resampled]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ported minus each control of matched runs, and by porting direction."""
    effects: list[dict[str, Any]] = []
    directions: list[dict[str, Any]] = []
    for (metric, resampled), control, budget in itertools.product(
        scores.items(), CONTROLS, evidence.budgets
    ):
        pairs = paired(evidence, resampled, control, budget)
        if not len(pairs):
            continue
        ways = _ways(evidence, pairs)
        for cut, mask in _cuts(pairs.units, [ALL, *evidence.methods]):
            if not mask.any():
                continue
            line = {"metric": metric, **cut._asdict(), "control": control, "budget": budget}
            own = pairs.where(mask)
            effects.append({**line, **_numbers(own.mean(resampled)), **effect(own, resampled)})
            if cut.pair == ALL and control == DIRECTION_CONTROL:
                directions += [{**line, **d} for d in _by_way(own, resampled, ways, mask)]
    return pd.DataFrame(effects), pd.DataFrame(directions)


def effect(pairs: Paired, scores: Resampled) -> dict[str, float]:
    """Effect sizes: the share of pairs in which ported is ahead (ties half), and Hedges' g.

    g = (1 - 3 / (4 d - 1)) mean(plus - minus) / s, s the root mean of the two variances over runs,
    d = 2 n - 2. Source: Hedges 1981 (J. Educ. Stat. 6), eq. 5 and 6.
    """
    values = pairs.values(scores)
    ahead = float(((values > 0) + 0.5 * (values == 0)).mean())
    if len(values) < 2:
        return {"ahead": ahead, "g": float("nan")}
    spread = scores.point[pairs.plus].var(ddof=1) + scores.point[pairs.minus].var(ddof=1)
    if spread == 0:
        return {"ahead": ahead, "g": float("nan")}
    correction = 1 - 3 / (4 * (2 * len(values) - 2) - 1)
    return {"ahead": ahead, "g": float(correction * values.mean() / (spread / 2) ** 0.5)}


def _ways(evidence: Evidence, pairs: Paired) -> dict[str, np.ndarray]:
    """Direction to the units that go there ``[U]``."""
    found: dict[str, list[bool]] = {"raw → tuned": [], "tuned → raw": [], "up in size": [],
                                    "down in size": []}  # fmt: skip
    for source, target in zip(pairs.units["source"], pairs.units["target"], strict=True):
        here, there = bool(TUNED.search(source)), bool(TUNED.search(target))
        small = evidence.volumes.get(source, np.nan) < evidence.volumes.get(target, np.nan)
        large = evidence.volumes.get(source, np.nan) > evidence.volumes.get(target, np.nan)
        for name, fits in zip(found, (there > here, here > there, small, large), strict=True):
            found[name].append(fits)
    return {name: np.array(fits, dtype=bool) for name, fits in found.items()}


def _by_way(
    own: Paired, scores: Resampled, ways: Mapping[str, np.ndarray], mask: np.ndarray
) -> Iterator[dict[str, Any]]:
    for question, (one, two) in {"tuning": ("raw → tuned", "tuned → raw"),
                                 "size": ("up in size", "down in size")}.items():  # fmt: skip
        sides = [ways[name][mask] for name in (one, two)]
        if not all(side.any() for side in sides):
            continue
        for name, side in zip((one, two), sides, strict=True):
            yield {"question": question, "direction": name,
                   **_numbers(own.where(side).mean(scores))}  # fmt: skip
        both = own.where(sides[0] | sides[1])
        contrast = both.mean(scores, first=sides[0][sides[0] | sides[1]])
        yield {"question": question, "direction": f"{one} minus {two}", **_numbers(contrast)}
