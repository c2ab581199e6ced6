"""One adapter, assessed on its new host."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftport import __version__
from peftport.assessing.bench import Bench, Controls, Measured, Progress
from peftport.assessing.data import LabelMap, UserData, labelled, unlabelled
from peftport.assessing.language import as_language_model
from peftport.assessing.settings import Settings
from peftport.assessing.show import markdown
from peftport.assessing.verdict import Judgement, judge
from peftport.data.datasets import Columns, load_dataset
from peftport.data.tasks import Task
from peftport.errors import InputError
from peftport.formats.files import check_place, new_folder
from peftport.hosts.families.base import families
from peftport.hosts.load import Host, check_length, load_host
from peftport.methods.base import Module
from peftport.port_folder import Prepared, both_hosts, carried, prepare, with_notes
from peftport.port_folder.prepare import AUTO
from peftport.porting import PortPlan
from peftport.train.metrics import metrics
from peftport.train.reference import fresh_head

#: unlabelled training texts that a port may look at
PORT_TEXTS = 1024
FACTS, SCORES, README = "assessment.json", "scores.npz", "README.md"


@dataclass(frozen=True)
class Assessment:
    """What an adapter is worth on another host.

    Attributes:
        prepared, plan: how it was ported.
        module: the ported module.
        data, settings: what it was measured with.
        controls, measured: logits and rates.
        judgement: the answer, and the numbers it rests on.
    """

    prepared: Prepared
    plan: PortPlan
    module: Module
    data: UserData
    settings: Settings
    controls: Controls
    measured: Measured
    judgement: Judgement

    @property
    def score(self) -> str:
        """What is measured."""
        return "balanced accuracy" if self.data.classes else "minus loss of a token"

    def facts(self) -> dict[str, Any]:
        """Everything but the logits, as JSON."""
        rates = {**self.controls.rates, **self.measured.rates}
        return {
            "peftport": __version__,
            **self.prepared.to_json(),
            "data": self.data.to_json(),
            "settings": self.settings.to_json(),
            "score": self.score,
            "rates": {
                i: {"lr": r.lr, "head_lr": r.head_lr, "validation": r.score}
                for i, r in rates.items()
            },
            "judgement": self.judgement.to_json(),
            "metrics": self._metrics(),
        }

    def _metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Every init's metrics at every budget, means over the seeds that ended well."""
        inits = {"ported": self.measured.ported, "sampled": self.measured.sampled,
                 "scratch": self.controls.scratch}  # fmt: skip
        found = {
            init: {str(b): mean_metrics(logits, self.data) for b, logits in by.items()}
            for init, by in inits.items()
        }
        if self.controls.native is not None:
            steps = str(self.settings.native_steps)
            found["native"] = {steps: mean_metrics(self.controls.native, self.data)}
        return found

    def save(self, folder: Path) -> None:
        """Write facts, a readable summary and all logits; the folder appears whole or not."""
        arrays = {f"ported_{b}": x for b, x in self.measured.ported.items()}
        arrays |= {f"sampled_{b}": x for b, x in self.measured.sampled.items()}
        arrays |= {f"scratch_{b}": x for b, x in self.controls.scratch.items()}
        arrays |= {"floor": self.controls.floor, "labels": np.asarray(self.data.test.labels)}
        if self.controls.native is not None:
            arrays["native"] = self.controls.native
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **arrays)
        with new_folder(folder.absolute(), overwrite=False) as made:
            (made / FACTS).write_text(json.dumps(self.facts(), indent=2) + "\n", encoding="utf-8")
            (made / README).write_text(markdown(self), encoding="utf-8")
            (made / SCORES).write_bytes(packed.getvalue())


