"""Build the derived default hosts: seeded, resumable, one folder with a manifest as the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import BertConfig, BertModel

from peftport.atomic import write_bytes, write_text
from peftport.errors import InputError, UnknownName
from peftport.hosts import packaged, published
from peftport.hosts.fingerprint import model_fingerprint
from peftport.hosts.forge.corpus import Corpus, build_corpus, sentences
from peftport.hosts.forge.cut import Cut, cut
from peftport.hosts.forge.distance import encoder_distance
from peftport.hosts.forge.facts import stage_facts
from peftport.hosts.forge.heal import Healed, heal
from peftport.hosts.forge.keep import load_cut, save_cut
from peftport.hosts.forge.recipes import (
    BASE_TUNED,
    LARGE_TUNED,
    CutRecipe,
    HealRecipe,
    TuneRecipe,
    quick,
    recipe_digest,
)
from peftport.hosts.forge.text import Words
from peftport.hosts.forge.tune import Tuned, tune

DERIVED = (packaged.LARGE_TUNED, packaged.BASE, packaged.BASE_TUNED)
#: what a config of a derived host says
_CONFIG_KEYS = (
    "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size",
    "initializer_range", "intermediate_size", "layer_norm_eps", "max_position_embeddings",
    "model_type", "num_attention_heads", "num_hidden_layers", "pad_token_id", "type_vocab_size",
    "vocab_size",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """One finished host: its weights (float32) and what the manifest says of its making."""

    weights: Mapping[str, Tensor]
    config: BertConfig
    facts: dict[str, Any]


def build_hosts(
    out: Path, only: Sequence[str] | None = None, *, quick: bool = False, threads: int | None = None
) -> Path:
    """Build the derived hosts into ``out``: a safetensors file each and ``manifest.json``.

    What is finished there is left alone; what was interrupted goes on from its last checkpoint
    (in ``out/.work``, removed once a host is finished).

    Args:
        out: the folder; ``packaged.SHIPPED`` replaces the shipped weights.
        only: hosts to build; all three by default. ``minilm-base-tuned`` starts from the
            ``minilm-base`` of ``out``, else from the shipped one.
        quick: a few steps only, to check the code.
        threads: of torch; its own choice by default.
    Returns:
        The manifest's path.
    Raises:
        UnknownName: ``only`` names another host.
        InputError: the text or minilm-large is missing, or ``out`` cannot be written.
    """
    for name in only or ():
        if name not in DERIVED:
            raise UnknownName("derived host", name, DERIVED)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder '{out}': {error.strerror}; give one you may write to"
        ) from None
    if threads is not None:
        torch.set_num_threads(threads)
    forge = Forge(out, build_corpus(), quick)
    makers: dict[str, Callable[[str], Made | None]] = {
        packaged.LARGE_TUNED: partial(forge.tuned, packaged.LARGE_TUNED, LARGE_TUNED),
        packaged.BASE: forge.base,
        packaged.BASE_TUNED: partial(forge.tuned, packaged.BASE_TUNED, BASE_TUNED),
    }
    for name in DERIVED:
        if not only or name in only:
            forge.build(name, makers[name])
    return out / packaged.MANIFEST


class Forge:
    """The folder that is being filled, and what every stage needs."""

    def __init__(self, out: Path, corpus: Corpus, quick: bool) -> None:
        self.out, self.corpus, self.quick = out, corpus, quick
        self.work = out / ".work"
        self.origin = published.published()
        self.words = Words(self.origin)

    def build(self, name: str, make: Callable[[str], Made | None]) -> None:
        """Make one host unless ``out`` has it already, then remove its checkpoints."""
        made = make(self._known(name).get("identity", ""))
        if made is None:
            _say(f"{name}: already built in '{self.out}'")
            return
        self._write(name, made)
        for file in self.work.glob(f"{name}.*"):
            file.unlink()
        if self.work.is_dir() and not any(self.work.iterdir()):
            self.work.rmdir()

    def tuned(self, name: str, recipe: TuneRecipe, known: str) -> Made | None:
        """Continued pretraining of the host's parent; None when ``known`` says it is done."""
        recipe = self._scaled(recipe)
        before, config, parent_fingerprint = self._parent(packaged.PARENTS[name])
        identity = recipe_digest(name, recipe, self.corpus.digest, parent_fingerprint)
        if identity == known:
            return None
        model = _model(config, before)
        result = tune(
            name, model, self.words, self.corpus.train, self.corpus.held_out, recipe,
            self.work / f"{name}.safetensors", identity,
        )  # fmt: skip
        weights = _rounded(model, before)
        facts = self._facts(name, identity, {"tune": asdict(recipe)}, result)
        facts["distance"] = _distances(weights, before)
        return Made(weights, config, facts)

    def base(self, known: str) -> Made | None:
        """Cut minilm-large and heal the cut; None when ``known`` says it is done."""
        name, cutting, healing = packaged.BASE, CutRecipe(), self._scaled(HealRecipe())
        before, config, parent_fingerprint = self._parent(packaged.LARGE)
        identity = recipe_digest(name, cutting, healing, self.corpus.digest, parent_fingerprint)
        if identity == known:
            return None
        parent = _model(config, before).requires_grad_(False)
        train = sentences(self.corpus.train)
        start = self._cut(parent, train, cutting, parent_fingerprint)
        untrained = {n: t.clone() for n, t in start.student.state_dict().items()}
        result = heal(
            parent, start, self.words, train, sentences(self.corpus.held_out), healing,
            self.work / f"{name}.safetensors", identity,
        )  # fmt: skip
        weights = _rounded(start.student, {})
        recipes = {"cut": asdict(cutting), "heal": asdict(healing)}
        facts = self._facts(name, identity, recipes, result)
        facts["kept_variance"] = start.kept_variance
        facts["distance_from_untrained_cut"] = _distances(weights, untrained)
        return Made(weights, start.student.config, facts)

    def _cut(
        self, parent: BertModel, train: Sequence[str], recipe: CutRecipe, parent_fingerprint: str
    ) -> Cut:
        file = self.work / f"{packaged.BASE}.cut.safetensors"
        identity = recipe_digest(
            f"{packaged.BASE}-cut", recipe, self.corpus.digest, parent_fingerprint
        )
        found = load_cut(file, identity)
        if found is None:
            _say(f"{packaged.BASE}: cutting")
            texts = train[:: max(1, len(train) // recipe.texts)][: recipe.texts]
            rows = [self.words.single(i, recipe.max_tokens) for i in self.words.encode(texts)]
            found = cut(parent, rows, recipe, self.words.pad)
            save_cut(file, found, identity)
        return found

    def _parent(self, name: str) -> tuple[dict[str, Tensor], BertConfig, str]:
        """Weights, config and identity of a parent."""
        if name == packaged.LARGE:
            config = json.loads((self.origin / "config.json").read_text(encoding="utf-8"))
            kept = {key: config[key] for key in _CONFIG_KEYS}
            return packaged.large_weights(), BertConfig(**kept), published.SHA256
        folder = self.out if self._known(name) else packaged.SHIPPED
        facts = packaged.host_facts(name, folder)
        weights = packaged.derived_weights(name, folder)
        return weights, BertConfig(**facts["config"]), str(facts["fingerprint"])

    def _scaled(self, recipe: Any) -> Any:
        return quick(recipe) if self.quick else recipe

    def _known(self, name: str) -> dict[str, Any]:
        if not (self.out / packaged.MANIFEST).is_file():
            return {}
        return dict(packaged.read_manifest(self.out)["hosts"].get(name, {}))

    def _facts(
        self, name: str, identity: str, recipes: dict[str, Any], result: Healed | Tuned
    ) -> dict[str, Any]:
        return stage_facts(
            packaged.PARENTS[name], identity, self.quick, recipes, self.corpus, result
        )

    def _write(self, name: str, made: Made) -> None:
        """The weights first, then the manifest that names them."""
        own = ("encoder.", "pooler.") + (("embeddings.",) if name == packaged.BASE else ())
        kept = {n: t.half().contiguous() for n, t in made.weights.items() if n.startswith(own)}
        file = self.out / f"{name}.safetensors"
        data = save(kept, {"format": "pt"})
        write_bytes(file, data)
        config = {key: getattr(made.config, key) for key in _CONFIG_KEYS}
        facts = {
            "file": file.name,
            "sha256": published.sha256_of(file),
            "size_bytes": len(data),
            "fingerprint": model_fingerprint(_model(made.config, made.weights), "bert"),
            "config": {"architectures": ["BertModel"], **config},
            **made.facts,
        }
        path = self.out / packaged.MANIFEST
        hosts = packaged.read_manifest(self.out)["hosts"] if path.is_file() else {}
        manifest = {"format": packaged.MANIFEST_FORMAT, "hosts": {**hosts, name: facts}}
        write_text(path, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        _say(f"{name}: written to '{file}' ({len(data) / 1e6:.1f} MB)")


def _model(config: BertConfig, weights: Mapping[str, Tensor]) -> BertModel:
    """A BertModel with these weights, in eval mode (no dropout in any stage)."""
    model = BertModel(config).eval()
    model.load_state_dict(dict(weights), strict=True)
    return model


def _rounded(model: BertModel, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they will be read back: float16 values in float32, shared ones as given."""
    weights = {n: t.half().float() for n, t in model.state_dict().items()}
    return weights | {n: t for n, t in shared.items() if n.startswith("embeddings.")}


def _distances(weights: Mapping[str, Tensor], parent: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        "encoder": encoder_distance(weights, parent),
        "encoder_matrices": encoder_distance(weights, parent, matrices_only=True),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
