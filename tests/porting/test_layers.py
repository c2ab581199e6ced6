"""Layer correspondence by CKA: the measure, the path, and the two together."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftport.porting import Correspondence, apply_port, cka_layers, plan_port
from peftport.porting.layers import best_path, cka, cka_matrices
from peftport.testing.contracts_strategy import some_module


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_is_the_kernels_alignment():
    """Slow twin: centred Gram matrices (Kornblith et al., eq. 1-3)."""
    x, y = randn(30, 5) + 2, randn(30, 7, seed=1) @ randn(7, 7, seed=2) - 1
    y[:, :3] += x[:, :3]
    n = len(x)
    h = torch.eye(n).double() - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    expected = float((k * m).sum() / (k.norm() * m.norm()))
    assert cka(x, y) == pytest.approx(expected) and 0.05 < expected < 0.95


def test_cka_sees_no_rotation_scale_or_shift_but_other_content():
    x = randn(60, 6)
    q = torch.linalg.qr(randn(9, 6, seed=3))[0].T
    assert cka(x, 3 * x @ q + 5) == pytest.approx(1)
    assert cka(x, randn(60, 6, seed=4)) < 0.5
    assert cka(x, torch.ones(60, 2).double()) == 0


def paths(deep, wide):
    """All correspondences that the rule allows."""
    if wide <= deep:
        return list(itertools.combinations(range(deep), wide))
    steps = [p for p in itertools.product((0, 1), repeat=wide - 1) if sum(p) == deep - 1]
    return [tuple(itertools.accumulate((0, *p))) for p in steps]


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10**6))
def test_path_is_the_best_of_all(deep, wide, seed):
    similarity = randn(deep, wide, seed=seed)

    def value(path):
        return float(sum(similarity[i, j] for j, i in enumerate(path)))

    chosen = best_path(similarity)
    assert chosen in paths(deep, wide)
    assert value(chosen) == pytest.approx(max(map(value, paths(deep, wide))))


def test_ties_go_to_the_earlier_layer():
    assert best_path(torch.ones(4, 2)) == (0, 1)
    assert best_path(torch.ones(2, 4)) in paths(2, 4)
    assert best_path(torch.ones(3, 3)) == (0, 1, 2)


@pytest.mark.parametrize("names", [("llama", "llama-shuffled"), ("t5", "t5-rotated")])
def test_a_layer_is_most_like_itself(names, hosts, texts):
    source, target = map(hosts, names)
    found = cka_matrices(Correspondence(source, target, texts[:100]))
    assert set(found) == set(source.spec.layers)
    for matrix in found.values():
        torch.testing.assert_close(matrix.diagonal(), torch.ones(2), rtol=0, atol=1e-4)
        assert float(matrix[0, 1]) < 0.999 and float(matrix[1, 0]) < 0.999


def test_dropped_layers_are_found_out(hosts, texts, tmp_path):
    """A host cut down to its own first half: depth would say 0, 2."""
    from transformers import AutoModel, AutoTokenizer

    from peftport.hosts.load import load_host

    deep = hosts("bert-deep")
    model = AutoModel.from_pretrained(deep.path)
    model.encoder.layer = model.encoder.layer[:2]
    model.config.num_hidden_layers = 2
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(deep.path).save_pretrained(tmp_path)
    cut = load_host(str(tmp_path))
    seen = Correspondence(deep, cut, texts[:100])
    assert cka_layers(seen) == {"encoder": (0, 1)}
    module = some_module(deep, "lora")
    plan = plan_port(
        deep.spec, cut.spec, module, strategy="copy", layers="cka", layer_map=cka_layers(seen)
    )
    assert plan.unused == {"encoder": [2, 3]} and "by cka: encoder 0<-0, 1<-1" in plan.table()
    told = apply_port(plan, module).notes["ported"]
    assert (told["layers"], told["layer_map"]) == ("cka", {"encoder": [0, 1]})


def test_a_deeper_target_uses_every_layer_in_order(hosts, texts):
    source, target = hosts("bert"), hosts("bert-deep")
    [chosen] = cka_layers(Correspondence(source, target, texts[:60])).values()
    assert chosen in paths(2, 4)


def test_different_tokenizers(hosts, texts):
    same = cka_matrices(Correspondence(hosts("bert"), hosts("bert-wide"), texts[:100]))
    other = cka_matrices(Correspondence(hosts("bert"), hosts("bert-wide-spelled"), texts[:100]))
    assert same["encoder"].shape == other["encoder"].shape == (2, 3)
    assert ((other["encoder"] > 0) & (other["encoder"] < 1)).all()
