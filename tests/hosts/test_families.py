"""Every shipped family keeps the contract; and what is particular to one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peftport.data.tasks import Task, encode
from peftport.errors import InputError
from peftport.hosts.families.base import Words
from peftport.hosts.load import (
    Host,
    check_length,
    inspect_host,
    label_words,
    load_host,
    longest_text,
)
from peftport.methods.attach import attach
from peftport.testing import pico
from peftport.testing.contracts_family import FamilyContract, drawn

ASKED = Task(pico.PROMPT, pico.ANSWERS)


class TestBert(FamilyContract):
    def folder(self, path: Path) -> Path:
        return pico.pico_bert(path)


class TestT5(FamilyContract):
    def folder(self, path: Path) -> Path:
        return pico.pico_t5(path)


class TestRoberta(FamilyContract):
    def folder(self, path: Path) -> Path:
        return pico.pico_roberta(path)


class TestRobertaMean(TestRoberta):
    head = "mean"


class TestDistilBert(FamilyContract):
    def folder(self, path: Path) -> Path:
        return pico.pico_distilbert(path)


class TestDistilBertMean(TestDistilBert):
    head = "mean"


class TestLlama(FamilyContract):
    task = ASKED

    def folder(self, path: Path) -> Path:
        return pico.pico_llama(path)


class TestQwen2(TestLlama):
    def folder(self, path: Path) -> Path:
        return pico.pico_llama(path, kind="qwen2")


class TestQwen3(TestLlama):
    def folder(self, path: Path) -> Path:
        return pico.pico_llama(path, kind="qwen3")


class TestMistral(TestLlama):
    def folder(self, path: Path) -> Path:
        return pico.pico_llama(path, kind="mistral")


class TestGpt2(FamilyContract):
    task = ASKED

    def folder(self, path: Path) -> Path:
        return pico.pico_gpt2(path)


# Decoders -----------------------------------------------------------------------------------------

MAKE = {"llama": pico.pico_llama, "gpt2": pico.pico_gpt2}


@pytest.fixture(scope="module", params=MAKE)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    path = MAKE[request.param](tmp_path_factory.mktemp(request.param))
    return load_host(str(path), verbalisers=pico.ANSWERS)


def test_a_decoder_is_scored_and_taught_one_text_at_a_time(decoder: Host) -> None:
    """The slow way: no padding, no batch, the library's own logits at every position."""
    words = Words(((39, 5, 7), (38,)))
    texts = ["good film", "a very dull plot and cast"]
    rows = encode(decoder.tokenizer, texts, ASKED).ids
    batch = encode(decoder.tokenizer, texts, ASKED).batch([0, 1], decoder.pad_id)
    model = AutoModelForCausalLM.from_pretrained(decoder.path).eval()
    scores = decoder.family.scores(decoder.model, batch, words)
    losses = []
    with torch.no_grad():
        for own, ids, label in zip(scores, rows, (0, 1), strict=True):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(own, logits[[39, 38]], rtol=1e-4, atol=1e-5)
            said = list(ids)
            for token in words.ids[label]:
                logits = model(input_ids=torch.tensor([said])).logits[0, -1]
                losses.append(-logits.log_softmax(-1)[token])
                said.append(token)
        loss = decoder.family.loss(decoder.model, batch, torch.tensor([0, 1]), words)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_a_decoder_needs_label_words_that_differ_first(decoder: Host) -> None:
    batch = encode(decoder.tokenizer, ["good"], ASKED).batch([0], decoder.pad_id)
    with pytest.raises(InputError, match="decides by label words"):
        decoder.family.scores(decoder.model, batch, None)
    with pytest.raises(InputError, match="share their first token"):
        load_host(str(decoder.path), verbalisers=(" good film", " good plot"))


def test_a_label_word_keeps_its_space_and_loses_special_tokens(decoder: Host) -> None:
    class Spaces:
        """Marks spaces as byte-level tokenizers do and starts a text with a special token."""

        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            pieces = text.replace(" ", "|_").replace(":", ":|").split("|")
            ids = [hash(piece) for piece in pieces if piece]
            return type("", (), {"input_ids": [1, *ids] if add_special_tokens else ids})

    words = label_words(Spaces(), (" bad", "bad"), ends=False)
    assert words.ids == ((hash("_bad"),), (hash("bad"),))
    assert label_words(decoder.tokenizer, pico.ANSWERS, ends=False).ids == ((39,), (38,))


