"""A WordPiece vocabulary of a corpus, and embeddings for it out of another one's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor

from peftport.atomic import write_text
from peftport.hosts.forge.text import CLS, MASK, PAD, SEP

UNK = "[UNK]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
_GOES_ON = "##"


def train_vocabulary(texts: Sequence[str], size: int) -> Tokenizer:
    """A lower-casing BERT tokenizer whose vocabulary is learnt from ``texts``.

    Args:
        size: tokens, special ones included.
    Source: Wu et al. 2016, arXiv 1609.08144, as in the ``tokenizers`` library.
    """
    tokenizer = Tokenizer(WordPiece(unk_token=UNK))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, ids[CLS]), (SEP, ids[SEP])],
    )
    return tokenizer


def save_vocabulary(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """The files that ``AutoTokenizer`` reads as a fast BERT tokenizer."""
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    write_text(folder / "vocab.txt", "".join(f"{token}\n" for token, _ in tokens))
    names = {"pad_token": PAD, "unk_token": UNK, "cls_token": CLS, "sep_token": SEP}
    special = {**names, "mask_token": MASK}
    facts = {
        **special,
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": max_tokens,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(facts, indent=2) + "\n")
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")


def pieces(token: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Ids of a token of one vocabulary in another, greedily by the longest piece; ``##`` goes on
    within a word. ``[UNK]`` alone when some character is unknown."""
    if token in vocabulary:
        return [vocabulary[token]]
    goes_on = token.startswith(_GOES_ON)
    text = token.removeprefix(_GOES_ON) if goes_on else token
    found: list[int] = []
    start = 0
    while start < len(text):
        for end in range(len(text), start, -1):
            piece = (_GOES_ON if goes_on or start else "") + text[start:end]
            if piece in vocabulary:
                found.append(vocabulary[piece])
                start = end
                break
        else:
            return [vocabulary[UNK]]
    return found


def carried_embeddings(old: Tensor, known: Mapping[str, int], new: Mapping[str, int]) -> Tensor:
    """Embeddings of a new vocabulary: the mean of each token's pieces in the known one.

    Args:
        old: embeddings of the known vocabulary  [V_old, d].
        known, new: token to id.
    Returns:
        [V_new, d]; special tokens keep theirs.
    """
    table = torch.empty(len(new), old.shape[1])
    for token, i in new.items():
        table[i] = old[pieces(token, known)].mean(0)
    return table
