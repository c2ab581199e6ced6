"""The report as plain text for a terminal, and as data for ``--json``."""

from __future__ import annotations

import textwrap
from typing import Any

from peftport.report.build import Report
from peftport.report.evidence import METRIC_NAMES, PAIR
from peftport.report.views import score_view

#: with more host pairs than this the terminal shows them pooled
PAIRS = 3
WIDTH = 110


def text(report: Report) -> str:
    """The four answers, what is missing, and the scores."""
    evidence = report.evidence
    pairs = evidence.grid[["source", "target"]].drop_duplicates()
    name = "scores" if len(pairs) <= PAIRS else "pooled"
    parts = [f"{evidence.name}: {status(report)}", ""]
    for at, claim in enumerate(report.claims, start=1):
        parts.append(f"{at}. {claim.question}  {claim.answer.upper()}")
        parts += [
            textwrap.fill(sentence, WIDTH, initial_indent="   ", subsequent_indent="     ")
            for sentence in claim.sentences
        ]
    pooled = "" if name == "scores" else ", host pairs pooled"
    parts += ["", f"{METRIC_NAMES[report.metric]}, mean [95% interval]{pooled}"]
    parts.append(score_view(report, name).text())
    return "\n".join(parts)


def status(report: Report) -> str:
    """``72 of 96 grid runs finished, 20 missing, 4 failed``"""
    evidence = report.evidence
    done = len(evidence.grid[[*PAIR, "init"]].drop_duplicates())
    if not evidence.complete:
        return f"{done:,} grid runs in the exported table"
    parts = [f"{done:,} of {evidence.planned.get('grid', done):,} grid runs finished"]
    for word, table in (("missing", evidence.missing), ("failed", evidence.failed)):
        if len(table):
            parts.append(f"{len(table):,} {word}")
    return ", ".join(parts)


def data(report: Report) -> dict[str, Any]:
    """Claims, tables and what is missing, ready for JSON; numbers that are not there are null."""
    claims = [
        {
            "claim": claim.name,
            "question": claim.question,
            "answer": claim.answer,
            "sentences": list(claim.sentences),
        }
        for claim in report.claims
    ]
    found = {name: records(table) for name, table in report.tables.items()}
    return {
        "study": report.evidence.name,
        "metric": report.metric,
        "status": status(report),
        "claims": claims,
        **found,
    }


def records(table: Any) -> list[dict[str, Any]]:
    """Lines of a table for JSON."""
    return [
        {str(k): None if v != v else getattr(v, "item", lambda v=v: v)() for k, v in row.items()}
        for row in table.to_dict("records")
    ]