def test_a_tokenizer_that_ends_prompts_is_refused(decoder: Host, tmp_path: Path) -> None:
    for file in decoder.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    pico.pico_tokenizer(tmp_path, t5=True)
    with pytest.raises(InputError, match="ends every text with its end marker"):
        load_host(str(tmp_path), verbalisers=pico.ANSWERS)


def test_an_output_layer_may_be_in_the_file_or_not(decoder: Host, tmp_path: Path) -> None:
    for file in decoder.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    prefix, path = decoder.family.weight_prefix, decoder.family.embedding_path
    embedding = weights[f"{prefix}.{path}.weight"]
    bare = {name.removeprefix(f"{prefix}."): tensor for name, tensor in weights.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)  # a causal mask of old checkpoints
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    for shown in ({**weights, "lm_head.weight": embedding.clone()}, bare):
        save_file(shown, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert inspect_host(str(tmp_path)) == decoder.spec
    untied = {**weights, "lm_head.weight": embedding + 1}
    save_file(untied, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert inspect_host(str(tmp_path)) != decoder.spec


# Encoders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pico.pico_roberta, pico.pico_distilbert])
def test_the_mean_head_is_a_linear_layer_over_the_mean(make: Any, tmp_path: Path) -> None:
    host = load_host(str(make(tmp_path)), head="mean")
    batch = encode(host.tokenizer, ["good film", "a dull plot"], Task()).batch([0, 1], host.pad_id)
    module = drawn(host, {"method": "lora", "r": 1})
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path).base_model.eval()
    with torch.no_grad():
        hidden, mask = own(**batch).last_hidden_state, batch["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        expected = mean @ module.head["classifier.weight"].T + module.head["classifier.bias"]
        for tensors in module.state.values():
            tensors["B"].zero_()
        with attach(host.model, module, spec=host.spec):
            found = host.family.scores(host.model, batch, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_roberta_counts_on_from_a_past(tmp_path: Path) -> None:
    """Positions of real tokens move on, padding stays: what the model does with a cache."""
    host = load_host(str(pico.pico_roberta(tmp_path)))
    ids = torch.tensor([[5, 6, 7], [5, 0, 0]])
    _, kwargs = host.family.shift_positions(host.model, (), {"input_ids": ids}, 4)
    assert kwargs["position_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    theirs = host.family.body(host.model).embeddings.create_position_ids_from_input_ids
    assert torch.equal(kwargs["position_ids"], theirs(ids, 0, 4))
    _, same = host.family.shift_positions(host.model, (), {"input_ids": ids}, 0)
    assert torch.equal(same["position_ids"], theirs(ids, 0, 0))


@pytest.mark.parametrize(
    ("make", "places"),
    [
        (pico.pico_bert, 96),
        (pico.pico_roberta, 95),
        (pico.pico_distilbert, 96),
        (pico.pico_gpt2, 96),
    ],
)
def test_the_longest_text_is_the_longest(
    tmp_path: Path, make: Callable[[Path], Path], places: int
) -> None:
    host = load_host(str(make(tmp_path)))
    assert host.longest == longest_text(str(tmp_path)) == places
    for tokens in (places, places + 1):
        ids = torch.full((1, tokens), 5)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if tokens == places:
            host.model(**inputs)
        else:
            with pytest.raises((IndexError, RuntimeError)):
                host.model(**inputs)
            with pytest.raises(InputError, match=f"at most {places} tokens, the task asks"):
                check_length(host.ref, host.longest, tokens)


def test_relative_positions_have_no_end(tmp_path: Path) -> None:
    assert load_host(str(pico.pico_t5(tmp_path))).longest is None


def test_a_pooler_that_the_classifier_does_not_read_is_no_part_of_the_host(tmp_path: Path) -> None:
    folder = pico.pico_roberta(tmp_path)
    before = inspect_host(str(folder))
    weights = load_file(folder / "model.safetensors")
    assert "pooler.dense.weight" in weights
    rest = {f"roberta.{n}": t for n, t in weights.items() if not n.startswith("pooler.")}
    rest |= {"lm_head.dense.weight": torch.ones(2, 2), "lm_head.bias": torch.ones(2)}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    assert inspect_host(str(folder)) == before
