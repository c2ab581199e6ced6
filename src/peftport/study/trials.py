"""The measured candidates of a search, out of its store."""

from __future__ import annotations

from peftport.errors import InputError
from peftport.study.chosen import Trial
from peftport.study.rates import Search
from peftport.study.store import Store
from peftport.train.metrics import metrics


def trials(store: Store) -> list[Trial]:
    """Every candidate with its score at the largest budget.

    Raises:
        InputError: the study searches no rates, or is not finished.
    """
    study = store.study
    if not isinstance(study.rates, Search):
        raise InputError(
            f"study '{study.name}' searches no rates (it has rates.table); give the store of a "
            "search, such as quick-rates"
        )
    rows = store.rows()
    missing = int((rows["status"] == "missing").sum())
    if missing:
        raise InputError(
            f"{missing} of {len(rows)} runs of '{study.name}' are missing; finish it with: "
            f"peftport study run {study.name} --store {store.folder}"
        )
    labels, metric = store.labels(), study.rates.metric
    found: list[Trial] = []
    for row in rows.to_dict("records"):
        scores = store.scores(row["key"], row["budgets"][-1])
        value = None if scores is None else metrics(scores, labels)[metric]
        lr, head_lr = (None if rate != rate else rate for rate in (row["lr"], row["head_lr"]))
        found.append(Trial(row["method"], row["target"], row["init"], lr, head_lr, value))
    return found
