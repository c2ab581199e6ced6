"""Pico hosts: complete transformers folders of a few kilobytes, for tests of new parts.

They prove code, never a claim: their weights are random.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

#: what the pico tokenizer knows beside single letters
WORDS = (
    "a an the film movie plot story cast is was it this and but very not good great fine fun bad "
    "awful poor dull boring charming clever slow bright grim warm cold funny tired fresh stale "
    "positive negative sentiment scene actor script end start long short music"
).split()


def pico_tokenizer(
    folder: Path, words: Sequence[str] = WORDS, *, t5: bool = False, decoder: bool = False
) -> Any:
    """A word-level tokenizer with letters as fallback; saved to ``folder``. A decoder's starts
    every text with its only special token and has no padding, as Llama's has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    if t5 or decoder:
        special = ["<pad>", "</s>", "<unk>"] if t5 else ["<s>", "<unk>"]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    vocab = {w: i for i, w in enumerate(dict.fromkeys([*special, *words, *letters]))}
    unk = "<unk>" if t5 or decoder else "[UNK]"
    raw = Tokenizer(models.WordLevel(vocab, unk_token=unk))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if decoder:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=raw, bos_token="<s>", eos_token="<s>", unk_token="<unk>"
        )
    elif t5:
        raw.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )
    else:
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=raw,
            pad_token="[PAD]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            unk_token="[UNK]",
            mask_token="[MASK]",
        )
    fast.save_pretrained(folder)
    return fast


def pico_bert(
    folder: Path, seed: int = 0, *, d_model: int = 32, layers: int = 2, heads: int = 4
) -> Path:
    """A BERT of random weights, with pooler."""
    from transformers import BertConfig, BertModel

    tokenizer = pico_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * d_model,
        max_position_embeddings=96,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return folder


def pico_roberta(
    folder: Path, seed: int = 0, *, d_model: int = 32, layers: int = 2, heads: int = 4
) -> Path:
    """A RoBERTa of random weights; its padding is token 0, so that positions start at 1."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer = pico_tokenizer(folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * d_model,
        max_position_embeddings=96,
        type_vocab_size=1,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(RobertaModel, config, folder, seed)


def pico_distilbert(
    folder: Path, seed: int = 0, *, d_model: int = 32, layers: int = 2, heads: int = 4
) -> Path:
    """A DistilBERT of random weights."""
    from transformers import DistilBertConfig, DistilBertModel

    tokenizer = pico_tokenizer(folder)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=d_model,
        n_layers=layers,
        n_heads=heads,
        hidden_dim=2 * d_model,
        max_position_embeddings=96,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(DistilBertModel, config, folder, seed)


def pico_llama(
    folder: Path,
    seed: int = 0,
    *,
    d_model: int = 32,
    d_kv: int = 12,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    kind: str = "llama",
) -> Path:
    """A Llama of random weights: shared keys and values, d_kv != d_model / heads, tied embeddings.

    ``kind`` is any ``model_type`` of its layout whose config takes the same arguments (``mistral``,
    ``qwen2``, ``qwen3``); Qwen 2 has biases and d_kv = d_model / heads.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = pico_tokenizer(folder, decoder=True)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer) + 8,  # Qwen's tokenizer class adds marks of its own
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=2 * d_model,
        max_position_embeddings=96,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **({} if kind == "qwen2" else {"head_dim": d_kv}),
    )
    return _save(AutoModelForCausalLM.from_config, config, folder, seed)


def pico_gpt2(
    folder: Path, seed: int = 0, *, d_model: int = 32, layers: int = 2, heads: int = 4
) -> Path:
    """A GPT-2 of random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = pico_tokenizer(folder, decoder=True)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=d_model,
        n_layer=layers,
        n_head=heads,
        n_inner=2 * d_model,
        n_positions=96,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _save(GPT2LMHeadModel, config, folder, seed)


def _save(make: Callable[[Any], Any], config: Any, folder: Path, seed: int) -> Path:
    """A model with every parameter drawn, so that no bias or norm is neutral, as a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return folder


#: what a decoder is asked with, and its words: a leading space belongs to each
PROMPT = "Review: {text} Sentiment:"
ANSWERS = (" negative", " positive")


def pico_t5(
    folder: Path,
    seed: int = 0,
    *,
    d_model: int = 32,
    d_kv: int = 12,
    layers: int = 2,
    heads: int = 4,
) -> Path:
    """A T5 v1.1 of random weights, with d_kv != d_model / heads."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = pico_tokenizer(folder, t5=True)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=d_model,
        d_kv=d_kv,
        d_ff=2 * d_model,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        initializer_factor=1.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def pico_reviews(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Sentences whose label is decided by their adjective: something a module can learn."""
    good = "good great fine fun charming clever bright warm funny fresh".split()
    bad = "bad awful poor dull boring slow grim cold tired stale".split()
    rng = torch.Generator().manual_seed(seed)

    def pick(words: Sequence[str]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=rng))]

    rows = []
    for i in range(count):
        label = i % 2
        tail = " ".join(
            pick(WORDS[:9]) for _ in range(int(torch.randint(2, 9, (1,), generator=rng)))
        )
        rows.append(
            (
                f"{pick(['the', 'this', 'a'])} {pick(['film', 'movie', 'plot', 'story'])} "
                f"{pick(['is', 'was'])} {pick(good if label else bad)} {tail}",
                label,
            )
        )
    return rows


def taught_pico_t5(
    folder: Path, start: Path | None = None, *, steps: int = 300, seed: int = 0
) -> Path:
    """A pico T5 that was taught to answer a review with its adjective, never with its sentiment:
    enough for a module to have something to elicit and to carry.

    Args:
        folder: where the host is saved.
        start: host to go on from (a relative); a fresh one when None.
        steps: full-weight AdamW steps of 32 reviews at 3e-3.
        seed: of the weights and of the reviews.
    """
    import torch.nn.functional as F
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    if start is None:
        pico_t5(folder, seed)
        start = folder
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = T5ForConditionalGeneration.from_pretrained(start)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    texts = [text for text, _ in pico_reviews(32 * 40, seed + 1)]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    targets = tokenizer([text.split()[3] for text in texts], return_tensors="pt").input_ids[:, :1]
    for step in range(steps):
        rows = torch.arange(32) + 32 * (step % 40)
        logits = model(
            input_ids=encoded.input_ids[rows],
            attention_mask=encoded.attention_mask[rows],
            labels=targets[rows],
        ).logits  # [32, 1, V]
        loss = F.cross_entropy(logits[:, 0], targets[rows, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
