"""The paper's four claims, answered yes, no or not enough data; never beyond the interval.

Source: arXiv 2401.14228. Every claim is about one metric (balanced accuracy unless another is
asked for) at zero-shot and at the smallest budget above it. A claim about a control needs at least
three seeds; a claim about hosts needs at least three host pairs.
"""

from __future__ import annotations

from peftport.report.claims.base import ALL, Answer, Claim, Finding
from peftport.report.claims.controls import beats
from peftport.report.claims.groups import hosts_matter, methods_differ
from peftport.report.evidence import Evidence
from peftport.report.resample import Resampled

__all__ = ["ALL", "Answer", "Claim", "Finding", "all_claims", "beats"]


def all_claims(evidence: Evidence, scores: Resampled) -> list[Claim]:
    """The four claims, in the paper's order."""
    return [
        beats(evidence, scores, "scratch"),
        beats(evidence, scores, "sampled"),
        methods_differ(evidence, scores),
        hosts_matter(evidence, scores),
    ]
