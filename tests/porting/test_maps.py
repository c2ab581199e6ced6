"""Ridge fits and Kronecker sums, checked against slow and obvious twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftport.methods.compacter import kronecker_sum
from peftport.porting.kronecker import Dense, _Problem, factorise
from peftport.porting.maps import Affine, Moments, fit, residual, ridge
from peftport.porting.strategies.pad import padded


def paired(n=200, d_x=5, d_y=3, noise=0.1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_x, generator=rng, dtype=torch.float64) + 2
    w = torch.randn(d_x, d_y, generator=rng, dtype=torch.float64)
    y = x @ w + 1 + noise * torch.randn(n, d_y, generator=rng, dtype=torch.float64)
    return x, y, w


def moments(x, y):
    made = Moments(x.shape[1], y.shape[1])
    for start in range(0, len(x), 17):  # batch by batch
        made.add(x[start : start + 17], y[start : start + 17])
    return made


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_is_least_squares_with_a_penalty(intercept):
    """Slow twin: ordinary least squares on points with the penalty as extra rows."""
    x, y, _ = paired()
    strength, n = 0.3, len(x)
    cx, cy = (x - x.mean(0), y - y.mean(0)) if intercept else (x, y)
    lam = strength * float((cx.T @ cx / n).diagonal().mean())
    rows = torch.cat([cx, (n * lam) ** 0.5 * torch.eye(x.shape[1]).double()])
    expected = torch.linalg.lstsq(
        rows, torch.cat([cy, torch.zeros(x.shape[1], y.shape[1])])
    ).solution
    made = ridge(moments(x, y), strength, intercept=intercept)
    torch.testing.assert_close(made.weight, expected)
    bias = y.mean(0) - x.mean(0) @ expected if intercept else torch.zeros(3).double()
    torch.testing.assert_close(made.bias, bias)


def test_residual_is_the_error_on_the_points():
    x, y, _ = paired()
    rng = torch.Generator().manual_seed(1)
    some = Affine(torch.randn(5, 3, generator=rng).double(), torch.randn(3, generator=rng).double())
    error = (some(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert residual(moments(x, y), some) == pytest.approx(float(error))


def test_swapped_moments_fit_the_other_direction():
    x, y, _ = paired()
    given_, expected = ridge(moments(x, y).swapped(), 0.1), ridge(moments(y, x), 0.1)
    torch.testing.assert_close(given_.weight, expected.weight)
    torch.testing.assert_close(moments(x, y).covariance, torch.cov(x.T, correction=0))


def test_strength_follows_the_noise():
    def strength(noise):
        x, y, _ = paired(60, 40, 3, noise, seed=3)
        xh, yh, _ = paired(60, 40, 3, noise, seed=3)
        rng = torch.Generator().manual_seed(9)
        yh = yh + noise * torch.randn(yh.shape, generator=rng).double()
        return fit(moments(x[:45], y[:45]), moments(xh[45:], yh[45:]))[1:]

    quiet, loud = strength(0.0), strength(20.0)
    assert quiet[0] < loud[0] and quiet[1] < 1e-4 < loud[1]


def test_final_fit_uses_all_texts():
    x, y, _ = paired()
    affine, strength, _ = fit(moments(x[:150], y[:150]), moments(x[150:], y[150:]))
    torch.testing.assert_close(affine.weight, ridge(moments(x, y), strength).weight)


def test_a_space_that_never_varies_maps_to_the_mean():
    x = torch.full((30, 4), 0.3, dtype=torch.float64)
    y = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)).double()
    made = ridge(moments(x, y), 1e-6)
    assert not made.weight.any()
    torch.testing.assert_close(made(x[:1])[0], y.mean(0))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3))
def test_padded_keeps_what_both_shapes_have(sizes):
    old, new = tuple(a for a, _ in sizes), tuple(b for _, b in sizes)
    x = torch.randn(old, generator=torch.Generator().manual_seed(0)) + 10
    y = padded(x, new)
    assert y.shape == new
    for index in np.ndindex(*new):
        inside = all(i < a for i, a in zip(index, old, strict=True))
        assert y[index] == (x[index] if inside else 0)


def dense(rule, p, q, seed):
    rng = torch.Generator().manual_seed(seed)
    n = rule.shape[0]
    left = torch.randn(n, p, 1, generator=rng, dtype=torch.float64)
    right = torch.randn(n, 1, q, generator=rng, dtype=torch.float64)
    return kronecker_sum(rule, left, right)


def rule_of(n, seed=0):
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_kronecker_sums_are_found_again_exactly(n):
    rule = rule_of(n)
    wanted = [dense(rule, 6, 2, 1), dense(rule, 3, 5, 2), dense(rule, 6, 2, 3)]
    fitted, factors, errors = factorise([Dense(w) for w in wanted], rule)
    assert max(errors) < 1e-6
    for own, matrix in zip(factors, wanted, strict=True):
        torch.testing.assert_close(
            kronecker_sum(fitted, own.left, own.right), matrix, atol=1e-6, rtol=1e-6
        )
    norms = fitted.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, rule.flatten(1).norm(dim=1).mean().expand(n))


def test_a_rule_is_learned_where_the_given_one_does_not_do():
    """Matrices of one foreign rule: better than with the given rule alone."""
    given_, foreign = rule_of(4, 0), rule_of(4, 1)
    wanted = [Dense(dense(foreign, 8, 3, s)) for s in range(6)]
    _, _, errors = factorise(wanted, given_)
    fixed = [alone(w, given_) for w in wanted]
    assert sum(e**2 for e in errors) < 0.3 * sum(e**2 for e in fixed)


def alone(target, rule):
    """Error of the unweighted start with the rule kept."""
    problem = _Problem(target, rule.shape[0])
    return problem.error(rule, problem.start(rule))


def test_errors_count_by_what_the_matrix_meets():
    rng = torch.Generator().manual_seed(4)
    matrix = torch.randn(16, 8, generator=rng, dtype=torch.float64)
    x = (
        torch.randn(500, 16, generator=rng, dtype=torch.float64)
        * torch.logspace(1, -2, 16).double()
    )
    x = x + 0.5
    covariance, mean = torch.cov(x.T, correction=0), x.mean(0)
    rule = rule_of(4)

    def loss(target):
        fitted, (own,), _ = factorise([target], rule)
        gap = x @ (matrix - kronecker_sum(fitted, own.left, own.right)) - own.shift
        return float(gap.square().sum() / (x @ matrix).square().sum())

    informed = loss(Dense(matrix, covariance, mean))
    assert informed < 0.5 * loss(Dense(matrix))
    assert informed < loss(Dense(matrix, covariance))  # the mean of the error goes into the bias


@pytest.mark.parametrize("block", ["left", "right"])
def test_each_step_solves_its_block_exactly(block):
    """The gradient of the weighted error by the block that was solved for is zero."""
    rng = torch.Generator().manual_seed(6)
    x = torch.randn(50, 12, generator=rng, dtype=torch.float64)
    target = Dense(torch.randn(12, 6, generator=rng), torch.cov(x.T, correction=0))
    rule, problem = rule_of(3), _Problem(target, 3)
    own = problem.start(rule)

    def gradient():
        leaf = getattr(own, block).clone().requires_grad_()
        parts = {"left": own.left, "right": own.right, block: leaf}
        gap = problem.matrix - kronecker_sum(rule, parts["left"], parts["right"])
        (gap * (target.metric @ gap)).sum().backward()
        return float(leaf.grad.norm())

    before = gradient()
    {"left": problem.solve_left, "right": problem.solve_right}[block](rule, own)
    assert gradient() < 1e-9 < 1e-3 < before


def test_the_result_cannot_be_improved_in_any_one_block():
    rng = torch.Generator().manual_seed(8)
    targets = [Dense(torch.randn(12, 6, generator=rng)) for _ in range(3)]
    fitted, factors, errors = factorise(targets, rule_of(3))
    for target, own, error in zip(targets, factors, errors, strict=True):
        problem = _Problem(target, 3)
        for solve in (problem.solve_left, problem.solve_right):
            solve(fitted, own)
            assert problem.error(fitted, own) > error - 2e-3


def test_a_zero_matrix_is_no_problem():
    rule = rule_of(2)
    _, factors, errors = factorise([Dense(torch.zeros(4, 4)), Dense(dense(rule, 2, 2, 0))], rule)
    assert not kronecker_sum(rule, factors[0].left, factors[0].right).any()
    assert errors[0] == 0 and errors[1] < 1e-6
