"""Identity of a host: digests of its weights and of its tokenizer, read without building it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from peftport.errors import InputError

#: task heads belong to a module, not to the host (nor do the heads of masked language models)
_HEADS = (
    "classifier.", "pre_classifier.", "score.", "cls.", "classification_head.", "qa_outputs.",
    "lm_head.bias", "lm_head.dense.", "lm_head.layer_norm.", "lm_head.decoder.", "vocab_transform.",
    "vocab_layer_norm.", "vocab_projector.",
)  # fmt: skip
#: what old checkpoints hold beside weights: positions, causal masks, rotary frequencies
_BUFFERS = ("position_ids", ".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
#: the input embedding, which an output layer may be tied to
_EMBEDDINGS = ("shared.weight", "embed_tokens.weight", "wte.weight")

#: numbers that are widened to float32 at once
_CHUNK = 1 << 24


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a host, in the order of their index. Pickles are refused."""
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise InputError(f"'{index}' names the shard '{name}', which is not in '{folder}'")
        return [folder / name for name in names]
    if any(folder.glob("*.bin")):
        raise InputError(
            f"'{folder}' holds pickled weights only; convert them to safetensors first"
        )
    raise InputError(f"no model.safetensors in '{folder}'; give the folder of a transformers model")


def body_tensors(
    folder: Path, prefix: str, unread: tuple[str, ...] = ()
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Name (without ``prefix.``) and loader of every body tensor of a host, sorted by name.

    Args:
        folder: a transformers model folder.
        prefix: the architecture's base_model_prefix, which checkpoints of task models carry.
        unread: ``Family.unread_weights``.
    """
    found: dict[str, tuple[Path, str]] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in list(tensors.keys()):
                    name = key.removeprefix(f"{prefix}.") if prefix else key
                    if not name.startswith((*_HEADS, *unread)) and not name.endswith(_BUFFERS):
                        found[name] = (file, key)
        except (SafetensorError, OSError) as error:
            raise InputError(f"cannot read '{file}': {error}; download the file again") from None

    def loader(file: Path, key: str) -> Callable[[], Tensor]:
        def load() -> Tensor:
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_tensor(key)

        return load

    for name in sorted(found):
        yield name, loader(*found[name])


def weight_fingerprint(folder: Path, prefix: str, unread: tuple[str, ...] = ()) -> str:
    """Fingerprint of a model folder; one tensor is in memory at a time.

    Raises InputError when a weight is NaN or infinite.
    """
    return _digest(body_tensors(folder, prefix, unread), str(folder))


def model_fingerprint(model: nn.Module, prefix: str, unread: tuple[str, ...] = ()) -> str:
    """Fingerprint of a model in memory: equal to that of the folder it was loaded from."""
    weights = {name.removeprefix(f"{prefix}."): p for name, p in model.named_parameters()}
    body = sorted(name for name in weights if not name.startswith((*_HEADS, *unread)))
    return _digest(
        ((name, partial(weights[name].detach().cpu)) for name in body), type(model).__name__
    )


def _digest(tensors: Iterable[tuple[str, Callable[[], Tensor]]], where: str) -> str:
    """SHA-256 over names, shapes and float32 values; tied copies of the embedding are left out."""
    h = hashlib.sha256()
    embedding = b""
    rows: dict[str, bytes] = {}
    for name, load in tensors:
        if name.endswith(".embed_tokens.weight"):  # T5's copies of shared.weight
            continue
        tensor = load()
        hashed = hashlib.sha256()
        for part in tensor.flatten().split(_CHUNK):  # an 8B host's embedding is 2 GB in float32
            part = part.to(torch.float32)
            if not torch.isfinite(part).all():
                raise InputError(
                    f"weight '{name}' of '{where}' holds NaN or infinity; get a sound copy"
                )
            hashed.update(part.contiguous().numpy().data)
        values = hashed.digest()
        if name in _EMBEDDINGS:
            embedding = values
        rows[f"{name}{tuple(tensor.shape)}"] = values
    for name, values in rows.items():
        if not (name.startswith("lm_head.weight") and values == embedding):
            h.update(name.encode() + values)
    return h.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 over what decides the ids: vocabulary, merges, normaliser, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        facts = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:
        parts = json.loads(backend.to_str())
        parts.pop("truncation", None)  # set by the call, not by the host
        parts.pop("padding", None)
        facts = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()
