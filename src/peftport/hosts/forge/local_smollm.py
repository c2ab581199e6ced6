"""Maker of smollm2-sibling: smollm2-135m with fewer layers, healed by distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from peftport.atomic import write_bytes
from peftport.data.examples import Example
from peftport.data.packaged import CLASSES, rotten_tomatoes
from peftport.data.splits import split_of
from peftport.hosts import packaged
from peftport.hosts.built import RECEIPT, built_folder, read_built
from peftport.hosts.forge import corpus as corpora
from peftport.hosts.forge.dequantise import llama_files
from peftport.hosts.forge.facts import stage_facts
from peftport.hosts.forge.local import MadeHost, Task
from peftport.hosts.forge.local_recipes import SiblingRecipe, evenly, quick
from peftport.hosts.forge.recipes import Schedule, recipe_digest
from peftport.hosts.forge.sibling import heal_blocks, keep_blocks
from peftport.hosts.forge.text import pad_batch, some
from peftport.hosts.load import quiet_transformers
from peftport.hosts.published import WEIGHTS

#: 20 of 30 layers left too little: after the refit that comes before healing they classified .467
#: of the validation sentences right (AUC .664), 24 layers .650 (.731); no port was looked at
SIBLING = SiblingRecipe(evenly(24, 30), Schedule(150, 8, 2e-4, 10, seed=5))
#: sentences that the check before and after healing classifies
CHECKED = 200


def make_sibling(task: Task) -> MadeHost | None:
    """Some layers of smollm2-135m, healed on IMDB sentences in the prompt and alone."""
    recipe = quick(SIBLING) if task.quick else SIBLING
    corpus = corpora.build_corpus()
    source = built_folder(packaged.SMOLLM2)
    fingerprint = str((read_built(packaged.SMOLLM2) or {})["fingerprint"])
    identity = recipe_digest(task.name, recipe, corpus.digest, fingerprint)
    if identity == task.known:
        return None
    with quiet_transformers():
        parent = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    parent = parent.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    student = keep_blocks(parent, recipe.layers)
    train = rows(tokenizer, some(corpora.sentences(corpus.train), recipe.texts), recipe)
    held = rows(tokenizer, some(corpora.sentences(corpus.held_out), recipe.held_out), recipe)
    asked = checked_examples(task.quick)
    before = sentiment(student, tokenizer, asked, recipe)
    healed = heal_blocks(
        task.name, parent, student, train, held, int(tokenizer.pad_token_id), recipe,
        task.work / "heal.safetensors", identity,
    )  # fmt: skip
    facts = stage_facts(packaged.SMOLLM2, identity, task.quick, asdict(recipe), corpus, healed)
    facts["losses"]["held_out_fitted"] = healed.fitted
    facts["check"] = {
        "data": f"{len(asked)} Rotten Tomatoes validation sentences",
        "parent": sentiment(parent, tokenizer, asked, recipe),
        "before": before,
        "after": sentiment(student, tokenizer, asked, recipe),
    }

    def write(folder: Path) -> None:
        for file in sorted(source.iterdir()):
            if file.name not in (RECEIPT, WEIGHTS, "config.json"):
                write_bytes(folder / file.name, file.read_bytes())
        llama_files(folder, student)

    return MadeHost(write, facts, "model")


def rows(tokenizer: Any, texts: Sequence[str], recipe: SiblingRecipe) -> list[list[int]]:
    """Token ids: every other sentence stands in the prompt, the others alone."""
    start, end = recipe.prompt.split("{text}")
    end_ids = tokenizer(end, add_special_tokens=False).input_ids
    bare = tokenizer(list(texts[::2]), add_special_tokens=False).input_ids
    prompted = tokenizer([start + t for t in texts[1::2]], add_special_tokens=False).input_ids
    room = recipe.max_tokens - len(end_ids)
    found = [ids[: recipe.max_tokens] for ids in bare] + [p[:room] + end_ids for p in prompted]
    return [ids for ids in found if len(ids) > 2]


def checked_examples(few: bool) -> list[Example]:
    """Rotten Tomatoes sentences of the validation split, whose file is sorted by label; no host
    is chosen by them."""
    found = [e for e in rotten_tomatoes() if split_of(e.group) == "validation"]
    return some(found, 8 if few else CHECKED)


@torch.no_grad()
def sentiment(
    model: LlamaForCausalLM, tokenizer: Any, examples: Sequence[Example], recipe: SiblingRecipe
) -> dict[str, float]:
    """Accuracy, AUC and share of " positive" when the next word after the prompt is asked for."""
    words = [tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in CLASSES]
    prompts = [recipe.prompt.replace("{text}", e.text) for e in examples]
    margins: list[Tensor] = []
    for start in range(0, len(prompts), 20):
        found = tokenizer(prompts[start : start + 20], add_special_tokens=False).input_ids
        ids, mask = pad_batch(found, int(tokenizer.pad_token_id))
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = states[torch.arange(len(found)), mask.sum(1) - 1]  # [B, d]
        logits = model.lm_head(last)[:, words]  # [B, 2]: negative, positive
        margins.append(logits[:, 1] - logits[:, 0])
    margin = torch.cat(margins)
    truth = torch.tensor([e.label == 1 for e in examples])
    gaps = margin[truth][:, None] - margin[~truth][None]
    auc = float((gaps > 0).float().mean() + 0.5 * (gaps == 0).float().mean())
    return {
        "accuracy": float(((margin > 0) == truth).float().mean()),
        "auc": auc,
        "said_positive": float((margin > 0).float().mean()),
    }
