"""Maker of minilm-base's descendants, saved along one continued pretraining."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from transformers import BertModel

from peftport.hosts import packaged
from peftport.hosts.forge import corpus as corpora
from peftport.hosts.forge.distance import encoder_distance
from peftport.hosts.forge.facts import stage_facts
from peftport.hosts.forge.local import MadeHost, Maker, Task
from peftport.hosts.forge.local_minilm import write_bert
from peftport.hosts.forge.local_recipes import DriftRecipe, quick
from peftport.hosts.forge.recipes import recipe_digest
from peftport.hosts.forge.text import Words
from peftport.hosts.forge.tune import tune

RECIPE = DriftRecipe()


def drift_maker(at: int) -> Maker:
    """The maker of descendant ``at`` (from 0)."""
    return lambda task: _make(task, at)


def _make(task: Task, at: int) -> MadeHost | None:
    """Go on from where the descendant before this one stopped, if that is still at hand.

    The checkpoint is shared by all descendants; whether it is found moves no number.
    """
    recipe = quick(RECIPE) if task.quick else RECIPE
    corpus = corpora.build_corpus()
    parent = packaged.host_facts(packaged.BASE)["fingerprint"]
    path = recipe_digest("minilm-base-drift", recipe, corpus.digest, parent)
    stop = recipe.stops[at]
    identity = recipe_digest(path, stop)
    if identity == task.known:
        return None
    origin = packaged.materialise(packaged.BASE)
    model = BertModel.from_pretrained(origin).eval()
    start = {name: w.clone() for name, w in model.state_dict().items()}
    trail = task.work.with_name(".minilm-base-drift.work")
    trail.mkdir(exist_ok=True)
    tuned = tune(
        task.name, model, Words(origin), corpus.train, corpus.held_out, recipe.tune,
        trail / "tune.safetensors", path, stop,
    )  # fmt: skip
    facts = stage_facts(packaged.BASE, identity, task.quick, asdict(recipe), corpus, tuned)
    weights = model.state_dict()
    facts["distance"] = {
        "encoder": encoder_distance(weights, start),
        "matrices": encoder_distance(weights, start, matrices_only=True),
    }
    if stop == recipe.stops[-1]:
        shutil.rmtree(trail, ignore_errors=True)

    def write(folder: Path) -> None:
        write_bert(folder, origin, model)

    return MadeHost(write, facts, "bert")