def assess(
    adapter: str | Path,
    target: str,
    data: str,
    output: str | Path | None = None,
    *,
    source: str | None = None,
    strategy: str = AUTO,
    task: Mapping[str, Any] | None = None,
    columns: Columns | None = None,
    labels: LabelMap | None = None,
    language_model: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Assessment:
    """What an adapter is worth on another host, on the user's own data.

    The adapter is ported (its strategy may read unlabelled training texts), and modules that start
    as it, as noise of its own distribution and from scratch are trained side by side in banks.

    Args:
        adapter: folder of PEFT, AdapterHub or peftport, or a Hub id with revision.
        target: host by packaged name, folder, or Hub id with revision.
        data: dataset name, csv, jsonl or parquet file, folder, or Hub id.
        output: new folder for facts, summary and scores; None: nothing is written.
        source: the adapter's own host; None: what its folder says.
        strategy: a registered name, or ``auto``.
        task: template, verbalisers, max_tokens where the adapter does not record them.
        columns: which column of the data is what.
        labels: which class of the data is which of the adapter's, by number or name.
        language_model: the data has no labels; measure the loss of held-out text.
        settings: budgets, seeds, rates, thresholds.
        progress: called with (what is trained, number of trainings) before each round.

    Raises:
        InputError: anything given that cannot be used; nothing is written then.
        RunError: a port that is not finite, or every rate of an init diverged.
    """
    wanted = settings or Settings()
    if output is not None:
        check_place(Path(output).absolute(), False)
    prepared = prepare(adapter, target, source=source, strategy=strategy, texts=[], task=task)
    if language_model:
        column = columns.text if columns else "text"
        found = unlabelled(data, wanted, column=column)
    else:
        dataset = load_dataset(data, columns=columns)
        found = labelled(dataset, prepared.module, class_count(prepared), wanted, labels)
    prepared = replace(prepared, task=fitting_task(prepared, found, task))
    hosts = both_hosts(prepared, found.train.texts[:PORT_TEXTS]) if prepared.needs_texts else None
    made, plan = carried(prepared, hosts)
    del hosts
    host = target_host(prepared, found)
    module = with_head(with_notes(prepared, made), host)
    bench = Bench(host, found, prepared.task, wanted, progress)
    controls, measured = bench.run({prepared.adapter: module})
    one = measured[prepared.adapter]
    judgement = judge(bench.curves(controls, one), wanted.thresholds)
    result = Assessment(prepared, plan, module, found, wanted, controls, one, judgement)
    if output is not None:
        result.save(Path(output))
    return result


def class_count(prepared: Prepared) -> int | None:
    """How many classes an adapter decides between; None where nothing says it."""
    if prepared.module.head:
        return min(t.shape[0] for t in prepared.module.head.values())
    if families.get(prepared.target.spec.family).decides_by == "word":
        return len(prepared.task.verbalisers)
    return None


def fitting_task(prepared: Prepared, data: UserData, given: Mapping[str, Any] | None) -> Task:
    """The task with a word for every class of the adapter.

    Raises:
        InputError: a template around a text that is to be predicted as it is.
    """
    task = prepared.task
    if not data.classes and task.template != Task().template:
        if given and "template" in given:
            raise InputError("the loss of a text is measured without a template; leave it out")
        task = replace(task, template=Task().template)
    return task


def target_host(prepared: Prepared, data: UserData) -> Host:
    """The target as the task needs it: with a head for its classes, words, or as a model of
    text."""
    labels = max(2, len(data.classes))
    host = load_host(
        str(prepared.target.folder),
        labels=labels,
        head=prepared.module.notes.get("head") or "pooler",
        verbalisers=prepared.task.verbalisers if data.classes else None,
    )
    shift = prepared.module.config.shift
    check_length(prepared.target.name, host.longest, prepared.task.max_tokens, shift)
    return host if data.classes else as_language_model(host)


def with_head(module: Module, host: Host) -> Module:
    """The module with a fresh head where its host needs one and the adapter brought none."""
    if module.head:
        return module
    head = fresh_head(host, torch.Generator().manual_seed(0))
    return replace(
        module, head=head, notes={**module.notes, **({"head": host.head} if head else {})}
    )


def mean_metrics(logits: np.ndarray, data: UserData) -> dict[str, float]:
    """Metrics of logits  [S, N, C], means over the seeds that ended well."""
    sound = [own for own in logits if np.isfinite(own).all()]
    if not sound:
        return {}
    if not data.classes:
        losses = [float(own[:, 0].sum() / own[:, 1].sum()) for own in sound]
        return {"loss": float(np.mean(losses)), "perplexity": float(np.mean(np.exp(losses)))}
    rows = [metrics(own, np.asarray(data.test.labels)) for own in sound]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
