"""The pieces of a packed host: products with frozen weights, the layout of texts, bank sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peftport.errors import InputError
from peftport.hosts.load import load_host
from peftport.hosts.packed import kernels
from peftport.hosts.packed.kernels import KERNELS, Frozen, use_kernel
from peftport.hosts.packed.layout import Packed, pack, repeat
from peftport.testing.pico import pico_bert
from peftport.train import sizing
from peftport.train.sizing import SIZES, bank_bytes, choose_sizing


def available() -> list[str]:
    return [name for name in KERNELS if name != "onednn" or kernels.has_onednn()]


@pytest.mark.parametrize("kernel", available())
@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_a_frozen_product_is_a_linear_layer(kernel: str, rows: int, bias: bool) -> None:
    random = torch.Generator().manual_seed(rows)
    weight = torch.randn(24, 16, generator=random)
    offset = torch.randn(24, generator=random) if bias else None
    x = torch.randn(rows, 16, generator=random)
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    made = Frozen(weight, offset, kernel)(own)
    expected = torch.nn.functional.linear(other, weight, offset)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    above = torch.randn(rows, 24, generator=random)
    (grad,) = torch.autograd.grad(made, own, above)
    (wanted,) = torch.autograd.grad(expected, other, above)
    torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", available())
def test_rows_that_are_not_contiguous(kernel: str) -> None:
    weight = torch.randn(6, 8)
    x = torch.randn(8, 5).t()
    expected = x.contiguous() @ weight.t()
    torch.testing.assert_close(Frozen(weight, None, kernel)(x), expected, rtol=1e-5, atol=1e-5)


def test_float64_keeps_its_digits() -> None:
    weight, x = torch.randn(6, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    for kernel in available():
        made = Frozen(weight, None, kernel)(x)
        assert made.dtype == torch.float64
        torch.testing.assert_close(made, x @ weight.t(), rtol=1e-14, atol=1e-14)


def test_a_kernel_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown kernel 'cublas'; known: onednn, torch"):
        use_kernel("cublas")
    monkeypatch.setattr(kernels, "has_onednn", lambda: False)
    with pytest.raises(InputError, match="'onednn' is not in this build of torch; use 'torch'"):
        use_kernel("onednn")
    assert kernels.fastest_kernel() == "torch"


BLOCKS = st.integers(1, 4).flatmap(
    lambda texts: st.lists(
        st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6),
                 min_size=texts, max_size=texts),
        min_size=1, max_size=4,
    )
)  # fmt: skip


@given(BLOCKS)
def test_every_text_lies_where_the_layout_says(blocks: list[list[list[int]]]) -> None:
    packed = pack(blocks)
    given_texts = [text for block in blocks for text in block]
    check_layout(packed, packed.ids, packed.positions)
    starts = packed.first.tolist()
    for at, (start, order) in enumerate(zip(starts, packed.order.tolist(), strict=True)):
        text = given_texts[order]
        assert packed.ids[start : start + len(text)].tolist() == text
        assert packed.positions[start : start + len(text)].tolist() == list(range(len(text)))
        (slot,) = [k for k, (a, b) in enumerate(packed.texts) if a <= at < b]
        assert slot == order // len(blocks[0])
        assert packed.tokens[slot][0] <= start < packed.tokens[slot][1]


@given(BLOCKS, st.integers(1, 4))
def test_copies_are_the_texts_laid_out_so_often(blocks: list[list[list[int]]], copies: int) -> None:
    block = blocks[0]
    narrow = pack([block])
    wide, again = repeat(narrow, copies), pack([block] * copies)
    assert wide.once is narrow
    assert wide.copies == copies
    for name in ("tokens", "texts"):
        assert getattr(wide, name) == getattr(again, name)
    assert wide.groups == again.groups
    assert torch.equal(wide.order, again.order)
    assert torch.equal(wide.first, again.first)
    check_layout(wide, narrow.ids.repeat(copies), narrow.positions.repeat(copies))


def check_layout(packed: Packed, ids: torch.Tensor, positions: torch.Tensor) -> None:
    """Groups and spans cover all tokens and texts, in order and once."""
    assert sorted(packed.order.tolist()) == list(range(packed.n_texts))
    assert len(ids) == len(positions) == packed.n_tokens
    token = text = 0
    for group in packed.groups:
        assert (group.start, group.text) == (token, text)
        first, stop = packed.tokens[group.slot]
        assert first <= token
        token, text = token + group.size * group.length, text + group.size
        assert token <= stop
    assert (token, text) == (packed.n_tokens, packed.n_texts)


def test_a_bank_fits_into_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = load_host(str(pico_bert(tmp_path)))
    monkeypatch.setattr(sizing, "fastest_kernel", lambda: "torch")
    seconds: dict[int, float] = {1: 1.0, 2: 0.8, 4: 0.62, 8: 0.6, 16: 0.59}
    tried: list[int] = []

    def measured(_: Any, size: int) -> float:
        tried.append(size)
        return seconds[size]

    monkeypatch.setattr(sizing, "_seconds", measured)
    before = list(kernels._chosen)
    try:
        assert choose_sizing(host, 1 << 40).bank == 8  # 4 is more than 5 % slower than 16
        assert tried == list(SIZES)
        assert choose_sizing(host, bank_bytes(host.spec, 2)).bank == 2
        assert choose_sizing(host, 0).bank == 1
    finally:
        kernels._chosen[:] = before
    assert bank_bytes(host.spec, 6) == 3 * bank_bytes(host.spec, 2)


def test_a_bank_is_measured_on_the_host(tmp_path: Path) -> None:
    host = load_host(str(pico_bert(tmp_path)))
    assert sizing._seconds(host, 2) > 0
