"""An assessment for people: the answer, the table behind it, what was assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftport.assessing.statistics import Interval
from peftport.assessing.verdict import CONTROLS, Judgement
from peftport.escape import inline_code, visible

if TYPE_CHECKING:
    from peftport.assessing.run import Assessment

HEADER = ("steps", "ported", "sampled", "scratch", "recovery", "ported - scratch",
          "ported - sampled")  # fmt: skip


def table(judgement: Judgement) -> list[list[str]]:
    """A line a budget, under :data:`HEADER`; ``*`` where Holm's p is below the level."""
    lines = []
    for row in judgement.rows:
        recovery = "unknown" if row.recovery is None else _ranged(row.recovery, "")
        line = [str(row.budget)]
        line += [f"{row.scores[init].point:.3f}" for init in ("ported", "sampled", "scratch")]
        line.append(recovery)
        for control in CONTROLS:
            found = row.against[control]
            star = "*" if found.holm < judgement.thresholds.level else ""
            line.append(_ranged(found.difference, "+") + star)
        lines.append(line)
    return lines


def _ranged(interval: Interval, sign: str) -> str:
    return f"{interval.point:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def sentences(found: Assessment) -> list[str]:
    """The answer first, then what it rests on."""
    judgement, settings = found.judgement, found.settings
    lines = [f"{judgement.short}: {judgement.why}."]
    native = "no native modules were trained"
    if judgement.native is not None:
        native = f"native modules ({settings.native_steps} steps) {_ranged(judgement.native, '')}"
        if judgement.rows[0].recovery is None:
            native += ", not above the floor for certain: recovery is undefined"
    lines.append(f"{found.score}: floor {judgement.floor:.3f}, {native}.")
    if judgement.saved is None:
        lines.append(f"Scratch's score after {settings.budgets[-1]} steps is not reached.")
    else:
        saved, batch = judgement.saved, settings.batch
        lines.append(
            f"Steps saved to reach scratch's score after {settings.budgets[-1]} steps: "
            f"{saved.point:.0f} [{saved.low:.0f}, {saved.high:.0f}], {saved.point * batch:.0f} "
            "examples."
        )
    for init, count in judgement.failed.items():
        lines.append(f"{count} of {settings.seeds} {init} trainings diverged and are left out.")
    lines.append(f"Thresholds: {judgement.thresholds}.")
    data = found.data
    sizes = ", ".join(
        f"{len(getattr(data, part).texts):,} {part}" for part in ("train", "validation", "test")
    )
    lines.append(
        f"Data: {visible(data.name)}, {sizes} texts; {settings.seeds} seeds; rates chosen for each "
        "init on the validation texts."
    )
    return [*lines, *(f"Note: {visible(note)}." for note in data.notes)]


def markdown(found: Assessment) -> str:
    """A page with everything that the command prints."""
    prepared = found.prepared
    answer, *rest = sentences(found)
    return f"""# {inline_code(prepared.adapter)} on {inline_code(prepared.target.name)}

**{answer}**

Ported from {inline_code(prepared.source.name)} by `{found.plan.strategy}`: {visible(prepared.why)}.

{markdown_table(HEADER, table(found.judgement))}

Intervals are 95%, over test texts and seeds; `*`: p below the level after Holm's correction over
the budgets.

{chr(10).join(f"- {line}" for line in rest)}
"""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
