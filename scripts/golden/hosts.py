"""Two tiny random hosts, complete folders: config, safetensors, tokenizer.

Run in the second environment (transformers 4.57, adapters). Every tensor is drawn, none is zero,
and the scales keep attention and logits far from uniform, so that a wrong formula shows.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCAB = 60
KINDS = ("bert", "t5")


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter again: norms around 1, the rest with std 1 / sqrt(columns)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1.0 + 0.1 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def bert() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config)
    randomise(model, 1)
    return model.eval()


def t5() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_kv=12,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    randomise(model, 2)
    return model.eval()


def build(kind: str) -> PreTrainedModel:
    return {"bert": bert, "t5": t5}[kind]()


def write_tokenizer(kind: str, folder: Path) -> None:
    """A word-level tokenizer of ``VOCAB`` words: special ones, then w5, w6, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "t5": ["<pad>", "</s>", "<unk>", "<extra0>", "<extra1>"],
    }[kind]
    words = special + [f"w{i}" for i in range(5, VOCAB)]
    vocab = {word: i for i, word in enumerate(words)}
    unknown = special[1] if kind == "bert" else special[2]
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "[CLS] $A [SEP]" if kind == "bert" else "$A </s>"
    marks = ["[CLS]", "[SEP]"] if kind == "bert" else ["</s>"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(mark, vocab[mark]) for mark in marks]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": special[0],
        "unk_token": unknown,
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=2) + "\n")


def write(kind: str, folder: Path) -> None:
    """A complete host folder."""
    build(kind).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_tokenizer(kind, folder)


#: label words of the t5 host: two and three tokens, so that the loss sees padding
WORDS = ((10, 1), (20, 21, 1))


def batches(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Fixed batches of 4 padded sequences: input_ids, attention_mask [4, T], labels [4]."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        lengths = torch.randint(3, 9, (4,), generator=generator)
        ids = torch.zeros(4, int(lengths.max()), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(lengths.tolist()):
            ids[row, :length] = torch.randint(5, VOCAB, (length,), generator=generator)
            mask[row, :length] = 1
        labels = torch.randint(0, 2, (4,), generator=generator)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made
