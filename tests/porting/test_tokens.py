"""Data-free strategies between hosts that compute the same in other coordinates: exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from peftport.data.tasks import Task, encode
from peftport.errors import HostMismatch, InputError, UnknownName
from peftport.methods.lora import LoraConfig
from peftport.porting import apply_port, plan_port
from peftport.porting.spaces import Pair, Space
from peftport.porting.strategies.heads import _Attention, match_heads, similarity
from peftport.porting.tokens import MIN_TOKENS, TokenMaps, per_query_head
from peftport.porting.weights import HostFiles, plain_tokens
from peftport.testing.contracts_strategy import some_module
from peftport.train.evaluate import class_scores

EXACT = 2e-3
GAIN = {"t5-twin": 2.0}
TWINS = [
    ("t5", "t5-twin"),
    ("t5", "t5-rotated"),
    ("bert", "bert-twin"),
    ("llama", "llama-shuffled"),
]


def logits(host, module, texts):
    return class_scores(host, module, encode(host.tokenizer, texts, Task()))


def distance(given, expected):
    return np.linalg.norm(given - expected) / np.linalg.norm(expected)


def ported(source, target, module, strategy, **options):
    plan = plan_port(source.spec, target.spec, module, strategy=strategy, **options)
    folders = {"source_folder": source.path, "target_folder": target.path}
    return apply_port(plan, module, **folders)


#: a compacter in a rotated basis is no compacter any more
CASES = [
    ("embedding", method, twins)
    for twins in TWINS
    for method in ("lora", "prefix", "bottleneck", "compacter")
    if (method, twins[1]) not in {("compacter", "t5-rotated"), ("compacter", "llama-shuffled")}
] + [
    ("heads", method, twins)
    for twins in [("t5", "t5-twin"), ("t5", "t5-rotated"), ("llama", "llama-shuffled")]
    for method in ("lora", "prefix")
]


@pytest.mark.parametrize(("strategy", "method", "twins"), CASES)
def test_effect_is_recovered_in_other_coordinates(strategy, method, twins, hosts, texts):
    source, target = map(hosts, twins)
    module = some_module(source, method)
    there = ported(source, target, module, strategy)
    given = logits(target, there, texts[:40]) / GAIN.get(twins[1], 1.0)
    assert distance(given, logits(source, module, texts[:40])) < EXACT


@pytest.mark.parametrize(
    ("strategy", "role"),
    [("embedding", role) for role in ("q", "k", "v", "up", "gate")]
    + [("heads", role) for role in ("q", "k", "v", "o")],
)
def test_every_projection(strategy, role, hosts, texts):
    source, target = hosts("llama"), hosts("llama-shuffled")
    module = all_linears(source, (role,))
    there = ported(source, target, module, strategy)
    expected = logits(source, module, texts[:40])
    assert distance(logits(source, None, texts[:40]), expected) > 0.02
    assert distance(logits(target, there, texts[:40]), expected) < EXACT


def test_zero_goes_to_zero_behind_a_bias(hosts):
    """What a layer says to no input at all is its bias, on either host."""
    files = [HostFiles(h.spec, h.path, known=True) for h in map(hosts, ("bert", "bert-wide"))]
    space = Space("out", "encoder.1.self_attn.v")
    ours, theirs = (f.bias(f.spec.site(space.site)).double() for f in files)
    maps = TokenMaps(*files, tokens=1000)
    assert float(ours.norm()) > 0.1
    torch.testing.assert_close(maps.write(Pair(space, space))(ours), theirs)
    torch.testing.assert_close(maps.read(Pair(space, space))(theirs), ours)
    assert not maps.read(Pair(space, space), intercept=False).bias.any()


def all_linears(host, roles):
    """A lora whose updates stay in what the host's own weights span."""
    config = LoraConfig(r=3, alpha=6.0, roles=roles)
    rng = torch.Generator().manual_seed(0)
    state, files = {}, HostFiles(host.spec, host.path, known=True)
    for site in host.spec.sites:
        if site.role not in roles:
            continue
        b = 0.3 * files.linear(site) @ torch.randn(site.d_in, 3, generator=rng)
        a = 0.2 * torch.randn(3, site.d_in, generator=rng)
        if site.role == "o":
            v = files.linear(host.spec.site(site.name[:-1] + "v"))
            heads = per_query_head(host.spec, v).split(host.spec.d_kv)  # [d_kv, d_model] each
            a = 0.3 * torch.cat([torch.randn(3, len(h.T), generator=rng) @ h.T for h in heads], 1)
        state[site.name] = {"A": a, "B": b}
    base = some_module(host, "lora")
    return replace(base, config=config, state=state)


def test_no_model_is_built(hosts, monkeypatch):
    source, target = hosts("llama"), hosts("llama-shuffled")
    module = some_module(source, "lora")
    monkeypatch.setattr(type(source.family), "load", lambda *_, **__: pytest.fail("loaded"))
    for strategy in ("embedding", "heads", "subspace"):
        made = ported(source, target, module, strategy)
        rows = made.notes["ported"]["norms"]
        assert all(row["source"] > 0 and row["ported"] > 0 for row in rows.values())


