"""Trainings to banks: which are done together, in one pass through their host.

The composition follows from the plan and the size alone, never from what is already done, so that
a resumed study does the same banks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from itertools import pairwise

from peftport.study.plan import Plan

#: a bank as keys of trainings, in the plan's order
Keys = tuple[str, ...]


def compose(plan: Plan, size: int) -> tuple[tuple[Keys, ...], tuple[Keys, ...]]:
    """The banks of each wave, in the order in which they are done.

    Args:
        plan: the study's plan.
        size: K, most trainings in a bank.

    Returns:
        For each wave its banks: every training in exactly one, those of a bank alike in all that
        must be equal there. A group is cut into as few banks as possible, of sizes that differ by
        at most one. Banks stand in the order of their first trainings, so that a host and a pair
        of hosts stay loaded for all methods.
    """
    place = {key: at for at, key in enumerate(plan.trainings)}
    first, second = (
        tuple(sorted(_cut(plan, wave, size), key=lambda keys: place[keys[0]]))
        for wave in plan.waves
    )
    return first, second


def _cut(plan: Plan, wave: Sequence[str], size: int) -> list[Keys]:
    groups: dict[Hashable, list[str]] = {}
    for key in wave:
        groups.setdefault(_alike(plan, key), []).append(key)
    banks = []
    for keys in groups.values():
        count = math.ceil(len(keys) / size)
        bounds = [len(keys) * i // count for i in range(count + 1)]
        banks += [tuple(keys[a:b]) for a, b in pairwise(bounds)]
    return banks


def _alike(plan: Plan, key: str) -> Hashable:
    """What trainings of a bank have in common. On one host a config gives the tensors' shapes."""
    training, config = plan.trainings[key], plan.configs[key]
    if config is None:
        return key  # the host alone: nothing is trained
    return (
        training.host,
        json.dumps(config.to_json(), sort_keys=True),
        training.init == "probe",
        training.batch,
        training.budgets,
    )
