"""Which positions of two hosts' tokens mean the same place of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftport.data.tasks import Encoded, Task, encode
from peftport.errors import InputError

#: (source position, target position)
Couples = list[tuple[int, int]]


@dataclass(frozen=True)
class Aligned:
    """The same texts in two hosts' tokens.

    Attributes:
        source, target: token ids.
        couples: by text, positions whose tokens end at the same character, in order; None where
            the hosts have one tokenizer and every position is its own partner.
    """

    source: Encoded
    target: Encoded
    couples: list[Couples] | None


def align(source: Any, target: Any, texts: Sequence[str], task: Task, *, same: bool) -> Aligned:
    """Encode texts in the task's template for both hosts.

    Two tokens correspond when they end at the same character of the filled template: what a host
    knows at that position is then based on the same text in a causal host, and on the same word in
    others. Special tokens have no characters; a first one goes with a first one and a last with a
    last where both hosts have them.

    Args:
        source, target: the hosts' tokenizers.
        same: whether they are one and the same.

    Raises:
        InputError: a template that leaves no room, or tokenizers as :func:`need_offsets`.
    """
    if same:
        encoded = encode(source, texts, task)
        return Aligned(encoded, encoded, None)
    need_offsets(source, target)
    for tokenizer in (source, target):
        encode(tokenizer, texts[:1], task)  # refuses a template that leaves no room
    before, after = task.template.split("{text}")
    if after.strip():
        texts = [_fitted((source, target), text, task) for text in texts]
    filled = [before + text + after for text in texts]
    ours, theirs = (_spans(tokenizer, filled, task.max_tokens) for tokenizer in (source, target))
    couples = [_couples(a, b) for a, b in zip(ours[1], theirs[1], strict=True)]
    return Aligned(ours[0], theirs[0], couples)


def need_offsets(source: Any, target: Any) -> None:
    """Raises InputError where one of two tokenizers does not know a token's characters."""
    for role, tokenizer in (("source", source), ("target", target)):
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"the hosts' tokenizers differ, and the {role}'s does not tell which characters a "
                "token stands for; use a fast tokenizer (tokenizer.json), or --strategy pad or "
                "embedding"
            )


#: by position (end, special); end is a number of characters
Ends = list[tuple[int, bool]]


def _spans(tokenizer: Any, texts: list[str], most: int) -> tuple[Encoded, list[Ends]]:
    found = tokenizer(
        texts,
        truncation=True,
        max_length=most,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    ends = [
        [(end, bool(special) or end <= start) for (start, end), special in zip(*row, strict=True)]
        for row in zip(found["offset_mapping"], found["special_tokens_mask"], strict=True)
    ]
    return Encoded([list(row) for row in found["input_ids"]]), ends


def _couples(ours: Ends, theirs: Ends) -> Couples:
    """Of several tokens that end at one character (bytes of one letter) the last one counts."""
    if not ours or not theirs:
        return []
    first = [(0, 0)] if ours[0][1] and theirs[0][1] else []
    where = [
        {end: at for at, (end, special) in enumerate(e) if not special} for e in (ours, theirs)
    ]
    made = [*first, *sorted((where[0][end], where[1][end]) for end in where[0].keys() & where[1])]
    last = (len(ours) - 1, len(theirs) - 1)
    return [*made, last] if ours[-1][1] and theirs[-1][1] and last != (0, 0) else made


def _fitted(tokenizers: Sequence[Any], text: str, task: Task) -> str:
    """A text cut so that the filled template is short enough for both hosts: what follows the text
    in a template is never lost."""
    while text:
        filled = task.template.replace("{text}", text)
        over = [len(t(filled)["input_ids"]) - task.max_tokens for t in tokenizers]
        most = max(over)
        if most <= 0:
            return text
        longest = tokenizers[over.index(most)]
        spans = longest(text, add_special_tokens=False, return_offsets_mapping=True)
        kept = spans["offset_mapping"][:-most]
        text = text[: kept[-1][1]] if kept else ""
    return text
