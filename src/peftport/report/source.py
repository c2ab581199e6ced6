"""From a study's store to the evidence of a report. Reads the store's export and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peftport.errors import InputError
from peftport.report.evidence import ABLATIONS, Evidence, tidy, visible
from peftport.report.tables import RUN
from peftport.study.database import parsing, whole
from peftport.study.grid import Study
from peftport.study.rates import Table
from peftport.study.store import Store


def read_evidence(folder: Path, more: Sequence[Path] = ()) -> Evidence:
    """The evidence in a store, finished or not.

    Args:
        folder: the study's store.
        more: stores of studies on the same hosts and test sentences; their ablations and their
            native and source modules are shown beside the study's own.

    Raises:
        InputError: no store, a rate search, or another store with other sentences or hosts.
    """
    with Store.read(folder) as store:
        evidence = _evidence(store)
        base = (store.sentences(), _fingerprints(store))
    for other in more:
        with Store.read(other) as store:
            evidence = _beside(evidence, store, base)
    return evidence


def _evidence(store: Store) -> Evidence:
    study, rows = store.study, store.rows()
    if study.is_search:
        raise InputError(
            f"'{store.folder}' holds the rate search '{study.name}', which is not reported; give "
            "the store of a study that uses its rates"
        )
    cells = tidy(store.frame())
    hosts = _hosts(store)
    return Evidence(
        cells=cells,
        scores=_read_scores(store, cells),
        labels=store.labels(),
        name=visible(study.name),
        sizes={visible(name): host.shape for name, host in hosts.items()},
        floors={
            visible(name): "host" if host.decides_by == "word" else "constant"
            for name, host in hosts.items()
        },
        facts=_facts(store, study),
        one_source=study.source.seed is not None,
        planned={str(kind): int(n) for kind, n in rows["kind"].value_counts().items()},
        missing=_runs(rows[rows["status"] == "missing"]),
        failed=_runs(rows[rows["status"] == "failed"], ["error"]),
        guard=[(visible(name), f"{count:,}") for name, count in store.guard.items()],
        digest=visible(study.digest),
        volumes={
            visible(name): float(sum(host.layers.values()) * host.d_model**2)
            for name, host in hosts.items()
        },
        costs=_costs(rows, store.seconds()),
    )


@dataclass(frozen=True)
class _Host:
    """What a store says of a host; ``layers``: a stack's name and number of layers."""

    fingerprint: str
    family: str
    shape: str
    decides_by: str
    layers: Mapping[str, int]
    d_model: int


def _hosts(store: Store) -> dict[str, _Host]:
    """Hosts by name. Raises InputError where the store's maker wrote something else there."""
    found = {}
    with parsing(store.folder):
        for name, spec in store.facts["hosts"].items():
            found[name] = _Host(
                fingerprint=str(spec["fingerprint"]),
                family=str(spec["family"]),
                shape=str(spec["shape"]),
                decides_by=str(spec["decides_by"]),
                layers={str(stack): whole(count) for stack, count in spec["layers"].items()},
                d_model=whole(spec["d_model"]),
            )
    return found


def _costs(rows: pd.DataFrame, seconds: Mapping[str, float]) -> pd.DataFrame:
    done = rows[(rows["status"] == "done") & (rows["kind"] != "rate")].drop_duplicates("key")
    costs = done[["key", "kind", "method", "init", "parameters"]].reset_index(drop=True)
    costs["seconds"] = [seconds.get(key, float("nan")) for key in costs["key"]]
    return costs


def _read_scores(store: Store, cells: pd.DataFrame) -> Any:
    """All scores now: the store is closed while statistics run."""
    wanted = cells[["key", "budget"]].drop_duplicates().itertuples(index=False)
    found: dict[tuple[str, int], np.ndarray | None] = {
        (str(key), int(budget)): store.scores(str(key), int(budget)) for key, budget in wanted
    }
    return lambda key, budget: found.get((key, budget))