def test_weights_by_site(hosts):
    """Names, fused and transposed weights: what the files give is what the model computes with."""
    for name in ("bert", "t5", "llama"):
        host = hosts(name)
        files = HostFiles(host.spec, host.path)
        for site in host.spec.sites:
            if site.role in ("kv", "out"):
                continue
            linear = host.family.submodule(host.model, host.spec, site)
            torch.testing.assert_close(files.linear(site), linear.weight.float())
            bias = files.bias(site)
            assert (bias is None) == (linear.bias is None)
            if bias is not None:
                torch.testing.assert_close(bias, linear.bias.float())
        embedding = host.family.body(host.model).get_submodule(host.family.embedding_path)
        torch.testing.assert_close(files.embedding(), embedding.weight)


def test_fused_transposed_weights(tmp_path):
    from peftport.hosts.load import load_host
    from peftport.testing.pico import pico_gpt2

    host = load_host(str(pico_gpt2(tmp_path)), verbalisers=("negative", "positive"))
    files = HostFiles(host.spec, host.path)
    fused = host.family.body(host.model).get_submodule("h.1.attn.c_attn")
    for at, role in enumerate("qkv"):
        site = host.spec.site(f"decoder.1.self_attn.{role}")
        part = slice(at * site.d_out, (at + 1) * site.d_out)
        torch.testing.assert_close(files.linear(site), fused.weight.T[part])
        torch.testing.assert_close(files.bias(site), fused.bias[part])


def test_heads_are_found_again_with_their_groups(hosts):
    source, target = hosts("llama"), hosts("llama-shuffled")
    module = some_module(source, "lora")
    told = ported(source, target, module, "heads").notes["ported"]
    assert told["tokens"]["residual"] < 1e-6
    for row in told["heads"].values():
        assert sorted(map(tuple, row["heads"])) == [(0, 3), (1, 2), (2, 0), (3, 1)]
        assert row["cosine"] == pytest.approx(1, abs=1e-4)


def test_cosines_are_those_of_the_bilinear_forms(hosts):
    """Slow twin: the d_model x d_model matrices themselves."""
    host, other = hosts("bert"), hosts("bert-other")
    ours, theirs = (
        _Attention(HostFiles(h.spec, h.path), h.spec.site(f"encoder.{i}.self_attn.q"), None, None)
        for i, h in enumerate((host, other))
    )

    def form(x, h):
        return torch.cat([(x.q[h].T @ x.k[h]).flatten(), (x.v[h].T @ x.o[h]).flatten()])

    expected = torch.tensor(
        [
            [float(torch.cosine_similarity(form(ours, i), form(theirs, j), 0)) for j in range(4)]
            for i in range(4)
        ]
    ).double()
    torch.testing.assert_close(similarity(ours, theirs), expected, rtol=1e-5, atol=1e-6)


def test_heads_without_a_partner_are_in_no_couple():
    cosines = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.8, 0.7, 0.1, 0.1]])
    assert match_heads(cosines, 2, 4) == ([(0, 1), (1, 0)], [(0, 1), (1, 0)])
    assert match_heads(cosines.T, 4, 2) == ([(0, 1), (1, 0)], [(0, 1), (1, 0)])
    # two groups of two: the single best couple (0, 1) loses to what its group gives
    grouped = torch.tensor(
        [[0.0, 0.9, 0.6, 0.5], [0.0, 0.0, 0.7, 0.8], [0.5, 0.4, 0.0, 0.0], [0.4, 0.6, 0.0, 0.0]]
    )
    queries, pairs = match_heads(grouped, 2, 2)
    assert pairs == [(0, 1), (1, 0)] and sorted(queries) == [(0, 2), (1, 3), (2, 0), (3, 1)]


def test_tokens_in_one_spelling():
    assert plain_tokens({"[CLS]": 0, "film": 5, "##s": 6, "##": 7}) == {
        " [CLS]": 0, " film": 5, "s": 6, " ##": 7,
    }  # fmt: skip
    assert plain_tokens({"\u2581film": 9, "s": 3, "\u0120film": 4}) == {"s": 3, " film": 4}


def test_refusals(hosts, tmp_path, monkeypatch):
    source, target = hosts("bert"), hosts("bert-wide")
    module = some_module(source, "lora")
    plan = plan_port(source.spec, target.spec, module, strategy="embedding")
    with pytest.raises(HostMismatch, match=r"holds host .* the plan is for"):
        apply_port(plan, module, source_folder=source.path, target_folder=source.path)
    with pytest.raises(InputError, match="source's folder is missing; give source_folder"):
        apply_port(plan, module, target_folder=target.path)
    with pytest.raises(UnknownName, match="unknown option of strategy 'embedding' 'tokenz'; did"):
        plan_port(source.spec, target.spec, module, strategy="embedding", options={"tokenz": 1})
    with pytest.raises(InputError, match=r"'tokens' .* must be a whole number >= 1, got 0"):
        plan_port(source.spec, target.spec, module, strategy="embedding", options={"tokens": 0})
    wide = replace(module, config=LoraConfig(r=3, roles=("q", "up")))
    with pytest.raises(InputError, match="q, k, v, o only, the module also has up"):
        plan_port(source.spec, target.spec, wide, strategy="heads")
    monkeypatch.setattr(HostFiles, "vocabulary", lambda self: {"a": 1})
    with pytest.raises(InputError, match=f"share 1 tokens, expected at least {MIN_TOKENS}"):
        ported(source, target, module, "embedding")
