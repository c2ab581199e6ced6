"""A study's report before it is written anywhere: claims, tables, what can be explored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from peftport.errors import InputError
from peftport.report import opinion, tables
from peftport.report.claims import Claim, all_claims, beats
from peftport.report.dataset import drawable
from peftport.report.evidence import CONTROLS, Evidence
from peftport.report.explore import explore
from peftport.report.resample import DRAWS, Resampled
from peftport.report.tables import PLACE


@dataclass(frozen=True)
class Report:
    """Everything that the page, the terminal and the files show.

    Attributes:
        metric: the metric that answers follow.
        claims: the four claims, by that metric.
        family: claim to its p, adjusted over the family of claims.
        tables: by name: scores, pooled, differences, opinions, ablations, recovery, sources, costs,
            missing, failed.
        explored: what the figures draw, by name: curves, effects, heat, directions, saved.
        unlike: trainings whose recomputed score differs from the exported one.
    """

    evidence: Evidence
    metric: str
    draws: int
    claims: list[Claim]
    family: Mapping[str, float]
    tables: Mapping[str, pd.DataFrame]
    explored: Mapping[str, pd.DataFrame]
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
        "opinions": opinion.second_opinions(evidence, scores[metric]),
        "ablations": tables.ablation_table(evidence, scores[metric]),
        "recovery": tables.recovery_table(evidence, scores[metric]),
        "sources": tables.source_table(evidence, scores),
        "costs": tables.cost_table(evidence),
        "missing": evidence.missing,
        "failed": evidence.failed,
    }
    unlike = [name for resampled in scores.values() for name in resampled.unlike]
    explored = drawable(evidence, explore(evidence, scores))
    family = opinion.family(claims)
    return Report(evidence, metric, draws, claims, family, found, explored, unlike)
