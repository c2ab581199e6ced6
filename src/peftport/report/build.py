"""A study's report before it is written anywhere: claims, tables, figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import altair as alt
import pandas as pd

from peftport.errors import InputError
from peftport.report import figures, tables
from peftport.report.claims import Claim, all_claims, beats
from peftport.report.evidence import CONTROLS, Evidence
from peftport.report.resample import DRAWS, Resampled
from peftport.report.tables import PLACE


@dataclass(frozen=True)
class Report:
    """Everything that the page, the terminal and the files show.

    Attributes:
        metric: the metric that answers follow.
        claims: the four claims, by that metric.
        tables: by name: scores, pooled, differences, ablations, recovery, sources, missing, failed.
        figures: by name, in the order of the page.
        unlike: trainings whose recomputed score differs from the exported one.
    """

    evidence: Evidence
    metric: str
    draws: int
    claims: list[Claim]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, alt.Chart]
    unlike: list[str]


def build(evidence: Evidence, draws: int = DRAWS) -> Report:
    """Compute a report.

    Raises:
        InputError: no run of the study's own grid is finished.
    """
    if evidence.grid.empty:
        raise InputError(
            f"study '{evidence.name}' has no finished run to report; run it first: peftport study "
            "run NAME --store DIR"
        )
    scores = {metric: Resampled(evidence, metric, draws) for metric in evidence.metrics}
    metric = next(iter(scores))
    claims = all_claims(evidence, scores[metric])
    compared = {metric: claims}
    for other in list(scores)[1:]:
        compared[other] = [beats(evidence, scores[other], control) for control in CONTROLS]
    found = {
        "scores": tables.score_table(evidence, scores, PLACE),
        "pooled": tables.score_table(evidence, scores, ["method"]),
        "differences": tables.difference_table(compared),
        "ablations": tables.ablation_table(evidence, scores[metric]),
        "recovery": tables.recovery_table(evidence, scores[metric]),
        "sources": tables.source_table(evidence, scores),
        "missing": evidence.missing,
        "failed": evidence.failed,
    }
    drawn = {
        f"curves-{method}": chart
        for method, chart in figures.learning_curves(evidence, found["scores"], metric).items()
    }
    forest = figures.differences(claims, evidence.claim_budgets, metric)
    if forest is not None:
        drawn["differences"] = forest
    unlike = [name for resampled in scores.values() for name in resampled.unlike]
    return Report(evidence, metric, draws, claims, found, drawn, unlike)
