"""What became of every adapter, for people and for programs: terminal, csv, HTML, and the card."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import jinja2
import numpy as np

from peftport import __version__
from peftport.assessing.data import UserData
from peftport.assessing.run import mean_metrics
from peftport.assessing.settings import Settings
from peftport.assessing.show import HEADER, markdown_table, table
from peftport.assessing.verdict import Judgement, Thresholds
from peftport.atomic import write_text
from peftport.escape import inline_code, visible
from peftport.port_folder import Prepared, Worth
from peftport.porting import PortPlan

KEEP, REPAIRED, RETRAIN, REFUSED = "keep", "repaired", "retrain", "refused"
CSV, HTML = "triage.csv", "triage.html"
#: metric -> its type on the Hub and its name
_METRICS = {
    "balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "accuracy": ("accuracy", "accuracy"),
    "auc": ("roc_auc", "AUC"),
    "loss": ("loss", "loss of a token"),
    "perplexity": ("perplexity", "perplexity"),
}


@dataclass(frozen=True)
class Line:
    """One adapter of the triage.

    Attributes:
        adapter: its path below the folder.
        triage: keep, repaired, retrain or refused.
        why: one sentence.
        method, source, strategy: what it is and how it was ported; empty where it was refused.
        steps: of repair.
        score, floor, native: of the module (after its steps), the host alone, and native modules.
        recovery, low, high: with its interval; None where it is undefined.
        folder: where it was written, below the output; empty where it was not.
    """

    adapter: str
    triage: str
    why: str
    method: str = ""
    source: str = ""
    strategy: str = ""
    steps: int = 0
    score: float | None = None
    floor: float | None = None
    native: float | None = None
    recovery: float | None = None
    low: float | None = None
    high: float | None = None
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def refused(cls, adapter: str, why: str) -> Self:
        return cls(adapter, REFUSED, visible(why))

    @classmethod
    def assessed(
        cls,
        adapter: str,
        prepared: Prepared,
        plan: PortPlan,
        triage: str,
        steps: int,
        judged: Judgement,
    ) -> Self:
        row = judged.at(steps)
        recovery, native = row.recovery, judged.native
        score = row.scores["ported"].point
        return cls(
            adapter,
            triage,
            f"{judged.short}: {judged.why}",
            plan.config.method,
            prepared.source.name,
            plan.strategy,
            steps,
            None if math.isnan(score) else score,
            judged.floor,
            None if native is None else native.point,
            None if recovery is None else recovery.point,
            None if recovery is None else recovery.low,
            None if recovery is None else recovery.high,
        )

    @property
    def shown(self) -> list[str]:
        """Cells for people, under :data:`COLUMNS`."""
        recovery = "" if self.recovery is None else f"{self.recovery:.2f}"
        if self.low is not None and self.high is not None:
            recovery += f" [{self.low:.2f}, {self.high:.2f}]"
        score = "" if self.score is None else f"{self.score:.3f}"
        return [visible(self.adapter), self.triage, self.method, score, recovery, visible(self.why)]


COLUMNS = ("adapter", "triage", "method", "score", "recovery", "why")


def write_triage(lines: Sequence[Line], folder: Path, target: str, thresholds: Thresholds) -> None:
    """Write :data:`CSV` and :data:`HTML`, each whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    names = [f.name for f in fields(Line)]
    writer.writerow(names)
    for line in lines:
        facts = line.to_json()
        writer.writerow([_safe(facts[name]) for name in names])
    write_text(folder / CSV, text.getvalue())
    write_text(folder / HTML, html(lines, target, thresholds))


def _safe(value: Any) -> Any:
    """No cell that a spreadsheet would take for a formula."""
    if isinstance(value, float):
        return repr(value)
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t"))
    return f"'{value}" if formula else value


def html(lines: Sequence[Line], target: str, thresholds: Thresholds) -> str:
    """One page that loads nothing and runs nothing; every text is escaped by the template."""
    source = Path(__file__).with_name("triage.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    counts = [(kind, sum(line.triage == kind for line in lines)) for kind in _ORDER]
    return environment.from_string(source).render(
        lines=lines,
        columns=COLUMNS,
        counts=counts,
        target=visible(target),
        thresholds=thresholds,
        version=__version__,
    )


_ORDER = (KEEP, REPAIRED, RETRAIN, REFUSED)


def worth(
    data: UserData,
    judged: Judgement,
    plan: PortPlan,
    steps: int,
    logits: np.ndarray,
    settings: Settings,
) -> Worth:
    """What a card says of the module that was written.

    Args:
        data: what it was measured on.
        judged: the answer.
        plan: how it was ported.
        steps: how long it was trained on the target.
        logits: of this very module  [1, N, C].
        settings: of the measurement.
    """
    found = {name: value for name, value in mean_metrics(logits, data).items() if name in _METRICS}
    metrics = [
        {"type": _METRICS[name][0], "name": _METRICS[name][1], "value": round(value, 6)}
        for name, value in found.items()
        if math.isfinite(value)
    ]
    kind = "text-classification" if data.classes else "text-generation"
    index = {
        "name": f"{plan.config.method} ported by peftport",
        "results": [
            {
                "task": {"type": kind},
                "dataset": {"name": visible(data.name), "type": "custom", "split": "test"},
                "metrics": metrics,
            }
        ],
    }
    values = ", ".join(f"{m['name']} {m['value']:.3f}" for m in metrics)
    trained = f" after {steps} labelled steps there" if steps else ""
    text = f"""## Worth

On {len(logits[0]):,} test texts of {inline_code(data.name)} (digest `{data.digest[:16]}`), this
module{trained} has {values}.

**{judged.short}**: {visible(judged.why)}.

{markdown_table(HEADER, table(judged))}

Means over {settings.seeds} seeds with 95% intervals; floor {judged.floor:.3f}; recovery is the
share of what {settings.native_steps} native steps gain over it. `*`: p below
{judged.thresholds.level:g} after Holm's correction over the budgets."""
    return Worth(text, [index], steps)
