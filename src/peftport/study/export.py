"""A study as a long table: one line per run, budget and metric.

Two stores of one grid with the same numbers export the same bytes: no times, no attempts, a fixed
order, floats written so that they read back equal.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftport.atomic import write_bytes
from peftport.errors import InputError
from peftport.study.database import one_line_errors, parsing
from peftport.train.metrics import METRICS, metrics

if TYPE_CHECKING:
    import pandas as pd

    from peftport.study.store import Store

#: what a line says, in this order; ``key`` identifies the training (runs may share one), ``study``
#: the grid, ``parameters`` counts what was trained, ``split`` is 1 where a bank was done in parts
COLUMNS = (
    "kind", "method", "source", "target", "data", "seed", "init", "budget", "metric", "value",
    "key", "study", "source_seed", "lr", "head_lr", "parameters", "split",
)  # fmt: skip
_ORDER = [
    "kind", "method", "source", "target", "data", "seed", "init", "lr", "head_lr", "key", "budget",
    "metric",
]  # fmt: skip
FORMATS = ("csv", "parquet")


def long_frame(store: Store) -> pd.DataFrame:
    """Every finished run's metrics, computed from the stored scores; columns :data:`COLUMNS`."""
    import pandas as pd

    labels, digest = store.labels(), store.study.digest
    rows = store.rows()
    measured: dict[tuple[str, int], dict[str, float]] = {}
    lines: list[dict[str, Any]] = []
    for row in rows[rows["status"] == "done"].to_dict("records"):
        shared = {name: row[name] for name in COLUMNS if name in row}
        for budget in row["budgets"]:
            at = (row["key"], budget)
            if at not in measured:
                scores = store.scores(*at)
                with parsing(store.folder):
                    measured[at] = {} if scores is None else metrics(scores, labels)
            for metric, value in measured[at].items():
                lines.append(
                    {**shared, "study": digest, "budget": budget, "metric": metric, "value": value}
                )
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    rank = {name: at for at, name in enumerate(METRICS)}
    return frame.sort_values(
        _ORDER,
        key=lambda column: column.map(rank) if column.name == "metric" else column,
        ignore_index=True,
        kind="stable",
    )


def export(store: Store, kind: str, path: Path) -> int:
    """Write the table as ``csv`` or ``parquet``; returns its number of lines.

    Raises:
        InputError: the file cannot be written.
    """
    frame = long_frame(store)
    if kind == "csv":
        content = _csv(frame)
    elif kind == "parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        content = buffer.getvalue()
    else:
        raise InputError(f"unknown format '{kind}'; known: {', '.join(FORMATS)}")
    with one_line_errors(path):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"cannot write '{path}'; give a file in an existing folder to -o")
        write_bytes(path, content)
    return len(frame)


def _csv(frame: pd.DataFrame) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(frame.columns)
    for line in frame.itertuples(index=False):
        writer.writerow(["" if v is None or v != v else _plain(v) for v in line])
    return text.getvalue().encode()


def _plain(value: Any) -> Any:
    return repr(float(value)) if isinstance(value, float) else value
