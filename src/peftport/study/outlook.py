"""What a study will take, without its hosts: from committed configurations and a device's probe."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftport.data.tasks import Task
from peftport.errors import InputError
from peftport.hosts.known import known, planned_spec
from peftport.hosts.load import inspect_host
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, methods
from peftport.study.banks import compose
from peftport.study.estimate import body_parameters
from peftport.study.grid import Study
from peftport.study.materials import (
    OTHER,
    Materials,
    Part,
    check_texts,
    config_of,
    located,
    sentences,
)
from peftport.study.plan import Plan, Training, make_plan

#: what benchmarks/device_probe.py writes; texts of a slot there
PROBE_FORMAT, PROBE_TEXTS = 1, 16
#: a bank that a plan assumes where nothing says how many fit
USUAL = 32
#: share of a training step that a measurement's pass through the host takes
FORWARD = 0.5


@dataclass(frozen=True)
class Outlook:
    """A study's plan on paper.

    Attributes:
        plan: its trainings, as they will be run, but with other keys.
        banks: how many banks of at most ``bank`` modules.
        download_bytes: weights of hosts on the Hub, float32.
        store_bytes: modules and scores that the store will keep, before compression.
        device: the probe's device; None without one.
        device_s: seconds there, ports not counted; None without a probe.
    """

    plan: Plan
    bank: int
    banks: int
    download_bytes: int
    store_bytes: int
    device: str | None
    device_s: float | None


def look(study: Study, bank: int | None = None, probe: Path | None = None) -> Outlook:
    """Plan a study offline.

    Args:
        study: the grid.
        bank: modules of a bank; :data:`USUAL` when None.
        probe: what benchmarks/device_probe.py wrote on the device.

    Raises:
        InputError: a host that is neither here nor known, or a file that is no probe.
    """
    facts = None if probe is None else read_probe(probe)
    materials = on_paper(study)
    plan = make_plan(materials)
    size = bank or USUAL
    refs = {host.partition("@")[0]: known(host) for host in study.hosts}
    return Outlook(
        plan,
        size,
        sum(len(wave) for wave in compose(plan, size)),
        sum(found.download_bytes for found in refs.values() if found is not None),
        _store_bytes(materials, plan),
        None if facts is None else str(facts["about"]["device"]),
        None if facts is None else _device_s(materials, plan, facts, size),
    )


def on_paper(study: Study) -> Materials:
    """A study's materials where hosts and data of the Hub need not be there: their names stand for
    their digests. What is measured on must be at hand."""
    for method in study.methods:
        methods.get(method)
    task = Task.from_json({key.replace("-", "_"): v for key, v in study.task.items()})
    specs = {host: planned_spec(host) or inspect_host(located(study, host)) for host in study.hosts}
    configs: dict[tuple[str, str], MethodConfig] = {
        (method, host): config_of(method, given, spec)
        for method, given in study.methods.items()
        for host, spec in specs.items()
    }
    for host in specs:
        if planned_spec(host) is None:
            check_texts(study, host, task, [c for (_, on), c in configs.items() if on == host])
    alone = replace(study, data=replace(study.data, settings=("same",), other=None))
    parts, measured, counts = sentences(alone, task)
    if study.data.other is not None:
        parts[OTHER] = Part((f"planned {study.data.other.ref}",), (0,))
    unlabelled = tuple(parts["target-train"].texts[: study.strategy.texts])
    return Materials(study, task, parts, measured, unlabelled, specs, configs, counts)


def read_probe(path: Path) -> Mapping[str, Any]:
    """What a device can do. Raises InputError unless the probe wrote the file."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the probe '{path}': {error}") from None
    if not isinstance(found, dict) or found.get("format") != PROBE_FORMAT or not found.get("banks"):
        raise InputError(
            f"'{path}' is no probe of format {PROBE_FORMAT}; "
            "write one with benchmarks/device_probe.py --json"
        )
    return found


def _device_s(materials: Materials, plan: Plan, facts: Mapping[str, Any], bank: int) -> float:
    per_text = {host: _text_s(spec, facts, bank) for host, spec in materials.specs.items()}
    measured = len(materials.measured.texts)

    def seconds(t: Training) -> float:
        texts = 0 if t.init == "host" else t.steps * t.batch
        return per_text[t.host] * (texts + FORWARD * measured * len(t.budgets))

    return sum(seconds(t) for t in plan.trainings.values())


def _text_s(spec: HostSpec, facts: Mapping[str, Any], bank: int) -> float:
    """Seconds of a text in a training step, by the probed shape that is nearest in weights and its
    largest bank that is no larger than the study's."""
    weights = body_parameters(spec)
    nearest = min((own["weights"] for own in facts["banks"]), key=lambda w: abs(w - weights))
    fits = [own for own in facts["banks"] if own["weights"] == nearest]
    smaller = [own for own in fits if own["bank"] <= bank]
    own = max(smaller or fits, key=lambda one: one["bank"])
    return float(own["step_s"] / (own["bank"] * PROBE_TEXTS) * weights / nearest)


def _store_bytes(materials: Materials, plan: Plan) -> int:
    """Float32 modules after the last budget, and scores at every budget."""
    sizes: dict[tuple[str, str], int] = {}
    total = 0
    for key, training in plan.trainings.items():
        config = plan.configs[key]
        scores = 4 * len(materials.measured.texts) * materials.classes * len(training.budgets)
        total += scores
        if config is None:
            continue
        at = (training.host, json.dumps(config.to_json(), sort_keys=True))
        if at not in sizes:
            shapes = methods.get(config.method)().shapes(materials.specs[training.host], config)
            sizes[at] = 4 * sum(math.prod(s) for own in shapes.values() for s in own.values())
        total += sizes[at]
    return total


def kinds(plan: Plan) -> dict[str, int]:
    """Runs by kind."""
    return dict(Counter(row.kind for row, _ in plan.rows))
