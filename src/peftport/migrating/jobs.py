"""What is to be done, decided before anything is computed: adapters by form, refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftport.assessing.data import UserData, labelled, unlabelled
from peftport.assessing.run import class_count, fitting_task
from peftport.assessing.settings import Settings
from peftport.data.columns import Columns
from peftport.data.datasets import Dataset, load_dataset
from peftport.errors import PeftportError
from peftport.migrating.table import Assigned, assigned_to
from peftport.port_folder import Prepared, prepare


@dataclass(frozen=True)
class Job:
    """One adapter that can be ported.

    Attributes:
        name: its path below the folder.
        prepared: how it is ported.
        data: what it is measured on.
        form: adapters with one form differ in their values only, and share banks and controls.
    """

    name: str
    prepared: Prepared
    data: UserData
    form: str

    def to_json(self) -> dict[str, Any]:
        """What its numbers depend on."""
        plan = self.prepared.plan
        return {
            "module": self.prepared.module.digest,
            "form": self.form,
            "source": self.prepared.source.spec.fingerprint,
            "strategy": plan.strategy,
            "options": dict(plan.options),
        }


@dataclass(frozen=True)
class Request:
    """What holds for all adapters of a migration; the fields are arguments of ``migrate``."""

    target: str
    source: str | None
    strategy: str
    language_model: bool
    settings: Settings


def plan_jobs(
    adapters: Mapping[str, Path], table: Sequence[Assigned], request: Request
) -> tuple[list[Job], dict[str, str]]:
    """The jobs, and for every adapter that cannot be one the reason in one line."""
    jobs: list[Job] = []
    refused: dict[str, str] = {}
    datasets: dict[tuple[str, Columns | None], Dataset] = {}
    for name, folder in adapters.items():
        try:
            line = assigned_to(name, table)
            jobs.append(_job(name, folder, line, request, datasets))
        except PeftportError as error:
            refused[name] = str(error)
    return jobs, refused


def _job(
    name: str,
    folder: Path,
    line: Assigned,
    request: Request,
    datasets: dict[tuple[str, Columns | None], Dataset],
) -> Job:
    prepared = prepare(
        folder,
        request.target,
        source=request.source,
        strategy=request.strategy,
        texts=[],
        task=line.task,
    )
    if request.language_model:
        column = line.columns.text if line.columns else "text"
        data = unlabelled(line.dataset, request.settings, column=column)
    else:
        key = (line.dataset, line.columns)
        if key not in datasets:
            datasets[key] = load_dataset(line.dataset, columns=line.columns)
        count = class_count(prepared)
        data = labelled(datasets[key], prepared.module, count, request.settings, line.labels)
    prepared = replace(prepared, task=fitting_task(prepared, data, line.task))
    return Job(name, prepared, data, _form(prepared, data))


def _form(prepared: Prepared, data: UserData) -> str:
    plan, module = prepared.plan, prepared.module
    facts = [
        plan.target_config.to_json(),
        [(move.target, dict(move.after)) for move in plan.moves],
        {site: dict(shapes) for site, shapes in plan.shared.items()},
        dict(plan.head_after),
        module.notes.get("head"),
        prepared.task.to_json(),
        data.digest,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def units(jobs: Sequence[Job], settings: Settings) -> list[list[Job]]:
    """Jobs of one form, so many together that their ported and sampled modules fill a bank."""
    size = max(1, settings.bank // (2 * settings.seeds))
    forms: dict[str, list[Job]] = {}
    for job in jobs:
        forms.setdefault(job.form, []).append(job)
    return [own[at : at + size] for own in forms.values() for at in range(0, len(own), size)]
