"""The plan: layer maps, shapes, the table, and every way in which it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftport.errors import HostMismatch, InputError, UnknownName
from peftport.hosts.families.base import families
from peftport.methods.base import Module, method_of
from peftport.methods.bottleneck import BottleneckConfig
from peftport.methods.compacter import CompacterConfig
from peftport.methods.lora import LoraConfig
from peftport.methods.prefix import PrefixConfig
from peftport.porting import apply_port, plan_port
from peftport.porting.plan import depth_map
from peftport.testing.contracts_strategy import some_module


def bert(d=32, layers=2, heads=4, fingerprint="f" * 64, tokenizer="tok"):
    from transformers import BertConfig

    config = BertConfig(
        hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=2 * d
    )
    spec = families.get("bert")().describe(config)
    return replace(spec, fingerprint=fingerprint, tokenizer=tokenizer)


def t5(d=32, layers=2):
    from transformers import T5Config

    config = T5Config(d_model=d, d_kv=12, num_heads=4, num_layers=layers, d_ff=64)
    return replace(families.get("t5")().describe(config), fingerprint="5" * 64, tokenizer="tok")


def module(spec, config, head=True):
    state = method_of(config).init(spec, config, torch.Generator().manual_seed(0))
    tensors = {}
    if head:
        tensors = {
            "classifier.weight": torch.ones(2, spec.d_model),
            "classifier.bias": torch.zeros(2),
        }
    return Module(config, state, tensors, spec.fingerprint, "somehost")


LORA, SOURCE = LoraConfig(r=3, alpha=6), bert()
TARGET = bert(48, 3, fingerprint="a" * 64)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (6, 6, (0, 1, 2, 3, 4, 5)),
        (6, 3, (0, 2, 4)),
        (3, 6, (0, 0, 1, 1, 2, 2)),
        (12, 6, (0, 2, 4, 6, 8, 10)),
        (1, 4, (0, 0, 0, 0)),
        (5, 1, (2,)),
        (6, 1, (2,)),
        (3, 2, (0, 2)),
        (2, 3, (0, 0, 1)),
        (12, 24, tuple(i // 2 for i in range(24))),
    ],
)
def test_layers_by_relative_depth(source, target, expected):
    assert depth_map(source, target) == expected


@given(st.integers(1, 80), st.integers(1, 80))
def test_no_source_layer_is_nearer_than_the_chosen_one(source, target):
    chosen = depth_map(source, target)
    assert len(chosen) == target and list(chosen) == sorted(chosen)
    for j, i in enumerate(chosen):
        # twice the middles, over a common denominator
        gaps = [abs((2 * k + 1) * target - (2 * j + 1) * source) for k in range(source)]
        assert i == gaps.index(min(gaps))


def test_plan_knows_shapes_layers_and_numbers():
    plan = plan_port(SOURCE, TARGET, module(SOURCE, LORA), strategy="pad")
    assert plan.layer_map == {"encoder": (0, 0, 1)} and plan.unused == {"encoder": []}
    assert [m.target for m in plan.moves][:2] == ["encoder.0.self_attn.q", "encoder.0.self_attn.v"]
    last = plan.moves[-1]
    assert (last.target, last.source) == ("encoder.2.self_attn.v", "encoder.1.self_attn.v")
    assert last.before == {"A": (3, 32), "B": (32, 3)}
    assert last.after == {"A": (3, 48), "B": (48, 3)}
    assert plan.head == "padded" and plan.head_after["classifier.weight"] == (2, 48)
    assert plan.parameters_before == 4 * 6 * 32 + 66
    assert plan.parameters_after == 6 * 6 * 48 + 98
    told = plan.to_json()
    assert told == json.loads(json.dumps(told))
    assert told["sites"][0]["after"] == {"A": [3, 48], "B": [48, 3]}


def test_table_reads_like_this():
    plan = plan_port(bert(32, 4), TARGET, module(bert(32, 4), LORA), strategy="pad")
    assert plan.table().splitlines() == [
        "method      lora",
        "strategy    pad (unlabelled texts needed: no)",
        "source      bert, 4 encoder layers, d_model 32, 4 heads x 8 (fingerprint ffffffffffff)",
        "target      bert, 3 encoder layers, d_model 48, 4 heads x 12 (fingerprint aaaaaaaaaaaa)",
        "layers      by depth: encoder 0<-0, 1<-1, 2<-3 (unused: 2)",
        "norm match  off",
        "parameters  1,602 -> 1,826",
        "",
        "target site            source site            tensors",
        "encoder.0.self_attn.q  encoder.0.self_attn.q  A 3x32 -> 3x48, B 32x3 -> 48x3",
        "encoder.0.self_attn.v  encoder.0.self_attn.v  A 3x32 -> 3x48, B 32x3 -> 48x3",
        "encoder.1.self_attn.q  encoder.1.self_attn.q  A 3x32 -> 3x48, B 32x3 -> 48x3",
        "encoder.1.self_attn.v  encoder.1.self_attn.v  A 3x32 -> 3x48, B 32x3 -> 48x3",
        "encoder.2.self_attn.q  encoder.3.self_attn.q  A 3x32 -> 3x48, B 32x3 -> 48x3",
        "encoder.2.self_attn.v  encoder.3.self_attn.v  A 3x32 -> 3x48, B 32x3 -> 48x3",
        "head                   head (padded)          "
        "classifier.weight 2x32 -> 2x48, classifier.bias 2",
    ]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(2, 60), st.floats(1, 64))
def test_bottleneck_keeps_its_width_on_any_target(source, target, reduction):
    ours, theirs = bert(4 * source, 1), bert(4 * target, 1)
    config = BottleneckConfig(reduction=reduction)
    plan = plan_port(ours, theirs, module(ours, config), strategy="pad")
    width = config.width(ours.d_model)
    assert plan.target_config.width(theirs.d_model) == width
    assert plan.moves[0].after["down"] == (width, theirs.d_model)


def test_compacter_shares_its_rule():
    config = CompacterConfig(reduction=8, n=4)
    plan = plan_port(SOURCE, TARGET, module(SOURCE, config), strategy="pad")
    assert plan.shared == {"shared": {"rule": (4, 4, 4)}}
    assert plan.moves[0].after["down_right"] == (4, 1, 1)
    assert "shared" in plan.table() and "reduction 8 -> 12" in plan.table()


def test_reparameterised_prefix_is_planned_as_the_pairs_that_it_makes():
    config = PrefixConfig(length=3, hidden=5)
    plan = plan_port(SOURCE, TARGET, module(SOURCE, config), strategy="pad")
    assert plan.config.hidden is None
    assert plan.moves[0].before == {"key": (3, 32), "value": (3, 32)}
    assert plan.moves[0].after == {"key": (3, 48), "value": (3, 48)}
    ported = apply_port(plan, module(SOURCE, config))
    assert ported.config.hidden is None and ported.state["encoder.2.self_attn.kv"]["key"].any()


MIXED_HEAD = {"classifier.weight": torch.ones(2, 32), "dense.weight": torch.ones(32, 7)}


def without_layer_1(m):
    return replace(m, state={s: t for s, t in m.state.items() if ".1." not in s})


#: source, target, module, options, error, what the message says
REFUSALS = {
    "unknown strategy": (
        SOURCE, TARGET, module(SOURCE, LORA), {"strategy": "rigde"}, UnknownName,
        r"unknown strategy 'rigde'; did you mean 'ridge'\? known: .*copy, .*pad, .*ridge",
    ),
    "unknown layer rule": (
        SOURCE, TARGET, module(SOURCE, LORA), {"layers": "dept"}, UnknownName,
        r"unknown layer rule 'dept'; did you mean 'depth'\?",
    ),
    "another source host": (
        bert(fingerprint="b" * 64), TARGET, module(SOURCE, LORA), {}, HostMismatch,
        r"belongs to host ffffffffffff \('somehost'\).*bbbbbbbbbbbb.*--source",
    ),
    "another family": (
        SOURCE, t5(), module(SOURCE, LORA), {}, InputError,
        r"sites do not correspond: a module of 'bert' \(encoder\) cannot go to 't5' \(encoder, "
        r"decoder\); choose a target of family 'bert'",
    ),
    "another family, back": (
        t5(), SOURCE, module(t5(), LORA, head=False), {}, InputError, "sites do not correspond",
    ),
    "another way of deciding": (
        replace(t5(), layers={"encoder": 2}), SOURCE, module(t5(), LORA, head=False), {},
        InputError, "'t5' decides by word and 'bert' by class",
    ),
    "no site on the target": (
        SOURCE, replace(TARGET, sites=()), module(SOURCE, LORA), {}, InputError,
        r"lora .* has no site on the target host \('bert', layers \{'encoder': 3\}\); choose a "
        r"target that has self_attn.q, self_attn.v",
    ),
    "copy across widths": (
        SOURCE, TARGET, module(SOURCE, LORA), {"strategy": "copy"}, InputError,
        r"'copy' needs hosts of equal widths.*d_model 32 -> 48, d_kv 8 -> 12; use --strategy ridge",
    ),
    "copy across head counts": (
        SOURCE, bert(32, 2, 8), module(SOURCE, LORA), {"strategy": "copy"}, InputError,
        r"heads 4 -> 8, d_kv 8 -> 4",
    ),
    "ridge without texts": (
        SOURCE, TARGET, module(SOURCE, LORA), {"strategy": "ridge", "have_texts": False},
        InputError,
        r"'ridge' fits its maps on unlabelled texts, got none; .*--texts, or use --strategy pad",
    ),
    "norm match without texts": (
        SOURCE, TARGET, module(SOURCE, LORA), {"norm_match": True, "have_texts": False},
        InputError, r"norm match measures on unlabelled texts, got none; .*or leave norm match out",
    ),
    "cka without its map": (
        SOURCE, TARGET, module(SOURCE, LORA), {"layers": "cka"}, InputError,
        r"'cka' compares the layers of both loaded hosts .*layer_map=cka_layers.*--layers depth",
    ),
    "a layer map that nobody asked for": (
        SOURCE, TARGET, module(SOURCE, LORA), {"layer_map": {"encoder": (0, 0, 1)}}, InputError,
        r"got a layer map with layer rule 'depth', expected none; use --layers cka",
    ),
    "a layer map of other hosts": (
        SOURCE, TARGET, module(SOURCE, LORA),
        {"layers": "cka", "layer_map": {"encoder": (0, 2, 1)}}, InputError,
        r"gives \[0, 2, 1\] for 3 encoder layers, expected as many numbers below 2",
    ),
    "a rank for another method": (
        SOURCE, TARGET, module(SOURCE, PrefixConfig(length=3)), {"rank": 4}, InputError,
        r"a rank is chosen for lora only, the module is prefix; leave --rank out",
    ),
    "no rank": (
        SOURCE, TARGET, module(SOURCE, LORA), {"rank": 0}, InputError,
        r"rank must be >= 1, got 0; leave --rank out to keep 3",
    ),
    "subspace for another method": (
        SOURCE, TARGET, module(SOURCE, PrefixConfig(length=3)), {"strategy": "subspace"},
        InputError, r"'subspace' carries lora only, the module is prefix; use --strategy ridge",
    ),
    "an unknown option": (
        SOURCE, TARGET, module(SOURCE, LORA), {"options": {"directions": 4}}, UnknownName,
        r"unknown option of strategy 'pad' 'directions'; known: none",
    ),
    "a count that is none": (
        SOURCE, TARGET, module(SOURCE, LORA),
        {"strategy": "distil", "options": {"steps": 0}}, InputError,
        r"option 'steps' of strategy 'distil' must be a whole number >= 1, got 0",
    ),
    "a rate that is none": (
        SOURCE, TARGET, module(SOURCE, LORA),
        {"strategy": "distil", "options": {"rate": "fast"}}, InputError,
        r"option 'rate' of strategy 'distil' must be a number >= 0, got 'fast'",
    ),
    "a rate below zero": (
        SOURCE, TARGET, module(SOURCE, LORA),
        {"strategy": "distil", "options": {"rate": -1}}, InputError,
        r"option 'rate' of strategy 'distil' must be a number >= 0, got -1",
    ),
    "a rate without end": (
        SOURCE, TARGET, module(SOURCE, LORA),
        {"strategy": "distil", "options": {"rate": float("inf")}}, InputError,
        r"option 'rate' of strategy 'distil' must be a number >= 0, got inf",
    ),
    "an unknown start": (
        SOURCE, TARGET, module(SOURCE, LORA),
        {"strategy": "distil", "options": {"start": ["ridge"]}}, InputError,
        r"option 'start' of strategy 'distil' must be one of nearest, effect, silent, copy, got "
        r"\['ridge'\]",
    ),
    "a copy as the start between unlike widths": (
        SOURCE, TARGET, module(SOURCE, LORA),
        {"strategy": "distil", "options": {"start": "copy"}, "have_texts": True}, InputError,
        r"'distil' cannot start from a copy between hosts of unlike widths \(d_model 32 -> \d+.*"
        r"\); use --set start=effect",
    ),
    "compacter whose n does not divide": (
        SOURCE, bert(36, 2, fingerprint="a" * 64),
        module(SOURCE, CompacterConfig(reduction=4, n=8)), {}, InputError,
        r"compacter.n = 8 does not divide the target's d_model = 36; choose a target",
    ),
    "a head that is not one linear layer": (
        SOURCE, TARGET, replace(module(SOURCE, LORA), head=MIXED_HEAD), {}, InputError,
        r"head tensor 'dense.weight' of shape \(32, 7\) is not part of one linear layer over "
        r"d_model = 32",
    ),
    "a module that lacks a layer": (
        SOURCE, TARGET, without_layer_1(module(SOURCE, LORA)), {}, InputError,
        r"'encoder.2.self_attn.q' corresponds to source site 'encoder.1.self_attn.q', where the "
        r"module has no parameters; its sites: encoder.0.self_attn.q, encoder.0.self_attn.v",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_before_any_compute(case, monkeypatch):
    source, target, given_module, options, error, message = REFUSALS[case]
    monkeypatch.setattr("peftport.porting.spaces.run_plain", lambda *_: pytest.fail("computed"))
    with pytest.raises(error, match=message) as caught:
        plan_port(source, target, given_module, **{"strategy": "pad", **options})
    assert type(caught.value) is error
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_apply_refuses_what_the_plan_is_not_for(hosts, texts):
    source, target = hosts("bert"), hosts("bert-wide")
    own = some_module(source, "lora")
    plan = plan_port(source.spec, target.spec, own, strategy="ridge")
    with pytest.raises(InputError, match="'ridge' fits its maps on unlabelled texts"):
        apply_port(plan, own, source=source, target=None, texts=texts)
    with pytest.raises(InputError, match="at least 16 unlabelled texts, got 3"):
        apply_port(plan, own, source=source, target=target, texts=texts[:3])
    with pytest.raises(HostMismatch, match="the plan's target host is"):
        apply_port(plan, own, source=source, target=source, texts=texts)
    with pytest.raises(HostMismatch, match="the plan's source host is"):
        apply_port(
            plan, replace(own, fingerprint="0" * 64), source=source, target=target, texts=texts
        )
    with pytest.raises(InputError, match="make a plan for it"):
        apply_port(plan, some_module(source, "prefix"), source=source, target=target, texts=texts)


def test_copy_drops_and_repeats_layers_without_touching_a_number(hosts):
    source, target = hosts("bert-deep"), hosts("bert")
    deep = some_module(source, "bottleneck")
    plan = plan_port(source.spec, target.spec, deep, strategy="copy")
    assert plan.layer_map == {"encoder": (0, 2)} and plan.unused == {"encoder": [1, 3]}
    ported = apply_port(plan, deep, target=target)
    for j, i in enumerate((0, 2)):
        for block in ("self_attn", "ff"):
            ours, theirs = (
                deep.state[f"encoder.{i}.{block}.out"],
                ported.state[f"encoder.{j}.{block}.out"],
            )
            for name in ours:
                assert torch.equal(ours[name], theirs[name])
                assert ours[name].data_ptr() != theirs[name].data_ptr()
    assert torch.equal(deep.head["classifier.weight"], ported.head["classifier.weight"])
    assert ported.host == target.ref


def test_a_module_that_does_not_say_its_host_is_taken_at_its_word():
    unsaid = replace(module(SOURCE, LORA), fingerprint="")
    plan = plan_port(SOURCE, TARGET, unsaid, strategy="pad")
    assert apply_port(plan, unsaid).fingerprint == TARGET.fingerprint
