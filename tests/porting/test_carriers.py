"""Carriers by their definition: with any affine maps, a ported module does at a target point what
the source module does at the point that it maps to."""

from __future__ import annotations

import pytest
import torch

from peftport.methods.base import method_of
from peftport.methods.bottleneck import Bottleneck, BottleneckConfig
from peftport.methods.lora import Lora
from peftport.porting import plan_port
from peftport.porting.carriers.base import Maps, carrier_of
from peftport.porting.maps import Affine
from peftport.porting.spaces import Pair, Space, run_plain, tapped
from peftport.porting.strategies.base import Job, mapped_head
from peftport.testing.contracts_strategy import some_module

WIDTHS = {"source": 32, "target": 48}


class AnyMaps(Maps):
    """Random maps, another for each pair and direction."""

    def __init__(self):
        self.made = {}

    def _some(self, key, a, b, intercept):
        if key not in self.made:
            rng = torch.Generator().manual_seed(len(self.made))
            weight = torch.randn(a, b, generator=rng, dtype=torch.float64) / a**0.5
            bias = (
                torch.randn(b, generator=rng, dtype=torch.float64) if intercept else torch.zeros(b)
            )
            self.made[key] = Affine(weight, bias.double())
        return self.made[key]

    def read(self, pair: Pair, *, intercept: bool = True) -> Affine:
        return self._some(("read", pair, intercept), 48, 32, intercept)

    def write(self, pair: Pair) -> Affine:
        return self._some(("write", pair), 32, 48, True)


def carried(hosts, method, config=None):
    source, target = hosts("bert"), hosts("bert-wide")
    module = some_module(source, method)
    if config is not None:
        state = method_of(config).init(source.spec, config, torch.Generator().manual_seed(0))
        for tensors in state.values():
            for tensor in tensors.values():
                tensor += 0.3
        module = type(module)(config, state, module.head, module.fingerprint)
    plan = plan_port(source.spec, target.spec, module, strategy="ridge")
    job = Job(plan, module, module.state, carrier_of(method), None)
    maps = AnyMaps()
    return job, maps, job.carrier.carry(plan.config, module.state, job.links, maps)


def points(d, count=9):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def close(given, expected):
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_lora(hosts):
    job, maps, made = carried(hosts, "lora")
    x = points(48)
    for link, pairs in job.links:
        ours, theirs = job.state[link.source.name], made.state[link.target.name]
        read = maps.read(pairs["read"], intercept=False)
        before = Lora.delta(read(x), ours["A"].double(), ours["B"].double(), 2.0)
        after = Lora.delta(x, theirs["A"].double(), theirs["B"].double(), 2.0)
        close(after, before @ maps.write(pairs["write"]).weight)


def test_prefix(hosts):
    job, maps, made = carried(hosts, "prefix")
    for link, pairs in job.links:
        for use in ("key", "value"):
            expected = maps.write(pairs[use])(job.state[link.source.name][use])
            close(made.state[link.target.name][use].double(), expected)
        assert pairs["key"].source.site.endswith(".k") and pairs["value"].source.site.endswith(".v")


@pytest.mark.parametrize("norm_first", [False, True])
def test_bottleneck(hosts, norm_first):
    config = BottleneckConfig(reduction=8, norm_first=norm_first)
    job, maps, made = carried(hosts, "bottleneck", config)
    x = points(48)

    def effect(x, own):
        own = {name: tensor.double() for name, tensor in own.items()}
        return Bottleneck.effect(x, **own, activation="swish")

    for link, pairs in job.links:
        assert pairs["read"].target.kind == ("normed" if norm_first else "block")
        before = effect(maps.read(pairs["read"])(x), job.state[link.source.name])
        after = effect(x, made.state[link.target.name])
        close(after, before @ maps.write(pairs["write"]).weight)


@pytest.mark.parametrize("bias", [True, False])
def test_head(bias):
    rng = torch.Generator().manual_seed(1)
    head = {"classifier.weight": torch.randn(2, 32, generator=rng)}
    if bias:
        head["classifier.bias"] = torch.randn(2, generator=rng)
    maps, x = AnyMaps(), points(48)
    made = mapped_head(head, maps)
    read = maps.read(Pair(Space("head"), Space("head")), intercept=bias)
    before = read(x) @ head["classifier.weight"].T.double() + head.get("classifier.bias", 0)
    after = x @ made["classifier.weight"].T.double() + made.get("classifier.bias", 0)
    close(after, before)
    assert list(made) == list(head)


def test_spaces_are_where_their_names_say(hosts, texts):
    """The stream after a block, normed as the architecture does it, is what the next one reads."""
    host = hosts("bert")
    batch = host.tokenizer(texts[:4], padding=True, return_tensors="pt")
    spaces = {kind: Space(kind, "encoder.0.ff.out") for kind in ("block", "stream", "normed")} | {
        "in": Space("in", "encoder.1.self_attn.q"),
        "out": Space("out", "encoder.1.self_attn.q"),
    }
    with tapped(host, [*spaces.values(), Space("head")]) as found:
        run_plain(host, dict(batch))
    got = {name: found[space] for name, space in spaces.items()}
    layer = host.model.bert.encoder.layer
    torch.testing.assert_close(got["normed"], got["in"])
    torch.testing.assert_close(layer[0].output.LayerNorm(got["stream"]), got["in"])
    torch.testing.assert_close(layer[1].attention.self.query(got["in"]), got["out"])
    assert not torch.allclose(got["block"], got["stream"])
    assert found[Space("head")].shape == (4, 32)


def test_decoder_reads_the_text_too(hosts, texts):
    host = hosts("t5")
    batch = host.tokenizer(texts[:4], padding=True, return_tensors="pt")
    wanted = [Space("in", "decoder.0.self_attn.q"), Space("in", "decoder.1.cross_attn.k")]
    first = Space("stream", "decoder.1.ff.out")
    with tapped(host, [*wanted, first]) as found:
        run_plain(host, {k: batch[k] for k in ("input_ids", "attention_mask")})
    length = batch["input_ids"].shape[1]
    assert found[wanted[0]].shape == found[wanted[1]].shape == (4, length, 32)
    start = torch.zeros(4, 1, dtype=torch.long)
    with tapped(host, [first]) as alone, torch.no_grad():
        host.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=start,
        )
    torch.testing.assert_close(found[first][:, :1], alone[first])
