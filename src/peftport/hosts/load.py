"""Load and freeze a host, or read what it is without building it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftport.errors import InputError
from peftport.hosts import packaged
from peftport.hosts.families.base import Family, Words, family_of
from peftport.hosts.fingerprint import tokenizer_digest, weight_fingerprint
from peftport.hosts.packed.base import Program
from peftport.hosts.spec import HostSpec
from peftport.refs import Ref, Snapshot, resolve


@dataclass
class Host:
    """A frozen pretrained model with its tokenizer.

    Attributes:
        ref: the name it was asked for by.
        path: local folder it was read from.
        model: transformers model in eval mode; no parameter requires grad.
        family, spec: how to find its sites, and what it is.
        words: label words of a ``word`` family, else None.
        labels: number of classes it decides between.
        head: ``pooler``, ``mean``, or empty for a ``word`` family.
    """

    ref: str
    path: Path
    model: nn.Module
    tokenizer: Any
    family: Family
    spec: HostSpec
    words: Words | None = None
    labels: int = 2
    head: str = "pooler"

    @cached_property
    def program(self) -> Program | None:
        """The host over packed texts, made when it is first needed; None where its family has no
        such program."""
        return self.family.program(self.model, self.spec, head=self.head, words=self.words)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that it can read; None: any length."""
        return self.family.longest(self.model.config)


def check_length(ref: str, longest: int | None, tokens: int, shift: int = 0) -> None:
    """Whether a host has a place for every token.

    Args:
        ref: its name.
        longest: tokens of the longest text that it can read; None: any length.
        tokens: of the longest text that a task asks for.
        shift: how much later a module lets texts begin.

    Raises:
        InputError: it has not.
    """
    if longest is None or tokens + shift <= longest:
        return
    if shift:
        raise InputError(
            f"host '{ref}' has places for {longest} tokens, a prefix of {shift} before texts of up "
            f"to {tokens} needs {tokens + shift}; give a shorter prefix, or a smaller max_tokens"
        )
    raise InputError(
        f"host '{ref}' reads at most {longest} tokens, the task asks for {tokens}; "
        f"give {longest} or less as max_tokens (--max-tokens)"
    )


def longest_text(ref: str) -> int | None:
    """Tokens of the longest text that a host can read, from its config; None: any length."""
    config = read_config(locate_host(ref).path)
    return family_of(config.model_type).longest(config)


def locate_host(ref: str) -> Snapshot:
    """Folder of a host by packaged name, path or Hub id."""
    if packaged.is_packaged(ref):
        return Snapshot(packaged.materialise(ref))
    if "/" not in ref and not Path(ref).exists():
        from peftport.errors import UnknownName

        raise UnknownName("host", ref, (*packaged.NAMES, *packaged.BUILT))
    return resolve(Ref.parse(ref))


def read_config(folder: Path) -> Any:
    """The transformers config of a folder, without remote code."""
    from transformers import AutoConfig

    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"no config.json in '{folder}'; give the folder of a transformers model")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        family_of(str(facts.get("model_type")))
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, TypeError, KeyError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot read '{file}': {first}") from None


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot read the tokenizer in '{folder}': {first}") from None


def inspect_host(ref: str) -> HostSpec:
    """Shape, sites and digests of a host from its config and safetensors; no model is built.

    Args:
        ref: packaged name, path, or Hub id with revision.

    Raises:
        InputError: no such host, an unknown architecture, broken or pickled weights.
    """
    folder = locate_host(ref).path
    config = read_config(folder)
    family = family_of(config.model_type)
    return replace(
        family.describe(config),
        tokenizer=tokenizer_digest(load_tokenizer(folder)),
        fingerprint=_fingerprint(folder, family),
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no reports of missing heads while a host is loaded."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


_FINGERPRINTS: dict[tuple[str, int, int], str] = {}


def _fingerprint(folder: Path, family: Family) -> str:
    """Fingerprint, remembered in this process by the files' path, size and time."""
    stats = [os.stat(file) for file in sorted(folder.glob("*.safetensors"))]
    key = (
        str(folder.resolve()),
        sum(s.st_size for s in stats),
        max((s.st_mtime_ns for s in stats), default=0),
    )
    if key not in _FINGERPRINTS:
        _FINGERPRINTS[key] = weight_fingerprint(folder, family.weight_prefix, family.unread_weights)
    return _FINGERPRINTS[key]


def load_host(
    ref: str,
    *,
    labels: int = 2,
    head: str = "pooler",
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    verbalisers: Sequence[str] | None = None,
) -> Host:
    """Load a host, freeze it, and put it in eval mode.

    Args:
        ref: packaged name, path, or Hub id with revision.
        labels: number of classes.
        head: ``pooler`` or ``mean``; ignored by families that answer with a word.
        dtype: dtype of the weights (float64 in conformance tests).
        device: where the weights lie; the CPU when None.
        verbalisers: label words, one a class; needed by families that answer with a word.

    Raises:
        InputError: as :func:`inspect_host`; or verbalisers that share their first token.
    """
    folder = locate_host(ref).path
    config = read_config(folder)
    family = family_of(config.model_type)
    spec = replace(family.describe(config), fingerprint=_fingerprint(folder, family))
    tokenizer = load_tokenizer(folder)
    spec = replace(spec, tokenizer=tokenizer_digest(tokenizer))
    if family.decides_by == "word" and not family.ends_words:
        _check_no_end(tokenizer, ref)
    with quiet_transformers():
        model = family.load(str(folder), labels=labels, head=head, dtype=dtype)
    model.requires_grad_(False)
    for parameter in family.head_parameters(model).values():
        parameter.zero_()  # a host alone has no trained head: it decides nothing
    if device is not None:
        model.to(device)
    words = None
    if family.decides_by == "word" and verbalisers is not None:
        words = label_words(tokenizer, verbalisers, ends=family.ends_words)
        labels = len(verbalisers)
    head = head if family.decides_by == "class" else ""
    return Host(ref, folder, model, tokenizer, family, spec, words, labels, head)


def label_words(tokenizer: Any, verbalisers: Sequence[str], *, ends: bool = True) -> Words:
    """Token ids of the verbalisers.

    Args:
        tokenizer: the host's.
        verbalisers: one word a class. Where words follow a prompt, a leading space belongs to them.
        ends: keep the end marker that the tokenizer adds; otherwise the ids are those that a word
            has after a colon, without special tokens.

    Raises:
        InputError: two words share their first token, which is what decides.
    """
    ids = tuple(
        tuple(tokenizer(word).input_ids) if ends else _continuation(tokenizer, word)
        for word in verbalisers
    )
    if any(not row for row in ids) or len({row[0] for row in ids}) < len(ids):
        raise InputError(
            f"verbalisers {list(verbalisers)} share their first token in this host's vocabulary; "
            "choose words that differ there"
        )
    return Words(ids)


def _continuation(tokenizer: Any, word: str) -> tuple[int, ...]:
    """Token ids of a word that goes on a text: some tokenizers put a space before whatever comes
    first, so the word is read after a colon."""
    before, both = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (":", f":{word}")
    )
    if both[: len(before)] == before:
        return tuple(both[len(before) :])
    return tuple(tokenizer(word, add_special_tokens=False).input_ids)


def _check_no_end(tokenizer: Any, ref: str) -> None:
    """Raises InputError where the tokenizer closes a prompt, after which no word would follow."""
    if tokenizer("a").input_ids[-1] == tokenizer.eos_token_id:
        raise InputError(
            f"the tokenizer of '{ref}' ends every text with its end marker, so no label word can "
            "follow a prompt; set add_eos_token to false in its tokenizer_config.json"
        )
