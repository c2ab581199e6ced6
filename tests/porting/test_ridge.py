"""Ridge between hosts that are the same function in other coordinates must be exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peftport.data.tasks import Task, encode
from peftport.porting import Correspondence, apply_port, plan_port
from peftport.porting.spaces import Pair, Space, run_plain, tapped
from peftport.testing.contracts_strategy import some_module
from peftport.train.evaluate import class_scores

METHODS = ("lora", "prefix", "bottleneck", "compacter")
#: relative difference of logits that the ridge penalty and float32 leave
EXACT = 5e-3
#: a host whose output embedding is tied answers with doubled logits in the doubled basis
GAIN = {"t5-twin": 2.0}
TWINS = [("t5", "t5-twin"), ("t5", "t5-rotated"), ("bert", "bert-twin")]
#: a compacter in a rotated basis is no compacter any more: what its form cannot hold is lost
CASES = [
    (m, pair) for pair in TWINS for m in METHODS if (m, pair[1]) != ("compacter", "t5-rotated")
]


def logits(host, module, texts):
    return class_scores(host, module, encode(host.tokenizer, texts, Task()))


@pytest.fixture(scope="module")
def seen(hosts, texts):
    made = {}
    return lambda a, b: made.setdefault((a, b), Correspondence(hosts(a), hosts(b), texts))


def distance(given, expected):
    return np.linalg.norm(given - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("twins", TWINS)
def test_twins_compute_the_same(twins, hosts, texts):
    source, target = map(hosts, twins)
    batch = encode(source.tokenizer, texts[:8], Task()).batch(range(8), source.pad_id)
    found = []
    for host in (source, target):
        stream = Space("stream", "encoder.1.ff.out")
        with tapped(host, [stream]) as spaces:
            run_plain(host, batch)
        x = spaces[stream][batch["attention_mask"].bool()]
        found.append(x.square().mean(1))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", ["ridge", "procrustes"])
@pytest.mark.parametrize(("method", "twins"), CASES)
def test_effect_is_recovered_in_other_coordinates_and_back(
    method, twins, strategy, hosts, seen, texts
):
    source, target = map(hosts, twins)
    module = some_module(source, method)
    plan = plan_port(source.spec, target.spec, module, strategy=strategy)
    there = apply_port(plan, module, hosts=seen(*twins))
    expected = logits(source, module, texts[:40])
    gain = GAIN.get(twins[1], 1.0)
    assert distance(logits(target, there, texts[:40]) / gain, expected) < EXACT
    back_plan = plan_port(target.spec, source.spec, there, strategy=strategy)
    back = apply_port(back_plan, there, hosts=seen(*reversed(twins)))
    assert distance(logits(source, back, texts[:40]), expected) < 2 * EXACT


#: the T5 twins share their key and value spaces, where a prefix lives
@pytest.mark.parametrize(
    ("method", "twins"), [c for c in CASES if (c[0], c[1][0]) != ("prefix", "t5")]
)
def test_pad_does_not_see_the_change_of_coordinates(method, twins, hosts, texts):
    source, target = map(hosts, twins)
    module = some_module(source, method)
    plan = plan_port(source.spec, target.spec, module, strategy="pad")
    given = logits(target, apply_port(plan, module), texts[:40]) / GAIN.get(twins[1], 1.0)
    assert distance(given, logits(source, module, texts[:40])) > 0.1


def test_compacter_in_a_rotated_basis_keeps_what_its_form_can_hold(hosts, seen, texts):
    source, target = hosts("t5"), hosts("t5-rotated")
    module = some_module(source, "compacter")
    plan = plan_port(source.spec, target.spec, module, strategy="ridge")
    ported = apply_port(plan, module, hosts=seen("t5", "t5-rotated"))
    errors = ported.notes["ported"]["kronecker_error"]
    assert set(errors) == {move.target for move in plan.moves}
    for site in errors.values():
        assert 0 < site["down"] < 1 and 0 < site["up"] < 1


def test_padding_takes_no_part(hosts, texts):
    """Moments do not depend on what else is in the batch, so padding cannot be in them."""
    source, target = hosts("bert"), hosts("bert-wide")
    pair = Pair(Space("stream", "encoder.0.ff.out"), Space("stream", "encoder.1.ff.out"))
    alone = Correspondence(source, target, texts[:30], batch_size=1).paired(pair)
    together = Correspondence(source, target, texts[:30], batch_size=30).paired(pair)
    assert alone.train.n == together.train.n and alone.held.n == together.held.n
    total = alone.moments.n
    lengths = encode(source.tokenizer, texts[:30], Task()).lengths
    assert total == sum(lengths)
    torch.testing.assert_close(alone.moments.xy, together.moments.xy, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(alone.moments.xx, together.moments.xx, rtol=1e-4, atol=1e-3)


def test_one_correspondence_serves_all_methods(hosts, texts, monkeypatch):
    """Maps of a second module of the same kind need no further pass, and nothing changes."""
    source, target = hosts("bert"), hosts("bert-wide")
    shared = Correspondence(source, target, texts[:60])
    passes = []
    monkeypatch.setattr(
        "peftport.porting.spaces.run_plain", lambda h, b: (passes.append(h.ref), run_plain(h, b))
    )
    for seed in (0, 1):
        module = some_module(source, "lora", seed)
        plan = plan_port(source.spec, target.spec, module, strategy="ridge")
        before = len(passes)
        ported = apply_port(plan, module, hosts=shared)
        assert len(passes) - before == (4 if seed == 0 else 0)  # two batches on two hosts
        own = apply_port(plan, module, source=source, target=target, texts=texts[:60])
        assert own.digest == ported.digest


def test_hosts_are_left_as_they_were(hosts, texts):
    source, target = hosts("t5"), hosts("t5-twin")
    module = some_module(source, "bottleneck")
    before = [logits(h, None, texts[:10]) for h in (source, target)]
    plan = plan_port(source.spec, target.spec, module, strategy="ridge")
    apply_port(plan, module, source=source, target=target, texts=texts[:40])
    for host, was in zip((source, target), before, strict=True):
        np.testing.assert_array_equal(logits(host, None, texts[:10]), was)
        for part in host.model.modules():
            assert not part._forward_hooks and not part._forward_pre_hooks
