"""Cutting, healing, tuning and the training loop, on tiny random hosts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from peftport.errors import RunError
from peftport.hosts import published
from peftport.hosts.forge import loop
from peftport.hosts.forge.cut import Moments, _write, best_heads, cut, mean_free_basis, spanning
from peftport.hosts.forge.distance import encoder_distance
from peftport.hosts.forge.heal import heal
from peftport.hosts.forge.keep import load_cut, save_cut
from peftport.hosts.forge.loop import train_stage
from peftport.hosts.forge.recipes import CutRecipe, HealRecipe, Schedule, TuneRecipe
from peftport.hosts.forge.text import Words, bucketed, pad_batch
from peftport.hosts.forge.tune import Heads, hide, make_pairs, objectives, tune

RUNS = [
    [f"the {w} number {k} was {v} to watch {k} times" for k in range(9) for w in ("film", "play")]
    for v in ("good", "bad", "odd", "long", "short", "sweet", "dull", "warm")
]
TEXTS = [text for run in RUNS for text in run]
CUT = CutRecipe(layers=(0, 2), d_model=16, heads=2, d_ff=24, texts=40)


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(published.published())


@pytest.fixture
def parent() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if p.ndim > 1 and "embeddings" not in name:
            p.mul_(6)
        if "LayerNorm.weight" in name:
            p.mul_(0.6)
    return model


def rows(words: Words) -> list[list[int]]:
    return [words.single(ids, 32) for ids in words.encode(TEXTS)]


def test_basis_is_mean_free_and_spans_the_top_directions() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 12, dtype=torch.float64) * torch.arange(1, 13)
    r, kept = mean_free_basis(torch.cov(x.T), 5, seed=3)
    assert torch.allclose(r.sum(1), torch.zeros(12, dtype=torch.float64), atol=1e-12)
    projector = r @ r.T
    assert torch.allclose(projector @ projector, projector, atol=1e-12)
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    assert torch.allclose(projector @ vectors[:, -4:], vectors[:, -4:], atol=1e-12)
    assert kept == pytest.approx(float(values[-4:].sum() / values.sum()))


def test_moments_are_mean_and_covariance() -> None:
    x = torch.randn(50, 4)
    moments = Moments(4)
    moments.add(x[:20])
    moments.add(x[20:])
    assert torch.allclose(moments.mean, x.double().mean(0))
    assert torch.allclose(moments.covariance, torch.cov(x.double().T, correction=0))


def test_spanning_takes_no_copy_of_a_unit() -> None:
    x = torch.randn(400, 3, dtype=torch.float64)
    x = torch.stack([3 * x[:, 0], 3 * x[:, 0], x[:, 1], 0.5 * x[:, 2]], 1)
    assert spanning(torch.cov(x.T), 3).tolist() in ([0, 2, 3], [1, 2, 3])


def test_best_heads_are_those_that_move_the_stream() -> None:
    moments = Moments(8)
    moments.add(torch.randn(300, 8))
    out = torch.ones(5, 8)
    out[:, 2:4] = 0.01
    assert best_heads(out, moments, 2, 3).tolist() == [0, 1, 4, 5, 6, 7]


def test_what_is_dropped_writes_its_mean() -> None:
    old, new = nn.Linear(6, 4), nn.Linear(3, 2)
    r, mean, keep = torch.randn(4, 2), torch.randn(6), torch.tensor([0, 2, 5])
    with torch.no_grad():
        _write(new, old, r, keep, mean.double())
        assert torch.allclose(new(mean[keep]), old(mean) @ r, atol=1e-5)


def test_cut_reads_and_writes_the_projected_stream(parent: BertModel, words: Words) -> None:
    made = cut(parent, rows(words), CUT)
    r, student = made.basis, made.student
    table = parent.embeddings.word_embeddings.weight @ r
    assert torch.equal(student.embeddings.word_embeddings.weight, table.half().float())
    ids, mask = pad_batch(rows(words)[:8], words.pad)
    with torch.no_grad():
        states = parent(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        first = states.hidden_states[0][mask.bool()]
        # the neurons that the student kept see in x R what they saw in x, up to the variance
        # outside of the basis
        old = parent.encoder.layer[0].intermediate.dense
        new = student.encoder.layer[0].intermediate.dense
        mine = new(first @ r)
        match = torch.cdist(mine.T, old(first).T).min(1).values / mine.norm(dim=0)
    assert made.kept_variance > 0.5
    assert match.median() < 1.0 - made.kept_variance + 0.3
    assert student.config.num_hidden_layers == 2


def test_untrained_cut_predicts_better_than_the_mean_state(parent: BertModel, words: Words) -> None:
    """Only with every projection, bias and norm in its place is the cut any good untrained."""
    full = CutRecipe(layers=(0, 1, 2), d_model=32, heads=4, d_ff=48, texts=40)
    made = cut(parent, rows(words), full)  # only one dimension of the stream is lost
    ids, mask = pad_batch(rows(words)[:32], words.pad)
    with torch.no_grad():
        truth = parent(input_ids=ids, attention_mask=mask)
        mine = made.student(input_ids=ids, attention_mask=mask)
    state = (truth.last_hidden_state @ made.basis)[mask.bool()]
    error = (mine.last_hidden_state[mask.bool()] - state).square().mean()
    assert error < 0.2 * state.var(0).mean()
    pooled = truth.pooler_output[:, made.pooled_units]
    assert (mine.pooler_output - pooled).square().mean() < 0.3 * pooled.var(0).mean()


def test_a_cut_survives_the_disk(parent: BertModel, words: Words, tmp_path: Path) -> None:
    made = cut(parent, rows(words), CUT)
    save_cut(tmp_path / "cut.safetensors", made, "a")
    back = load_cut(tmp_path / "cut.safetensors", "a")
    assert back is not None and load_cut(tmp_path / "cut.safetensors", "b") is None
    assert torch.equal(back.basis, made.basis)
    assert (back.pooled_variance, back.kept_variance) == (made.pooled_variance, made.kept_variance)
    for name, p in made.student.state_dict().items():
        assert torch.equal(back.student.state_dict()[name], p)


def test_healing_lowers_the_loss_and_leaves_the_tables(
    parent: BertModel, words: Words, tmp_path: Path
) -> None:
    made = cut(parent, rows(words), CUT)
    tables = {n: p.clone() for n, p in made.student.named_parameters() if "_embeddings" in n}
    recipe = HealRecipe(Schedule(40, 16, 3e-3, 4), held_out=32)
    healed = heal(parent, made, words, TEXTS, TEXTS, recipe, tmp_path / "c", "a")
    for part in ("loss", "hidden", "pooled"):
        assert healed.after[part] < 0.8 * healed.before[part]
    assert len(tables) == 3
    for name, p in made.student.named_parameters():
        if name in tables:
            assert torch.equal(p, tables[name])


def test_tuning_learns_both_objectives_and_leaves_the_embeddings(
    parent: BertModel, words: Words, tmp_path: Path
) -> None:
    before = {n: p.clone() for n, p in parent.state_dict().items()}
    recipe = TuneRecipe(Schedule(60, 8, 1e-3, 4, seed=5), max_tokens=16, held_out=24)
    tuned = tune("t", parent, words, RUNS, RUNS, recipe, tmp_path / "c", "a")
    assert tuned.after["masked"] < tuned.before["masked"] - 0.3
    assert tuned.after["next_sentence"] < 0.8 * tuned.before["next_sentence"]
    for name, p in parent.state_dict().items():
        assert torch.equal(p, before[name]) == name.startswith("embeddings.")
    assert encoder_distance(parent.state_dict(), before) > 0


def test_pairs_are_neighbours(words: Words) -> None:
    runs = [
        ["one part of it", "two parts of it", "three parts of it"],
        ["four it is", "five it is"],
    ]
    pairs = make_pairs(words, runs, 5)
    texts = [[words._tokenizer.decode(ids) for ids in pair] for pair in pairs]
    assert texts == [["one part of", "two parts of"], ["four it is", "five it is"]]
    assert all(ids[0] == words.cls and ids[-1] == words.sep for pair in pairs for ids in pair)


def test_next_sentence_choice_is_among_the_batch(parent: BertModel, words: Words) -> None:
    """A pooler that tells sentences apart, asked for the sentence itself, is always right."""
    ids = words.encode(TEXTS[:30:3])
    same = [(words.single(i, 16), words.single(i, 16)) for i in ids]
    heads = Heads(parent, 0)
    nearly_none = TuneRecipe(Schedule(2, 2, 1e-3, 1), masked=0.0)
    found = objectives(parent, heads, words, same, nearly_none, [0])
    assert float(found["next_sentence_accuracy"]) > 0.5
    turned = [(a, b) for (a, _), (_, b) in zip(same, same[1:] + same[:1], strict=True)]
    found = objectives(parent, heads, words, turned, nearly_none, [0])
    assert float(found["next_sentence_accuracy"]) < 0.2


def test_masking_is_berts(words: Words) -> None:
    ids = torch.randint(1000, 20000, (200, 50))
    ids[:, 0], ids[:, 30], ids[:, 40:] = words.cls, words.sep, words.pad
    shown, chosen = hide(ids, words, 0.15, [1, 2])
    free = torch.ones_like(chosen)
    free[:, 0] = free[:, 30] = free[:, 40:] = False
    assert not chosen[~free].any()
    assert float(chosen[free].float().mean()) == pytest.approx(0.15, abs=0.02)
    assert torch.equal(shown[~chosen], ids[~chosen])
    hidden = (shown[chosen] == words.mask).float().mean()
    same = (shown[chosen] == ids[chosen]).float().mean()
    assert float(hidden) == pytest.approx(0.8, abs=0.05)
    assert float(same) == pytest.approx(0.1, abs=0.05)
    one = torch.tensor([[words.cls, 2003, words.sep]])
    assert hide(one, words, 0.0001, [1])[1].tolist() == [[False, True, False]]


def test_batches_cover_an_epoch_in_like_lengths() -> None:
    lengths = list(np.random.default_rng(0).integers(5, 60, size=800))
    plan = bucketed(lengths, 8, 100, seed=1)
    assert sorted(np.concatenate(plan)) == list(range(800))
    widths = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in plan]
    assert float(np.median(widths)) < 5
    assert [list(b) for b in plan] == [list(b) for b in bucketed(lengths, 8, 100, seed=1)]
    assert [list(b) for b in plan] != [list(b) for b in bucketed(lengths, 8, 100, seed=2)]


def problem(path: Path, break_at: int | None = None, value: float = 1.0) -> Tensor:
    """Ten steps on a small problem whose data depend on the step."""
    torch.manual_seed(0)
    linear = nn.Linear(3, 1)

    def losses_at(step: int) -> dict[str, Tensor]:
        if step == break_at:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return {"loss": (linear(x) - x.sum(1, keepdim=True)).square().mean() * value}

    parameters = dict(linear.named_parameters())
    schedule = Schedule(10, 4, 0.05, 3)
    log = train_stage(
        "p", parameters, dict.fromkeys(parameters, 0.05), schedule, losses_at, path, "a"
    )
    assert log.steps == 10
    return torch.cat([p.detach().flatten() for p in parameters.values()])


def test_an_interrupted_stage_ends_at_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 3)
    whole = problem(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        problem(tmp_path / "cut", break_at=7)
    assert torch.equal(problem(tmp_path / "cut"), whole)
    assert [f.name for f in tmp_path.glob(".*")] == []


def test_a_finished_stage_runs_no_step_again(tmp_path: Path) -> None:
    whole = problem(tmp_path / "c")
    assert torch.equal(problem(tmp_path / "c", break_at=0), whole)


def test_a_checkpoint_of_another_recipe_is_not_used(tmp_path: Path) -> None:
    problem(tmp_path / "c")
    parameters = {"w": nn.Parameter(torch.ones(2))}
    log = train_stage(
        "p", parameters, {"w": 0.1}, Schedule(2, 1, 0.1, 1),
        lambda step: {"loss": parameters["w"].square().sum()}, tmp_path / "c", "other",
    )  # fmt: skip
    assert log.steps == 2


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="step 0 is nan"):
        problem(tmp_path / "c", value=float("nan"))
    assert not (tmp_path / "c").exists()


def test_rate_rises_then_falls_to_zero() -> None:
    schedule = Schedule(steps=110, batch=1, lr=1.0, warmup=10)
    rates = [schedule.share(step) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5) and rates[-1] < 0.001


def test_distance_is_relative_over_encoder_layers_only() -> None:
    parent = {"encoder.a.weight": torch.full((2, 2), 2.0), "encoder.a.bias": torch.zeros(2)}
    other = {"embeddings.x": torch.ones(3), "pooler.x": torch.ones(3)}
    mine = {"encoder.a.weight": torch.full((2, 2), 2.2), "encoder.a.bias": torch.full((2,), 0.4)}
    far = {name: t + 9 for name, t in other.items()}
    assert encoder_distance(mine | far, parent | other, matrices_only=True) == pytest.approx(0.1)
    expected = ((4 * 0.04 + 2 * 0.16) / 16) ** 0.5
    assert encoder_distance(mine | far, parent | other) == pytest.approx(expected)
    with pytest.raises(ValueError, match="layers differ"):
        encoder_distance(other, parent)


def test_schedule_checks_itself() -> None:
    with pytest.raises(ValueError, match="steps > warmup"):
        Schedule(steps=5, batch=1, lr=1.0, warmup=5)
