from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from peftport.data.tasks import Encoded, Task, encode
from peftport.errors import InputError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "sentiment", ":", "review"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    base = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, "[UNK]"))
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    base.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="[PAD]", unk_token="[UNK]")


def test_encode_fills_the_template_and_adds_special_tokens(tokenizer: Any) -> None:
    encoded = encode(tokenizer, ["good film", "bad"], Task("sentiment: {text}"))
    assert encoded.ids == [[2, 7, 8, 4, 6, 3], [2, 7, 8, 5, 3]]
    assert encoded.lengths == [6, 5] and len(encoded) == 2


def test_braces_in_a_text_are_only_text(tokenizer: Any) -> None:
    assert encode(tokenizer, ["{text} {0}"], Task()).lengths == [8]


def test_long_texts_are_cut_and_what_follows_them_is_not(tokenizer: Any) -> None:
    long = "film " * 100
    assert encode(tokenizer, [long], Task(max_tokens=64)).ids == [[2, *[6] * 62, 3]]
    encoded = encode(tokenizer, [long, "bad"], Task("review: {text} sentiment:", max_tokens=12))
    assert encoded.ids[0] == [2, 9, 8, *[6] * 6, 7, 8, 3]
    assert encoded.ids[1] == [2, 9, 8, 5, 7, 8, 3]


def test_a_text_with_more_tokens_in_the_template_than_alone_is_cut_again() -> None:
    class Halves:
        """Two characters a token where a text stands alone, one where it stands in a template."""

        def __call__(self, texts: Any, truncation: bool = False, max_length: int = 0,
                     add_special_tokens: bool = True, **_: Any) -> Any:  # fmt: skip
            if isinstance(texts, str):
                return {key: rows[0] for key, rows in self([texts]).items()}
            size = 1 if add_special_tokens else 2
            cut = max_length if truncation else 1000
            spans = [[(i, i + size) for i in range(0, len(t), size)][:cut] for t in texts]
            ids = [[ord(t[i]) for i, _ in own] for t, own in zip(texts, spans, strict=True)]
            return {"input_ids": ids, "offset_mapping": spans}

    task = Task("say {text}!", max_tokens=12)
    long, short, wide = encode(Halves(), ["x" * 40, "yz", "x" * 13], task).ids
    assert "".join(map(chr, short)) == "say yz!"
    for row in (long, wide):
        assert "".join(map(chr, row)).startswith("say ")
        assert row[-1] == ord("!") and len(row) <= 12


def test_a_template_without_room_for_a_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"template alone is 6 tokens.*max_tokens = 6"):
        encode(tokenizer, ["good"], Task("review: {text} sentiment:", max_tokens=6))


def test_no_texts(tokenizer: Any) -> None:
    assert encode(tokenizer, [], Task()).ids == []


def test_batch_pads_right_to_its_longest() -> None:
    batch = Encoded([[1, 2, 3], [4], [5, 6]]).batch([2, 1], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6], [4, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.long


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"template": "sentiment:"}, r"task.template must hold {text} exactly once"),
        ({"template": "{text} {text}"}, r"exactly once"),
        ({"template": 3}, r"exactly once, got 3"),
        ({"verbalisers": ["good", "Good "]}, r"two or more different words"),
        ({"verbalisers": ["good"]}, r"two or more different words"),
        ({"verbalisers": ["good", " "]}, r"two or more different words"),
        ({"verbalisers": "yn"}, r"must be a list of words, got 'yn'"),
        ({"verbalisers": [True, False]}, r"must be a list of words"),
        ({"max_tokens": 3}, r"task.max_tokens must be >= 4, got 3"),
        ({"max_tokens": "64"}, r"task.max_tokens must be an integer, got '64'"),
        ({"max_token": 3}, r"unknown key of task 'max_token'; did you mean 'max_tokens'\?"),
    ],
)
def test_a_wrong_task_is_refused(facts: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Task.from_json(facts)


def test_a_task_survives_json() -> None:
    task = Task("Review: {text}\nSentiment:", ("bad", "fine", "good"), 48)
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
    assert Task.from_json({}) == Task()


def test_one_verbaliser_per_class() -> None:
    Task().check(("0", "1"))
    with pytest.raises(InputError, match=r"2 words \(negative, positive\) for 3 classes"):
        Task().check(("a", "b", "c"))