def _beside(
    evidence: Evidence, store: Store, base: tuple[list[str], Mapping[str, str]]
) -> Evidence:
    sentences, hosts = base
    if store.sentences() != sentences:
        raise InputError(
            f"'{store.folder}' was measured on other test sentences than '{evidence.name}'; give a "
            "study with the same data"
        )
    for name, fingerprint in _fingerprints(store).items():
        if hosts.get(name, fingerprint) != fingerprint:
            raise InputError(
                f"host '{visible(name)}' of '{store.folder}' has other weights than in "
                f"'{evidence.name}'; give a study on the same hosts"
            )
    cells = tidy(store.frame())
    beside = cells["init"].isin(ABLATIONS) | cells["kind"].isin(["native", "source", "floor"])
    own, scores = _read_scores(store, cells[beside]), evidence.scores
    merged = pd.concat([evidence.cells, cells[beside]], ignore_index=True)
    same = ["kind", "method", "source", "target", "data", "seed", "init", "budget"]

    def either(key: str, budget: int) -> np.ndarray | None:
        first = scores(key, budget)
        found = own(key, budget) if first is None else first
        return None if found is None else np.asarray(found)

    return replace(
        evidence,
        cells=merged.drop_duplicates(same, ignore_index=True),
        scores=either,
        facts=[*evidence.facts, ("Ablations and natives also from", visible(store.study.name))],
    )


def _fingerprints(store: Store) -> dict[str, str]:
    return {name: host.fingerprint for name, host in _hosts(store).items()}


def _runs(rows: pd.DataFrame, more: Sequence[str] = ()) -> pd.DataFrame:
    """What identifies each run, with every text made visible."""
    return rows[[*RUN, *more]].map(visible).reset_index(drop=True)


def _facts(store: Store, study: Study) -> list[tuple[str, str]]:
    """What was run, as label and text."""
    facts, environment, status = store.facts, store.environment, store.status()
    created, last = store.dates
    kinds = "; ".join(
        f"{kind} {counts['done']:,} of {counts['planned']:,}"
        for kind, counts in status["kinds"].items()
    )
    trainings = status["trainings"]
    with parsing(store.folder):
        versions = {**environment.get("versions", {})}
    data = study.data
    lines = [
        ("Study", f"{study.name}, grid {study.digest}"),
        *((f"Host {name}", _host(host)) for name, host in _hosts(store).items()),
        ("Host pairs", ", ".join(f"{source} → {target}" for source, target in study.pairs)),
        ("Methods", "; ".join(_method(name, given) for name, given in study.methods.items())),
        ("Data", f"trained further and tested on {data.target.ref}; source modules trained on "
                 + " and on ".join(_setting(study, setting) for setting in data.settings)),
        ("Seeds", ", ".join(map(str, study.seeds))),
        ("Source modules", f"{study.source.steps} steps, batch {study.source.batch}, "
                           + ("each run's own seed" if study.source.seed is None
                              else f"seed {study.source.seed} for all runs")),
        ("On the target", f"measured after {', '.join(map(str, study.target.budgets))} steps, "
                          f"batch {study.target.batch}"),
        ("Sampled", study.sampled),
        ("Strategy", f"{study.strategy.same_shape} between hosts of one shape, "
                     f"{study.strategy.otherwise} between others"),
        ("Learning rates", _rates(study)),
        ("Finished runs", kinds),
        ("Distinct trainings", f"{trainings['done']:,} of {trainings['planned']:,}, "
                               f"{sum(store.seconds().values()) / 60:.1f} minutes of training"),
        ("Machine", f"{environment.get('machine', '')}, {environment.get('cores', '?')} cores, "
                    f"{environment.get('threads', '?')} threads"),
        ("Versions", ", ".join([f"python {environment.get('python', '')}",
                                *(f"{name} {number}" for name, number in versions.items())])),
        ("Numerics version", str(facts.get("numerics", ""))),
        ("Created, last result", f"{created}, {last or 'none'}"),
        *(("Note", note) for note in store.notes),
    ]  # fmt: skip
    return [(visible(name), visible(" ".join(text.split()))) for name, text in lines]


def _host(host: _Host) -> str:
    layers = ", ".join(f"{count} {stack} layers" for stack, count in host.layers.items())
    return f"{host.family}, {layers}, {host.d_model} wide, weights {host.fingerprint[:12]}"


def _method(name: str, given: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in given.items())
    return f"{name} ({options or 'default configuration'})"


def _setting(study: Study, setting: str) -> str:
    other = study.data.other
    if setting == "same" or other is None:
        return f"{study.data.target.ref} (same)"
    return f"{other.ref} (other)"


def _rates(study: Study) -> str:
    rates = study.rates
    if not isinstance(rates, Table):
        return "searched"
    seeds = f"; chosen on seeds {', '.join(map(str, rates.seeds))}" if rates.seeds else ""
    return f"{rates.provenance}{seeds}"
