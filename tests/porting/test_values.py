"""The values of a prefix, fitted to what its attention should add."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftport.data.tasks import Task
from peftport.hosts.load import load_host
from peftport.methods.base import Module
from peftport.methods.prefix import Prefix
from peftport.porting import Correspondence, apply_port, plan_port
from peftport.porting.carriers.base import carrier_of
from peftport.porting.maps import Moments
from peftport.porting.recorded import Recorder
from peftport.porting.spaces import Space
from peftport.porting.values import fit_values
from peftport.testing.contracts_strategy import some_module, some_texts
from peftport.testing.pico import pico_bert, pico_distilbert, pico_gpt2, pico_llama, pico_t5

HEADS, KV, LENGTH, D_KV, D_OUT = 4, 2, 3, 5, 11


def problem(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """attention [N, H * l], y [N, d_out], W [H, d_kv, d_out], V [kv_heads, l, d_kv]"""
    rng = torch.Generator().manual_seed(count)
    attention = torch.rand(count, HEADS * LENGTH, generator=rng, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(HEADS, D_KV, D_OUT, generator=rng, dtype=torch.float64)
    values = torch.randn(KV, LENGTH, D_KV, generator=rng, dtype=torch.float64)
    y = torch.zeros(count, D_OUT, dtype=torch.float64)
    for h in range(HEADS):
        for p in range(LENGTH):
            one = attention[:, h * LENGTH + p, None]
            y += one * (values[h * KV // HEADS, p] @ weight[h])
    return attention, y, weight, values


def moments(attention: Tensor, y: Tensor) -> Moments:
    made = Moments(attention.shape[1], y.shape[1])
    made.add(attention, y)
    return made


def test_values_are_found_where_heads_share_them():
    train, held = problem(200), problem(50)
    found, strength, error = fit_values(
        moments(*train[:2]), moments(*held[:2]), train[2], KV, strengths=(1e-9, 1.0)
    )
    assert strength == 1e-9 and error < 1e-8
    torch.testing.assert_close(found, train[3].transpose(0, 1).flatten(1), atol=1e-4, rtol=1e-4)


def test_it_is_the_ridge_solution():
    attention, y, weight, _ = problem(40)
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    both = moments(attention, y)
    found, _, _ = fit_values(both, both, weight, KV, strengths=(0.1,))
    # the same by one dense system: a column for every (head of values, pair, coordinate)
    columns = []
    for g in range(KV):
        for p in range(LENGTH):
            for k in range(D_KV):
                added = sum(
                    attention[:, h * LENGTH + p, None] * weight[h, k]
                    for h in range(HEADS)
                    if h * KV // HEADS == g
                )
                columns.append(added.flatten())  # type: ignore[union-attr]
    design = torch.stack(columns, dim=1) / len(y) ** 0.5
    own = found.unflatten(1, (KV, D_KV)).transpose(0, 1).flatten()  # [kv, l, d_kv] in a row
    gradient = design.T @ (design @ own - y.flatten() / len(y) ** 0.5)
    damping = -(gradient @ own) / (own @ own)  # stationary: gradient + lambda V = 0
    own_level = []
    for g in range(KV):
        heads = [h for h in range(HEADS) if h * KV // HEADS == g]
        paid = attention.unflatten(1, (HEADS, LENGTH))[:, heads].square().sum() / len(y) / LENGTH
        own_level.append(paid * weight[heads].square().sum(2).mean())
    assert float(damping) == pytest.approx(0.1 * float(sum(own_level)) / KV, rel=1e-4)
    torch.testing.assert_close(gradient, -damping * own, atol=1e-5, rtol=1e-4)


def test_pairs_without_attention_get_nothing():
    _, y, weight, _ = problem(40)
    unseen = moments(torch.zeros(40, HEADS * LENGTH, dtype=torch.float64), y)
    found, _, _ = fit_values(unseen, unseen, weight, KV)
    assert not found.any()


@pytest.mark.parametrize("build", [pico_bert, pico_distilbert, pico_gpt2, pico_llama, pico_t5])
@pytest.mark.parametrize("length", [3, 20])
def test_a_prefix_comes_home(tmp_path: Path, build: Callable[..., Any], length: int):
    """On its own host the fit finds values that do what the module's own do, in every family:
    heads that share values, weights stored the other way round, a decoder beside an encoder, and
    more pairs than a head has coordinates."""
    host = load_host(str(build(tmp_path / "host")))
    module = long(host, length)
    hosts = Correspondence(host, host, some_texts(60), Task())
    plan = plan_port(host.spec, host.spec, module, strategy="effect")
    made = apply_port(plan, module, hosts=hosts)
    fits = made.notes["ported"]["fits"]
    assert set(fits) == set(module.state)
    assert max(fit["held_out"] for fit in fits.values()) < 1e-3
    lasts = [s for s in host.spec.sites if s.role == "out" and s.block != "ff"]
    space = Space("stream", lasts[-1].name)
    recorder = Recorder(hosts, 1)
    plain, theirs, ours = (recorder.rows("target", m, [space])[space] for m in (None, module, made))
    assert (ours - theirs).norm() < 0.05 * (theirs - plain).norm()


def long(host: Any, length: int) -> Module:
    """A module with so many pairs."""
    module = some_module(host, "prefix")
    state = {
        site: {
            name: torch.cat([some_module(host, "prefix", i).state[site][name] for i in range(7)])
            [:length]
            for name in tensors
        }
        for site, tensors in module.state.items()
    }  # fmt: skip
    return replace(module, config=replace(module.config, length=length), state=state, head={})


def test_probes_show_the_attention(tmp_path: Path):
    host = load_host(str(pico_bert(tmp_path / "host")))
    module = long(host, 20)
    site = "encoder.0.self_attn.kv"
    hosts = Correspondence(host, host, some_texts(40), Task())
    recorder, read = Recorder(hosts, 1), Space("in", "encoder.0.self_attn.o")
    zero, *ones = carrier_of("prefix").probes(host.spec, module.config, module.state[site])
    assert len(ones) == -(-20 // host.spec.d_kv)

    def seen(tensors: dict[str, Tensor]) -> Tensor:
        at_work = replace(module, state={**module.state, site: tensors})
        return recorder.rows("target", at_work, [read])[read]

    parts = [(seen(one) - seen(zero)).unflatten(1, (host.spec.heads, -1)) for one in ones]
    attention = torch.cat(parts, dim=2)[:, :, :20]  # [N, heads, l]
    assert attention.min() > -1e-6 and attention.sum(2).max() < 1
    value = module.state[site]["value"].unflatten(1, (host.spec.heads, -1))  # [l, heads, d_kv]
    added = torch.einsum("nhp,phk->nhk", attention, value).flatten(1)
    torch.testing.assert_close(seen(module.state[site]) - seen(zero), added, atol=1e-5, rtol=1e-4)


def test_the_other_methods_have_one_probe(tmp_path: Path):
    host = load_host(str(pico_bert(tmp_path / "host")))
    for method, part in (("lora", "B"), ("bottleneck", "up")):
        module = some_module(host, method)
        own = next(iter(module.state.values()))
        (silent,) = carrier_of(method).probes(host.spec, module.config, own)
        assert own[part].any() and not silent[part].any()


def test_all_attentions_are_answered(tmp_path: Path):
    host = load_host(str(pico_t5(tmp_path / "host")))
    config = some_module(host, "prefix").config
    found = carrier_of("prefix").answers(host.spec, config)
    assert set(found) == {s.name for s in Prefix().sites(host.spec, config)}  # type: ignore[arg-type]
