"""What a host is asked: a template around the text, and a word for every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from peftport.errors import InputError, UnknownName
from peftport.kinds import is_whole

_SLOT = "{text}"


@dataclass(frozen=True)
class Task:
    """How a text is put to a host.

    Attributes:
        template: what the host reads; ``{text}`` stands for the text, e.g. ``sentiment: {text}``.
        verbalisers: the word of every class in label order (a language model predicts it; an
            encoder's head only needs their number). They are used as they are: where the word goes
            on a prompt, as in ``Review: {text} Sentiment:``, a leading space belongs to it.
        max_tokens: longest input in tokens; the text is cut, never the template.
    """

    template: str = _SLOT
    verbalisers: tuple[str, ...] = ("negative", "positive")
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.template, str) or self.template.count(_SLOT) != 1:
            raise InputError(
                f"task.template must hold {_SLOT} exactly once, got {self.template!r};"
                f" for example 'sentiment: {_SLOT}'"
            )
        words = [word.strip().casefold() for word in self.verbalisers]
        if len(words) < 2 or len(set(words)) < len(words) or not all(words):
            raise InputError(
                "task.verbalisers must be two or more different words,"
                f" got {list(self.verbalisers)!r}"
            )
        if self.max_tokens < 4:
            raise InputError(f"task.max_tokens must be >= 4, got {self.max_tokens}")

    def check(self, classes: Sequence[str]) -> None:
        """Raises InputError unless there is one verbaliser per class of a dataset."""
        if len(classes) != len(self.verbalisers):
            raise InputError(
                f"task.verbalisers has {len(self.verbalisers)} words"
                f" ({', '.join(self.verbalisers)}) for {len(classes)} classes"
                f" ({', '.join(classes)}); give one word per class, in this order"
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verbalisers": list(self.verbalisers)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """From a mapping (YAML, JSON); unknown keys and wrong types are refused."""
        known = [f.name for f in fields(cls)]
        for key in facts:
            if key not in known:
                raise UnknownName("key of task", str(key), known)
        given = dict(facts)
        words = given.get("verbalisers", cls.verbalisers)
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
            raise InputError(f"task.verbalisers must be a list of words, got {words!r}")
        tokens = given.get("max_tokens", cls.max_tokens)
        if not is_whole(tokens):
            raise InputError(f"task.max_tokens must be an integer, got {tokens!r}")
        return cls(**{**given, "verbalisers": tuple(words)})


@dataclass(frozen=True)
class Encoded:
    """Token ids of a list of texts, special tokens included, not padded."""

    ids: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(
        self, indices: Sequence[int], pad_id: int, device: torch.device | None = None
    ) -> dict[str, Tensor]:
        """The chosen texts, padded on the right to the longest of them.

        Returns:
            ``input_ids`` and ``attention_mask``, both int64  [B, T], on the device (the CPU).
        """
        rows = [self.ids[index] for index in indices]
        width = max(map(len, rows))
        input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)  # [B, T]
        mask = torch.zeros((len(rows), width), dtype=torch.long)  # [B, T]
        for at, row in enumerate(rows):
            input_ids[at, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[at, : len(row)] = 1
        return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}


def encode(tokenizer: Any, texts: Sequence[str], task: Task) -> Encoded:
    """Token ids of texts in the task's template, at most ``task.max_tokens`` each.

    Args:
        tokenizer: a transformers tokenizer (a fast one where something follows ``{text}``).
        texts: what to encode.
        task: template and length.

    Raises:
        InputError: the template alone leaves no room for a text.
    """
    if not texts:
        return Encoded([])
    before, after = task.template.split(_SLOT)
    frame = len(tokenizer(before + after)["input_ids"])
    if frame >= task.max_tokens:
        raise InputError(
            f"task.template alone is {frame} tokens, which leaves no room for a text in"
            f" task.max_tokens = {task.max_tokens}"
        )
    room = task.max_tokens - frame
    if after.strip():
        texts = _cut(tokenizer, texts, room)
    filled = [before + text + after for text in texts]
    found = tokenizer(filled, truncation=not after.strip(), max_length=task.max_tokens)["input_ids"]
    rows = [list(row) for row in found]
    for at, text in enumerate(texts):  # a text may have more tokens in the template than alone
        left = room
        while len(rows[at]) > task.max_tokens and left > 0:
            left -= len(rows[at]) - task.max_tokens
            text = _cut(tokenizer, [text], left)[0] if left > 0 else ""
            rows[at] = list(tokenizer(before + text + after)["input_ids"])
    return Encoded(rows)


def _cut(tokenizer: Any, texts: Sequence[str], room: int) -> list[str]:
    """Texts cut after ``room`` tokens, so that what follows them in a template is never lost."""
    found = tokenizer(
        list(texts),
        truncation=True,
        max_length=room,
        add_special_tokens=False,
        return_offsets_mapping=True,
    )["offset_mapping"]
    return [text[: row[-1][1]] if row else text for text, row in zip(texts, found, strict=True)]
