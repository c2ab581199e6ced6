"""A study's rows: every combination that it declares, in a fixed order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from peftport.study.grid import Study
from peftport.study.rates import Rate, Search, Table

Kind = Literal["grid", "native", "source", "ablation", "floor", "rate"]
#: inits that only make sense where a head belongs to the module
HEAD_INITS = ("head-only", "body-only", "probe")


@dataclass(frozen=True)
class Run:
    """One row of a study, measured at every one of its budgets.

    Attributes:
        kind: ``grid`` (what the study is about), ``native`` (trained on the target for as many
            steps as a source module), ``source`` (a source module at home), ``ablation``,
            ``floor`` (a word host alone) or ``rate`` (a candidate of a rate search).
        method: method of the module; empty for ``floor``.
        source, target: hosts; equal where nothing is ported.
        data: ``same`` or ``other``: what the source module was trained on.
        seed: decides fresh parameters and the order of the training sentences.
        source_seed: the seed of the source module.
        init: how the module starts; ``native`` where it is trained at length, ``host`` where
            there is none.
        budgets: steps before each measurement.
        lr, head_lr: learning rates; None where nothing of the kind is trained.
    """

    kind: Kind
    method: str
    source: str
    target: str
    data: str
    seed: int
    source_seed: int
    init: str
    budgets: tuple[int, ...]
    lr: float | None
    head_lr: float | None


def expand(study: Study, words: Collection[str] = ()) -> list[Run]:
    """All rows of a study.

    Args:
        study: the grid.
        words: those of its hosts that answer with a word: they have no head, so inits about the
            head are left out there, and the host alone is measured as the floor.

    Raises:
        InputError: the table of rates lacks one.
    """
    if isinstance(study.rates, Search):
        return list(_candidates(study, study.rates, words))
    rates, extras = study.rates, study.extras
    rows = [
        *_rows(study, rates, words, "grid", study.inits, study.seeds),
        *_rows(study, rates, words, "ablation", extras.ablation_inits, extras.ablation_seeds),
        *_at_length(study, rates, words),
        *_floors(study, words),
    ]
    return list(dict.fromkeys(rows))


def source_seed(study: Study, seed: int) -> int:
    return seed if study.source.seed is None else study.source.seed


def _rows(
    study: Study,
    rates: Table,
    words: Collection[str],
    kind: Literal["grid", "ablation"],
    inits: tuple[str, ...],
    seeds: tuple[int, ...],
) -> Iterator[Run]:
    for method in study.methods:
        for source, target in study.pairs:
            for data in study.data.settings:
                for seed in seeds:
                    for init in inits:
                        if init in HEAD_INITS and target in words:
                            continue
                        rate = rates.find(method, target, init)
                        lr, head_lr = _trained(rate, init, target in words)
                        yield Run(
                            kind, method, source, target, data, seed, source_seed(study, seed),
                            init, study.target.budgets, lr, head_lr,
                        )  # fmt: skip


def _at_length(study: Study, rates: Table, words: Collection[str]) -> Iterator[Run]:
    """Source modules measured at home, and native modules of the targets."""
    sources = dict.fromkeys(source for source, _ in study.pairs)
    targets = dict.fromkeys(target for _, target in study.pairs)
    needed = set(study.inits) | set(study.extras.ablation_inits)
    seeds = [*study.seeds, *study.extras.ablation_seeds] if needed - {"scratch", "probe"} else []
    wanted: list[tuple[Kind, str, str, int]] = []
    for seed in dict.fromkeys(source_seed(study, seed) for seed in seeds):
        wanted += [("source", h, data, seed) for h in sources for data in study.data.settings]
    for seed in study.extras.native_seeds:
        wanted += [("native", host, "same", seed) for host in targets]
    for method in study.methods:
        for kind, host, data, seed in wanted:
            lr, head_lr = native_rates(rates, method, host, host in words)
            yield Run(
                kind, method, host, host, data, seed, seed, "native", (study.source.steps,),
                lr, head_lr,
            )  # fmt: skip


def _floors(study: Study, words: Collection[str]) -> Iterator[Run]:
    for target in dict.fromkeys(target for _, target in study.pairs):
        if target in words:
            yield Run("floor", "", target, target, "same", 0, 0, "host", (0,), None, None)


def native_rates(
    rates: Table, method: str, host: str, word: bool
) -> tuple[float | None, float | None]:
    """Rates of source and native modules on a host."""
    return _trained(rates.find(method, host, "native"), "native", word)


def candidate_rates(
    search: Search, init: str, word: bool
) -> list[tuple[float | None, float | None]]:
    """The short list for an init, without what would train the same."""
    heads = (None,) if word else search.head_rates
    pairs = [(Rate(lr, head), init) for lr in search.rates for head in heads]
    return list(dict.fromkeys(_trained(rate, name, word) for rate, name in pairs))


def _trained(rate: Rate, init: str, word: bool) -> tuple[float | None, float | None]:
    """The rates that act: a word host has no head, a probe no body."""
    head_lr = None if word else (rate.lr if rate.head_lr is None else rate.head_lr)
    return (None if init == "probe" else rate.lr), head_lr


def _candidates(study: Study, search: Search, words: Collection[str]) -> Iterator[Run]:
    """Every rate of the short list for every method, target and init, and for native modules."""
    hosts = [host for host in study.hosts if any(host in pair for pair in study.pairs)]
    for method in study.methods:
        for seed in search.seeds:
            for host in hosts:
                for lr, head_lr in candidate_rates(search, "native", host in words):
                    yield Run(
                        "rate", method, host, host, "same", seed, seed, "native",
                        (study.source.steps,), lr, head_lr,
                    )  # fmt: skip
            for source, target in study.pairs:
                for init in study.inits:
                    if init in HEAD_INITS and target in words:
                        continue
                    for lr, head_lr in candidate_rates(search, init, target in words):
                        yield Run(
                            "rate", method, source, target, "same", seed, seed, init,
                            study.target.budgets, lr, head_lr,
                        )  # fmt: skip
