"""Learning rates of a study: a table with its provenance, or the search that makes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftport.errors import InputError
from peftport.plain_yaml import read_yaml
from peftport.study.reader import Fields

#: stands for every host or every init that the table does not name
ANY = "any"
METRICS = ("accuracy", "balanced_accuracy", "auc")


@dataclass(frozen=True)
class Rate:
    """Learning rate of the body and of the head (None: the body's); ``score`` is what the
    search measured for it, for people."""

    lr: float
    head_lr: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Table:
    """Chosen rates by (method, host, init), where they come from, and the seeds they were
    chosen on. Init ``native`` is the rate of source and native modules on that host."""

    rates: Mapping[tuple[str, str, str], Rate]
    provenance: str
    seeds: tuple[int, ...] = ()

    def find(self, method: str, host: str, init: str) -> Rate:
        """The most specific entry. Raises InputError where there is none."""
        for key in ((host, init), (host, ANY), (ANY, init), (ANY, ANY)):
            if (method, *key) in self.rates:
                return self.rates[(method, *key)]
        raise InputError(
            f"rates.table has no rate for method '{method}', host '{host}', init '{init}'; add it, "
            f"or '{ANY}' for the host or the init"
        )


@dataclass(frozen=True)
class Search:
    """Candidates; the best on the validation sentences at the largest budget is chosen."""

    rates: tuple[float, ...]
    head_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    metric: str


Rates = Table | Search


def rates_from(top: Fields, base: Path) -> Rates:
    """The ``rates`` part of a study file."""
    part = top.part("rates")
    if part.has("from"):
        path = base / part.text("from")
        part.done()
        outer = Fields(read_yaml(path), "", path.name)
        rates = _table(outer.part("rates"))
        outer.done()
        return rates
    if part.has("search"):
        return _search(part)
    return _table(part)


def rates_to(rates: Rates) -> dict[str, Any]:
    """The mapping that ``rates_from`` reads back."""
    if isinstance(rates, Search):
        return {
            "search": {
                "rates": list(rates.rates),
                "head-rates": list(rates.head_rates),
                "seeds": list(rates.seeds),
                "metric": rates.metric,
            }
        }
    table: dict[str, Any] = {}
    for (method, host, init), rate in rates.rates.items():
        leaf = {"lr": rate.lr, "head-lr": rate.head_lr, "score": rate.score}
        row = table.setdefault(method, {}).setdefault(host, {})
        row[init] = {key: value for key, value in leaf.items() if value is not None}
    facts: dict[str, Any] = {"table": table, "provenance": rates.provenance}
    return {**facts, "seeds": list(rates.seeds)} if rates.seeds else facts


def _search(part: Fields) -> Search:
    inner = part.part("search")
    search = Search(
        rates=inner.numbers("rates"),
        head_rates=inner.numbers("head-rates"),
        seeds=inner.wholes("seeds"),
        metric=inner.text("metric", "balanced_accuracy", choices=METRICS),
    )
    inner.done()
    part.done()
    return search


def _table(part: Fields) -> Table:
    rates: dict[tuple[str, str, str], Rate] = {}
    methods = part.part("table")
    for method in part.parts("table"):
        hosts = methods.part(method)
        for host in methods.parts(method):
            inits = hosts.part(host)
            for init in hosts.parts(host):
                leaf = inits.part(init)
                rates[(method, host, init)] = Rate(
                    leaf.number("lr"), leaf.number("head-lr", None), leaf.number("score", None)
                )
                leaf.done()
    table = Table(rates, part.text("provenance"), part.wholes("seeds", ()))
    part.done()
    return table
