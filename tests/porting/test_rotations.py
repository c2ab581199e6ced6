"""Procrustes and neuron matching, checked against points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from peftport.porting import Correspondence, apply_port, plan_port
from peftport.porting.maps import Moments
from peftport.porting.spaces import Pair, Space
from peftport.porting.strategies.match import MatchMaps, correlations
from peftport.porting.strategies.procrustes import procrustes
from peftport.testing.contracts_strategy import some_module


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x, y):
    made = Moments(x.shape[1], y.shape[1])
    made.add(x, y)
    return made


def frame(rows, columns, seed):
    """Orthonormal rows or columns, whichever are fewer."""
    q = torch.linalg.qr(randn(max(rows, columns), min(rows, columns), seed=seed))[0]
    return q if rows >= columns else q.T


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("d_x", "d_y"), [(4, 4), (3, 5), (5, 3)])
def test_no_other_rotation_and_scale_is_nearer(d_x, d_y, intercept):
    x = randn(300, d_x) * torch.tensor([3.0, 2, 1, 0.5, 0.2])[:d_x] + 1
    y = 2.5 * x @ frame(d_x, d_y, 7) + 0.3 * randn(300, d_y, seed=1) - 2
    affine, scale = procrustes(moments(x, y), intercept=intercept)
    q = affine.weight / scale
    small = q.T @ q if d_x >= d_y else q @ q.T
    torch.testing.assert_close(small, torch.eye(len(small)).double())
    cx, cy = (x - x.mean(0), y - y.mean(0)) if intercept else (x, y)
    if intercept:
        torch.testing.assert_close(affine.bias, y.mean(0) - x.mean(0) @ affine.weight)
    else:
        assert not affine.bias.any()

    def error(weight):
        return float((cx @ weight - cy).square().sum())

    own = error(affine.weight)
    for other in (0.99 * scale, 1.01 * scale):
        assert error(other * q) > own
    if d_x <= d_y:  # the best of all semi-orthogonal maps; for a narrower y, of the most correlated
        for seed in range(20):
            turn = torch.linalg.matrix_exp(0.05 * _skew(d_y, seed))
            assert error(scale * q @ turn) > own - 1e-9


def _skew(d, seed):
    a = randn(d, d, seed=seed)
    return a - a.T


def test_a_rotation_is_found_and_what_never_varies_gets_no_image():
    x = torch.cat([randn(100, 4), torch.zeros(100, 1)], 1)
    turn = torch.linalg.qr(randn(5, 5, seed=2))[0]
    affine, scale = procrustes(moments(x, 3 * x @ turn))
    assert scale == pytest.approx(3)
    torch.testing.assert_close(x @ affine.weight, 3 * x @ turn)
    assert float(affine.weight[4].norm()) < 1e-8


def test_correlations_are_pearsons():
    x, y = randn(50, 4) * 5 + 3, randn(50, 3, seed=1) - 1
    y[:, 1] = 2 - x[:, 2]
    expected = np.corrcoef(x.T, y.T)[:4, 4:]
    torch.testing.assert_close(correlations(moments(x, y)), torch.from_numpy(expected))
    y[:, 0] = 4.0
    assert not correlations(moments(x, y))[:, 0].any()


@pytest.mark.parametrize(("d_x", "d_y"), [(4, 4), (3, 5), (5, 3)])
def test_assignment_has_the_largest_sum(d_x, d_y):
    x = randn(80, d_x)
    y = x @ randn(d_x, d_y, seed=3) + randn(80, d_y, seed=4)
    maps, found = MatchMaps.__new__(MatchMaps), moments(x, y)
    affine, facts = maps.fit(found, Moments(d_x, d_y), intercept=True)
    pearson = correlations(found)
    small, large = min(d_x, d_y), max(d_x, d_y)
    sums = [
        sum(float(pearson[(i, j) if d_x <= d_y else (j, i)]) for i, j in enumerate(order))
        for order in itertools.permutations(range(large), small)
    ]
    assert float((pearson * affine.weight).sum()) == pytest.approx(max(sums))
    assert facts["mean_correlation"] == pytest.approx(max(sums) / small)
    assert affine.weight.sum() == small and affine.weight.sum(0).max() == 1
    back, _ = maps.fit(found.swapped(), Moments(d_y, d_x), intercept=True)
    assert torch.equal(back.weight, affine.weight.T)


def test_match_copies_rows_and_leaves_zeros(hosts, texts):
    source, target = hosts("bert"), hosts("bert-wide")
    module = some_module(source, "bottleneck")
    plan = plan_port(source.spec, target.spec, module, strategy="match")
    seen = Correspondence(source, target, texts[:60])
    made = apply_port(plan, module, hosts=seen)
    for move in plan.moves:
        ours, theirs = module.state[move.source], made.state[move.target]
        for name, axis in (("down", 1), ("up", 0)):
            columns = theirs[name].movedim(axis, 0)
            empty = ~columns.flatten(1).any(1)
            assert int(empty.sum()) == 48 - 32
            given = {tuple(c) for c in columns[~empty].tolist()}
            assert given == {tuple(c) for c in ours[name].movedim(axis, 0).tolist()}
        assert torch.equal(theirs["down_bias"], ours["down_bias"])


def test_match_finds_the_copies_of_a_widened_host(hosts, texts):
    """Every coordinate of the twin is one of two copies of a source coordinate."""
    source, target = hosts("t5"), hosts("t5-twin")
    space = Space("stream", "encoder.1.ff.out")
    maps = MatchMaps(Correspondence(source, target, texts[:60]))
    weight = maps.write(Pair(space, space)).weight
    assert (weight.argmax(1) // 2).tolist() == list(range(32))
