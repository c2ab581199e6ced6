"""Makers of minilm-shallow and minilm-words, both out of minilm-large."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import BertConfig, BertModel

from peftport.atomic import write_bytes, write_text
from peftport.hosts import packaged, published
from peftport.hosts.forge import corpus as corpora
from peftport.hosts.forge.facts import stage_facts
from peftport.hosts.forge.heal import heal
from peftport.hosts.forge.local import MadeHost, Task
from peftport.hosts.forge.local_recipes import ShallowRecipe, WordsRecipe, quick
from peftport.hosts.forge.recipes import recipe_digest
from peftport.hosts.forge.reword import reword
from peftport.hosts.forge.shallow import keep_layers, pooled_variance
from peftport.hosts.forge.text import Words, some
from peftport.hosts.forge.vocabulary import (
    carried_embeddings,
    save_vocabulary,
    train_vocabulary,
)
from peftport.hosts.published import TEXT_FILES, WEIGHTS
from peftport.hosts.published import published as origin

SHALLOW, WORDS = ShallowRecipe(), WordsRecipe()


def make_shallow(task: Task) -> MadeHost | None:
    """Layers 0, 2, 4 of minilm-large at its width, healed by distillation."""
    recipe = quick(SHALLOW) if task.quick else SHALLOW
    corpus = corpora.build_corpus()
    identity = recipe_digest(task.name, recipe, corpus.digest, published.SHA256)
    if identity == task.known:
        return None
    parent, words = _large(), Words(origin())
    train = corpora.sentences(corpus.train)
    rows = [
        words.single(i, recipe.heal.max_tokens) for i in words.encode(some(train, recipe.texts))
    ]
    start = keep_layers(parent, recipe.layers, rows, words.pad)
    healed = heal(
        parent, start, words, train, corpora.sentences(corpus.held_out), recipe.heal,
        task.work / "heal.safetensors", identity, task.name,
    )  # fmt: skip
    facts = stage_facts(packaged.LARGE, identity, task.quick, asdict(recipe), corpus, healed)

    def write(folder: Path) -> None:
        write_bert(folder, origin(), start.student)

    return MadeHost(write, facts, "bert")


def make_words(task: Task) -> MadeHost | None:
    """minilm-large's encoder behind a WordPiece vocabulary of IMDB sentences."""
    recipe = quick(WORDS) if task.quick else WORDS
    corpus = corpora.build_corpus()
    identity = recipe_digest(task.name, recipe, corpus.digest, published.SHA256)
    if identity == task.known:
        return None
    parent, old = _large(), Words(origin())
    train = corpora.sentences(corpus.train)
    tokens = task.work / f"tokenizer-{identity[:12]}"
    if not (tokens / "special_tokens_map.json").is_file():  # the last file that is written
        tokens.mkdir(exist_ok=True)
        limit = int(parent.config.max_position_embeddings)
        save_vocabulary(train_vocabulary(train, recipe.vocabulary), tokens, limit)
    new = Words(tokens)
    student = _reworded(parent, old, new)
    rows = [old.single(i, recipe.max_tokens) for i in old.encode(some(train, recipe.texts))]
    result = reword(
        parent, student, (old, new), train, corpora.sentences(corpus.held_out),
        pooled_variance(parent, rows, old.pad), recipe, task.work / "reword.safetensors",
        recipe_digest(identity, published.sha256_of(tokens / "tokenizer.json")),
    )  # fmt: skip
    facts = stage_facts(packaged.LARGE, identity, task.quick, asdict(recipe), corpus, result)
    facts |= _tokens_told(old, new, corpora.sentences(corpus.held_out))

    def write(folder: Path) -> None:
        for file in sorted(tokens.iterdir()):
            write_bytes(folder / file.name, file.read_bytes())
        _write_model(folder, student)

    return MadeHost(write, facts, "bert")


def _large() -> BertModel:
    """minilm-large, frozen, in eval mode."""
    config = BertConfig(**json.loads((origin() / "config.json").read_text(encoding="utf-8")))
    model = BertModel(config).eval()
    model.load_state_dict(packaged.large_weights(), strict=True)
    return model.requires_grad_(False)


def _reworded(parent: BertModel, old: Words, new: Words) -> BertModel:
    """``parent`` with embeddings for another vocabulary."""
    config = {**parent.config.to_dict(), "vocab_size": new.size, "pad_token_id": new.pad}
    student = BertModel(BertConfig(**config)).eval()
    weights = dict(parent.state_dict())
    table = "embeddings.word_embeddings.weight"
    weights[table] = carried_embeddings(weights[table], old.vocabulary(), new.vocabulary())
    student.load_state_dict(weights, strict=True)
    return student


def _tokens_told(old: Words, new: Words, texts: Sequence[str]) -> Mapping[str, Any]:
    """How the two vocabularies compare on held-out sentences."""
    mine, parents = new.vocabulary(), old.vocabulary()
    counts = [sum(map(len, words.encode(texts))) / len(texts) for words in (new, old)]
    return {
        "vocabulary": {
            "tokens": len(mine),
            "shared_with_parent": len(mine.keys() & parents.keys()),
            "tokens_per_sentence": round(counts[0], 2),
            "parents_tokens_per_sentence": round(counts[1], 2),
        }
    }


def write_bert(folder: Path, texts: Path, model: BertModel) -> None:
    """A host with the tokenizer files of another one's folder."""
    for file in TEXT_FILES:
        write_bytes(folder / file, (texts / file).read_bytes())
    _write_model(folder, model)


def _write_model(folder: Path, model: BertModel) -> None:
    """config.json and float32 safetensors."""
    facts = {**model.config.to_diff_dict(), "architectures": ["BertModel"], "model_type": "bert"}
    write_text(folder / "config.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    weights = {name: p.detach().contiguous() for name, p in sorted(model.state_dict().items())}
    write_bytes(folder / WEIGHTS, save(weights, {"format": "pt"}))
    assert all(t.dtype == torch.float32 for t in weights.values())
