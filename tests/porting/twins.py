"""Hosts that compute the same function in other coordinates, so that a port can be exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def _save(folder: Path, model: Any, source: Path) -> Path:
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def with_biases(source: Path) -> Path:
    """Give a pico BERT biases that are not zero, in place."""
    from transformers import BertModel

    model = BertModel.from_pretrained(source)
    rng = torch.Generator().manual_seed(5)
    for name, p in model.named_parameters():
        if name.endswith("bias") and "LayerNorm" not in name:
            p.data.normal_(0, 0.2, generator=rng)
    return _save(source, model, source)


def rotated_t5(source: Path, folder: Path) -> Path:
    """Another orthonormal basis of the residual stream: RMS norm without a scale does not mind."""
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(source)
    d = model.config.d_model
    rng = torch.Generator().manual_seed(3)
    q = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64))[0]

    def rows(w: Tensor) -> Tensor:  # reads or embeds the stream: [.., d]
        return (w.double() @ q).float()

    def cols(w: Tensor) -> Tensor:  # writes to the stream: [d, ..]
        return (q.T @ w.double()).float()

    _t5(model, rows, cols)
    return _save(folder, model, source)


def _t5(model: Any, rows: Callable[[Tensor], Tensor], cols: Callable[[Tensor], Tensor]) -> None:
    for name, p in model.named_parameters():
        if name.endswith(("q.weight", "k.weight", "v.weight", "wi_0.weight", "wi_1.weight")):
            p.data = rows(p.data)
        elif name.endswith(("o.weight", "wo.weight")):
            p.data = cols(p.data)
        elif name == "shared.weight":
            p.data = rows(p.data)


def widened_t5(source: Path, folder: Path) -> Path:
    """Every coordinate of the residual stream twice, side by side; heads and d_kv as they are. The
    output embedding is tied, so its logits are doubled."""
    from transformers import T5Config, T5ForConditionalGeneration

    old = T5ForConditionalGeneration.from_pretrained(source)
    config = T5Config(**{**old.config.to_dict(), "d_model": 2 * old.config.d_model})
    new = T5ForConditionalGeneration(config)
    for (name, p), (_, was) in zip(new.named_parameters(), old.named_parameters(), strict=True):
        w = was.data
        if name.endswith(("q.weight", "k.weight", "v.weight", "wi_0.weight", "wi_1.weight")):
            p.data = w.repeat_interleave(2, 1) / 2
        elif name.endswith(("o.weight", "wo.weight")) or "layer_norm" in name:
            p.data = w.repeat_interleave(2, 0)
        elif name == "shared.weight":
            p.data = w.repeat_interleave(2, 1)
        else:
            assert "relative_attention_bias" in name, name
            p.data = w.clone()
    return _save(folder, new, source)


def widened_bert(source: Path, folder: Path) -> Path:
    """Every coordinate of the residual stream twice, side by side, and every head twice."""
    from transformers import BertConfig, BertModel

    old = BertModel.from_pretrained(source)
    c = old.config
    d, heads, d_kv = c.hidden_size, c.num_attention_heads, c.hidden_size // c.num_attention_heads
    config = BertConfig(**{**c.to_dict(), "hidden_size": 2 * d, "num_attention_heads": 2 * heads})
    new = BertModel(config)

    def read(w: Tensor) -> Tensor:  # [.., d] -> [.., 2 d], the same result
        return w.repeat_interleave(2, 1) / 2

    def twice(w: Tensor) -> Tensor:  # heads twice, one copy after the other inside each pair
        return w.view(heads, d_kv, *w.shape[1:]).repeat_interleave(2, 0).flatten(0, 1)

    for (name, p), (_, was) in zip(new.named_parameters(), old.named_parameters(), strict=True):
        w = was.data
        if "attention.self" in name:
            p.data = twice(read(w) if w.dim() == 2 else w)
        elif "attention.output.dense.weight" in name:
            inner = twice(w.T).T / 2  # [d, 2 d]
            p.data = inner.repeat_interleave(2, 0)
        elif "intermediate" in name:
            p.data = read(w) if w.dim() == 2 else w.clone()
        elif "pooler.dense.weight" in name:
            p.data = read(w).repeat_interleave(2, 0)
        elif "embeddings" in name and w.dim() == 2:
            p.data = w.repeat_interleave(2, 1)
        else:
            p.data = w.repeat_interleave(2, 0)
    return _save(folder, new, source)


def shuffled_llama(source: Path, folder: Path) -> Path:
    """Another orthonormal basis of the residual stream and another order of the heads: groups of
    shared keys and values, and the queries of each group. Norms must have no scale."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    c = model.config
    rng = torch.Generator().manual_seed(3)
    d, groups, size = (
        c.hidden_size,
        c.num_key_value_heads,
        c.num_attention_heads // c.num_key_value_heads,
    )
    q = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64))[0]
    order = list(reversed(range(groups)))
    # the first group's queries turn round, so that the order is not its own inverse
    queries = [g * size + (i if g else size - 1 - i) for g in order for i in range(size)]

    def heads(w: Tensor, chosen: list[int]) -> Tensor:  # [heads * d_kv, ..]
        return w.view(-1, c.head_dim, *w.shape[1:])[chosen].flatten(0, 1)

    for name, p in model.named_parameters():
        w = p.data.double()
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            w = heads(w @ q, queries if "q_proj" in name else order)
        elif name.endswith("o_proj.weight"):
            w = heads((q.T @ w).T, queries).T
        elif name.endswith("down_proj.weight"):
            w = q.T @ w
        elif w.dim() == 2:
            w = w @ q
        p.data = w.float().contiguous()
    return _save(folder, model, source)


def unscaled(source: Path) -> Path:
    """Norms of a pico Llama without a scale, in place."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.fill_(1)
    return _save(source, model, source)


def respelled(source: Path, folder: Path, known: int) -> Path:
    """The same host with a tokenizer that knows only the first so many words and spells the others
    letter by letter; ids of what both know stay."""
    import json
    import shutil

    shutil.copytree(source, folder)
    file = folder / "tokenizer.json"
    facts = json.loads(file.read_text())
    vocabulary = facts["model"]["vocab"]
    words = [w for w in vocabulary if len(w) > 1 and w.isalpha()]
    for word in words[known:]:
        number = vocabulary.pop(word)
        vocabulary[f"#{number}"] = number
    # what is no word falls apart into letters
    kept = "|".join(["\\[?<?[A-Z]+>?\\]?", *sorted(words[:known], key=len, reverse=True)])
    facts["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "BertPreTokenizer"},
            {
                "type": "Split",
                "pattern": {"Regex": f"^({kept})$|."},
                "behavior": "Isolated",
                "invert": False,
            },
        ],
    }
    file.write_text(json.dumps(facts))
    return folder
