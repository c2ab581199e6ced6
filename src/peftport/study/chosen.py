"""Which learning rates a finished search chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from peftport.errors import InputError
from peftport.study.grid import Study
from peftport.study.rates import Rate, Search, Table, rates_to


class Trial(NamedTuple):
    """A measured candidate; ``score`` is None where its training failed (it diverged)."""

    method: str
    host: str
    init: str
    lr: float | None
    head_lr: float | None
    score: float | None


def choose(trials: Iterable[Trial]) -> dict[tuple[str, str, str], Rate]:
    """For every method, host and init the candidate with the best mean score.

    A candidate that failed anywhere is out. Of equals the smaller rates win, so that the choice
    does not depend on any order.

    Raises:
        InputError: every candidate of some method, host and init failed.
    """
    scores: dict[tuple[str, str, str], dict[tuple[float | None, float | None], list[Any]]] = {}
    for t in trials:
        cell = scores.setdefault((t.method, t.host, t.init), {})
        cell.setdefault((t.lr, t.head_lr), []).append(t.score)
    table: dict[tuple[str, str, str], Rate] = {}
    for name, cell in scores.items():
        sound = {
            rates: sum(values) / len(values) for rates, values in cell.items() if None not in values
        }
        if not sound:
            raise InputError(
                f"every candidate of {' / '.join(name)} failed; add smaller rates to the search"
            )
        lr, head_lr = min(sound, key=lambda r: (-sound[r], r[0] or 0.0, r[1] or 0.0))
        # a probe trains no body: its entry repeats the head's rate
        table[name] = Rate(lr if lr is not None else head_lr or 0.0, head_lr, sound[(lr, head_lr)])
    return table


def chosen_rates(study: Study, trials: Iterable[Trial]) -> Mapping[str, Any]:
    """The ``rates`` part of a study file that uses the choice."""
    search = study.rates
    if not isinstance(search, Search):
        raise InputError(f"study '{study.name}' searches no rates; run one with rates.search")
    table = {
        name: Rate(rate.lr, rate.head_lr, None if rate.score is None else round(rate.score, 4))
        for name, rate in choose(trials).items()
    }
    provenance = (
        f"study {study.name} ({study.digest}): best {search.metric} on validation sentences at the "
        f"largest budget, mean over its pairs and seeds {list(search.seeds)}, from rates "
        f"{list(search.rates)} and head rates {list(search.head_rates)}"
    )
    return {"rates": rates_to(Table(table, provenance, search.seeds))}
