"""Decompositions, ranks, and the data-free subspace strategy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftport.methods.attach import check_shapes
from peftport.methods.lora import LoraConfig
from peftport.porting import apply_port, plan_port
from peftport.porting.lowrank import leading, truncated
from peftport.porting.rank import at_rank
from peftport.porting.weights import HostFiles
from peftport.testing.contracts_strategy import some_module


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_truncated_is_the_best_approximation(r, rank, d_out, d_in):
    b, a = randn(d_out, r), randn(r, d_in, seed=1)
    made_b, made_a, error = truncated(b, a, rank)
    assert made_b.shape == (d_out, rank) and made_a.shape == (rank, d_in)
    u, s, vh = torch.linalg.svd(b @ a, full_matrices=False)  # slow twin: the product itself
    expected = (u[:, :rank] * s[:rank]) @ vh[:rank]
    torch.testing.assert_close(made_b @ made_a, expected, rtol=1e-6, atol=1e-8)
    assert error == pytest.approx(float((b @ a - expected).norm() / (b @ a).norm()), abs=1e-7)
    torch.testing.assert_close(made_b.norm(dim=0), made_a.norm(dim=1))


def test_nothing_truncated_is_nothing():
    b, a, error = truncated(torch.zeros(4, 3), torch.ones(3, 5), 2)
    assert error == 0 and not (b @ a).any()


def test_leading_directions_exact_and_randomised(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(90, 40, generator=rng))[0]
    v = torch.linalg.qr(torch.randn(70, 40, generator=rng))[0]
    weight = (u * torch.logspace(0, -3, 40)) @ v.T
    exact = leading(weight, 8)
    monkeypatch.setattr("peftport.porting.lowrank.EXACT", 4)
    random = leading(weight, 8)
    for ours, theirs in zip(exact, random, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(leading(weight, 8)[0], random[0], rtol=0, atol=0)  # repeats itself
    largest = random[0].gather(0, random[0].abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    assert leading(weight, 60)[0].shape[1] == 40  # not more than its rank


def ported(source, target, module, **options):
    plan = plan_port(source.spec, target.spec, module, strategy="subspace", options=options)
    return apply_port(plan, module, source=source, target=target)


def products(module):
    return {site: t["B"].double() @ t["A"].double() for site, t in module.state.items()}


def test_equal_shapes_project_on_the_targets_subspaces(hosts):
    source, target = hosts("bert"), hosts("bert-other")
    module = some_module(source, "lora")
    made = ported(source, target, module, directions=5)
    files = HostFiles(target.spec, target.path)
    for site, update in products(made).items():
        u, _, vh = torch.linalg.svd(files.linear(target.spec.site(site)).double())
        u, v = u[:, :5], vh[:5].T
        before = products(module)[site]
        torch.testing.assert_close(update, u @ u.T @ before @ v @ v.T, rtol=1e-4, atol=1e-5)
        assert update.norm() < before.norm()
    assert set(made.notes["ported"]["directions"].values()) == {5}
    assert torch.equal(made.head["classifier.weight"], module.head["classifier.weight"])


def test_other_shapes_go_by_rank_order(hosts):
    """The twin has every coordinate of the stream twice: directions correspond one to one."""
    source, target = hosts("t5"), hosts("t5-twin")
    module = some_module(source, "lora")
    made = ported(source, target, module)
    for site, update in products(made).items():
        before = products(module)[site]  # [d_out, 32]
        expected = before.repeat_interleave(2, 1) / 2**0.5
        torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-3)


def test_the_rank_stays_and_the_head_follows(hosts):
    source, target = hosts("bert"), hosts("bert-wide")
    made = ported(source, target, some_module(source, "lora"), directions=4)
    for update in products(made).values():
        assert torch.linalg.matrix_rank(update, rtol=1e-5) == 3
    assert made.head["classifier.weight"].shape == (2, 48)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 2.0), (2, 4.0), (5, 10.0)])
def test_rank_keeps_the_scale_and_the_best_of_the_update(rank, alpha, hosts):
    source, target = hosts("bert"), hosts("bert-wide")
    module = some_module(source, "lora")
    plan = plan_port(source.spec, target.spec, module, strategy="pad", rank=rank)
    assert plan.target_config == LoraConfig(r=rank, alpha=alpha)
    assert f"r 3 -> {rank}" in plan.table() and f"A 3x32 -> {rank}x48" in plan.table()
    made = apply_port(plan, module)
    check_shapes(made, target.spec)
    full = apply_port(plan_port(source.spec, target.spec, module, strategy="pad"), module)
    told = made.notes["ported"]["rank"]
    for site, update in products(full).items():
        u, s, vh = torch.linalg.svd(update)
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(products(made)[site], best, rtol=1e-4, atol=1e-5)
        lost = float(s[rank:].norm() / s.norm())
        assert told["error"][site] == pytest.approx(lost, abs=1e-6)
    if rank > 3:  # new rows can be trained
        for tensors in made.state.values():
            assert tensors["A"][3:].any() and not tensors["B"][:, 3:].any()
    assert made.notes["ported"]["norms"]["encoder.0.self_attn.q"]["ported"] == pytest.approx(
        2 * float(products(made)["encoder.0.self_attn.q"].norm()), rel=1e-5
    )


def test_the_same_rank_is_no_change(hosts):
    source, target = hosts("bert"), hosts("bert-wide")
    module = some_module(source, "lora")
    plain = plan_port(source.spec, target.spec, module, strategy="pad")
    assert plan_port(source.spec, target.spec, module, strategy="pad", rank=3) == plain
    assert at_rank(LoraConfig(r=16, alpha=16), 4) == LoraConfig(r=4, alpha=4)
