"""Sampled controls keep what they claim to keep; halves are halves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftport.errors import HostMismatch, InputError, UnknownName
from peftport.methods.base import Module
from peftport.methods.lora import LoraConfig
from peftport.porting.controls import KINDS, body_only, gaussian, haar, head_only, sampled
from peftport.porting.controls import spectrum as respectrum

SHAPES = [(7,), (1,), (5, 3), (3, 5), (4, 6, 1), (4, 1, 6), (4, 4, 4)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def some(shape, seed=0, mean=0.5, std=2.0):
    return mean + std * torch.randn(shape, generator=rng(seed))


def module(seed=0, head=True, fingerprint="f"):
    state = {f"site{i}": {"x": some(shape, seed + i)} for i, shape in enumerate(SHAPES)}
    tensors = {"classifier.weight": some((2, 5), seed), "classifier.bias": some((2,), seed)}
    return Module(LoraConfig(), state, tensors if head else {}, fingerprint, "h", {"task": "t"})


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SHAPES), st.integers(0, 10_000))
def test_permuted_keeps_the_entries(shape, seed):
    x = some(shape, seed)
    y = KINDS["permuted"](x, rng(seed))
    assert y.shape == x.shape and y.dtype == x.dtype
    assert torch.equal(y.flatten().sort().values, x.flatten().sort().values)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([s for s in SHAPES if len(s) > 1]), st.integers(0, 10_000))
def test_spectrum_keeps_the_singular_values_of_every_matrix(shape, seed):
    x = some(shape, seed).double()
    y = respectrum(x, rng(seed + 1))
    torch.testing.assert_close(torch.linalg.svdvals(y), torch.linalg.svdvals(x))
    assert not torch.allclose(x, y)


@settings(deadline=None, max_examples=20)
@given(st.floats(-3, 3), st.floats(0.01, 5), st.integers(0, 10_000))
def test_gaussian_has_the_mean_and_the_population_deviation(mean, std, seed):
    x = some((100, 400), seed, mean, std).double()
    y = gaussian(x, rng(seed + 1))
    deviation = x.std(correction=0)
    assert abs(y.mean() - x.mean()) < 6 * deviation / 200  # 40,000 draws
    assert abs(y.std(correction=0) / deviation - 1) < 6 / (2 * 40_000) ** 0.5
    correlation = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]
    assert abs(correlation) < 6 / 200


def test_gaussian_uses_the_population_deviation_of_small_tensors():
    x = torch.tensor([0.0, 2.0], dtype=torch.float64)  # population 1, sample 1.414
    draws = torch.stack([gaussian(x, rng(i)) for i in range(3000)])
    assert abs(draws.std(correction=0) - 1) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_constant_tensors_stay_constant(kind):
    for x in (torch.zeros(5), torch.full((7,), 0.1), torch.tensor([3.0])):
        assert torch.equal(KINDS[kind](x, rng()), x)


def test_gaussian_keeps_constant_matrices():
    for x in (torch.full((3, 4), 0.1), torch.full((33, 31), 0.1, dtype=torch.float64)):
        assert torch.equal(gaussian(x, rng()), x)


def test_haar_frames_are_orthonormal_and_uniform():
    frames = haar((4000, 3, 2), rng())
    torch.testing.assert_close(frames.mT @ frames, torch.eye(2).double().expand(4000, 2, 2))
    # without the sign correction the first entry would never be positive (LAPACK's convention)
    assert abs(frames[:, 0, 0].mean()) < 0.05
    torch.testing.assert_close(
        frames.square().mean(0), torch.full((3, 2), 1 / 3).double(), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_redraws_body_and_head_and_says_so(kind):
    original = module()
    before = original.digest
    control = sampled(original, kind, rng(4))
    assert original.digest == before
    assert [n for n, _ in control.tensors()] == [n for n, _ in original.tensors()]
    for (name, x), (_, y) in zip(original.tensors(), control.tensors(), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        if x.numel() > 3:
            assert not torch.equal(x, y), name
    assert not torch.equal(original.head["classifier.weight"], control.head["classifier.weight"])
    assert control.notes["sampled"] == {"kind": kind, "seed": 4, "from": original.digest}
    assert control.notes["task"] == "t" and control.fingerprint == original.fingerprint
    assert sampled(original, kind, rng(4)).digest == control.digest
    assert sampled(original, kind, rng(5)).digest != control.digest


def test_unknown_kind_is_refused():
    with pytest.raises(
        UnknownName, match="unknown kind of sampled control 'gausian'; did you mean"
    ):
        sampled(module(), "gausian", rng())


def test_halves():
    ported, fresh = module(0), module(100)
    for made, body, head in (
        (head_only(ported, fresh), fresh, ported),
        (body_only(ported, fresh), ported, fresh),
    ):
        for site in body.state:
            assert torch.equal(made.state[site]["x"], body.state[site]["x"])
        for name in head.head:
            assert torch.equal(made.head[name], head.head[name])
            assert made.head[name].data_ptr() != head.head[name].data_ptr()
        assert made.notes["mixed"] == {"body": body.digest, "head": head.digest}


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (module(1, fingerprint="g"), HostMismatch, "two modules of one host"),
        (module(1, head=False), InputError, "cannot be split into head and body"),
        (replace(module(1), config=LoraConfig(r=4)), InputError, "one configuration"),
        (replace(module(1), head={"classifier.weight": torch.ones(3, 5)}), InputError,
         "the heads differ"),
    ],
)  # fmt: skip
def test_halves_must_fit(other, error, message):
    for make in (head_only, body_only):
        with pytest.raises(error, match=message):
            make(module(), other)
