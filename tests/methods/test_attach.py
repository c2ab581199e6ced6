"""Attaching a module: what it computes, what it refuses, and that detaching leaves no trace."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from peftport.errors import HostMismatch, InputError
from peftport.hosts.load import Host, load_host
from peftport.methods.attach import attach, frozen, trainable
from peftport.methods.base import Module, check_config, config_from_json, method_of, methods
from peftport.methods.compacter import kronecker_sum
from peftport.methods.lora import LoraConfig
from peftport.methods.prefix import PrefixConfig
from peftport.testing.pico import pico_bert, pico_t5

METHODS = {
    "lora": {"r": 4, "roles": ["q", "v", "down"]},
    "prefix": {"length": 3},
    "bottleneck": {"reduction": 4},
    "compacter": {"reduction": 4},
}


@pytest.fixture(scope="module", params=["bert", "t5"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    folder = tmp_path_factory.mktemp(request.param)
    make = pico_bert if request.param == "bert" else pico_t5
    return load_host(str(make(folder)), verbalisers=("negative", "positive"))


def noisy(host: Host, method: str, **options: object) -> Module:
    config = config_from_json({"method": method, **METHODS[method], **options})
    generator = torch.Generator().manual_seed(5)
    state = method_of(config).init(host.spec, config, generator)
    for tensors in state.values():
        for name, tensor in tensors.items():
            tensors[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
    head = {
        name: torch.randn(p.shape, generator=generator)
        for name, p in host.family.head_parameters(host.model).items()
    }
    return Module(config, state, head, host.spec.fingerprint, host.ref)


def batch(host: Host, texts: tuple[str, ...] = ("the film is good", "a dull plot")) -> dict:
    encoded = host.tokenizer(list(texts), padding=True, return_tensors="pt")
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def scores(host: Host, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return host.family.scores(host.model, inputs, host.words)


@pytest.mark.parametrize("method", METHODS)
def test_attach_changes_the_host_and_detach_restores_it_exactly(host: Host, method: str) -> None:
    inputs = batch(host)
    before = scores(host, inputs)
    weights = {name: p.clone() for name, p in host.model.named_parameters()}
    with attach(host.model, noisy(host, method), spec=host.spec):
        assert not torch.allclose(scores(host, inputs), before, atol=1e-3)
    assert torch.equal(scores(host, inputs), before)
    after = dict(host.model.named_parameters())
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)


@pytest.mark.parametrize("method", METHODS)
def test_padding_does_not_reach_a_text(host: Host, method: str) -> None:
    both, alone = (
        batch(host, ("a dull plot", "the film is good and very fine")),
        batch(host, ("a dull plot",)),
    )
    with attach(host.model, noisy(host, method), spec=host.spec):
        assert torch.allclose(scores(host, both)[:1], scores(host, alone), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_gets_a_gradient(host: Host, method: str) -> None:
    live = trainable(noisy(host, method))
    with attach(host.model, live, spec=host.spec):
        loss = host.family.loss(host.model, batch(host), torch.tensor([1, 0]), host.words)
    loss.backward()
    silent = [name for name, t in live.tensors() if t.grad is None or not t.grad.abs().sum() > 0]
    # a label of one decoder token leaves nothing to choose between for self-attention's query
    assert [name for name in silent if not name.startswith("decoder.")] == []
    assert all(p.grad is None for p in host.model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("method", METHODS)
def test_a_module_of_another_host_is_refused(host: Host, method: str) -> None:
    other = replace(noisy(host, method), fingerprint="0" * 64, host="elsewhere")
    with pytest.raises(
        HostMismatch, match=r"belongs to host 'elsewhere'.*peftport port ADAPTER --target"
    ):
        attach(host.model, other)
    attach(host.model, other, check=False).detach()


def test_the_fingerprint_of_a_live_model_is_that_of_its_folder(host: Host) -> None:
    module = noisy(host, "lora")
    attach(host.model, module).detach()
    name, weight = next(iter(host.model.named_parameters()))
    weight.data[0, 0] += 1
    try:
        with pytest.raises(HostMismatch):
            attach(host.model, module)
    finally:
        weight.data[0, 0] -= 1
    assert name


def test_wrong_shapes_and_missing_sites_are_named(host: Host) -> None:
    module = noisy(host, "lora")
    site = next(iter(module.state))
    short = {**module.state, site: {**module.state[site], "A": torch.zeros(4, 7)}}
    with pytest.raises(InputError, match=rf"site '{site}': 'A' has shape \(4, 7\)"):
        attach(host.model, replace(module, state=short))
    lacking = {s: t for s, t in module.state.items() if s != site}
    with pytest.raises(InputError, match=f"lacks site '{site}'"):
        attach(host.model, replace(module, state=lacking))


def test_a_failed_attach_leaves_no_hooks(host: Host) -> None:
    inputs = batch(host)
    before = scores(host, inputs)
    module = noisy(host, "bottleneck")
    *_, last = module.state
    broken = {s: t for s, t in module.state.items() if s != last}
    config = replace(module.config)
    with pytest.raises(InputError, match=f"lacks site '{last}'"):
        attach(host.model, replace(module, config=config, state=broken), spec=host.spec)
    assert torch.equal(scores(host, inputs), before)


def test_one_module_at_a_time(host: Host) -> None:
    module = noisy(host, "lora")
    inputs = batch(host)
    with attach(host.model, module, spec=host.spec):
        once = scores(host, inputs)
        with pytest.raises(InputError, match="attached to this model already"):
            attach(host.model, module, spec=host.spec)
        assert torch.equal(scores(host, inputs), once)
    with attach(host.model, module, spec=host.spec):
        assert torch.equal(scores(host, inputs), once)


def test_a_reparameterised_prefix_equals_its_direct_form(host: Host) -> None:
    module = noisy(host, "prefix", hidden=6)
    config, state = method_of(module.config).finish(host.spec, module.config, module.state)
    assert config == replace(module.config, hidden=None)
    direct = replace(module, config=config, state=state)
    inputs = batch(host)
    with attach(host.model, module, spec=host.spec):
        through_network = scores(host, inputs)
    with attach(host.model, direct, spec=host.spec):
        assert torch.allclose(scores(host, inputs), through_network, atol=1e-6)


def test_prefix_positions_matter(host: Host) -> None:
    inputs = batch(host)
    seen = []
    for positions in ("none", "past"):
        with attach(host.model, noisy(host, "prefix", positions=positions), spec=host.spec):
            seen.append(scores(host, inputs))
    assert not torch.allclose(seen[0], seen[1], atol=1e-4)


def test_eager_and_sdpa_attention_agree_under_a_prefix(tmp_path) -> None:
    folder = str(pico_t5(tmp_path))
    host = load_host(folder, verbalisers=("negative", "positive"))
    module = noisy(host, "prefix", positions="past")
    results = []
    for kind in ("sdpa", "eager"):
        host.model.set_attn_implementation(kind)
        with attach(host.model, module, spec=host.spec):
            results.append(scores(host, batch(host)))
    assert torch.allclose(results[0], results[1], atol=1e-5)


def test_label_words_of_several_tokens_are_causal(tmp_path) -> None:
    """The first word's logits must not change with what follows it in the decoder."""
    host = load_host(str(pico_t5(tmp_path)), verbalisers=("negative", "positive fun"))
    inputs = {k: v[:1] for k, v in batch(host).items()}
    with attach(host.model, noisy(host, "prefix"), spec=host.spec), torch.no_grad():
        one = host.model(**inputs, decoder_input_ids=torch.tensor([[0]])).logits[:, 0]
        two = host.model(**inputs, decoder_input_ids=torch.tensor([[0, 5]])).logits[:, 0]
    assert torch.allclose(one, two, atol=1e-5)


def test_kronecker_sum_is_the_sum_of_kronecker_products() -> None:
    generator = torch.Generator().manual_seed(0)
    rule, left, right = (
        torch.randn(*shape, generator=generator) for shape in ((3, 3, 3), (3, 4, 1), (3, 1, 2))
    )
    expected = sum(torch.kron(rule[i], left[i] @ right[i]) for i in range(3))
    assert torch.allclose(kronecker_sum(rule, left, right), expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_fresh_modules_start_small(host: Host, method: str) -> None:
    """lora starts as the identity; the others near it."""
    config = config_from_json({"method": method, **METHODS[method]})
    state = method_of(config).init(host.spec, config, torch.Generator().manual_seed(0))
    inputs = batch(host)
    head = {n: torch.ones(p.shape) for n, p in host.family.head_parameters(host.model).items()}
    empty = Module(config_from_json({"method": "lora"}), {}, {}, "")
    assert not empty.state
    module = Module(config, state, head, host.spec.fingerprint)
    if method == "lora":
        with attach(host.model, module, spec=host.spec):
            changed = scores(host, inputs)
        zeroed = {s: {n: torch.zeros_like(t) for n, t in ts.items()} for s, ts in state.items()}
        with attach(host.model, replace(module, state=zeroed), spec=host.spec):
            assert torch.equal(scores(host, inputs), changed)
    assert module.size == sum(t.numel() for _, t in module.tensors())


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"method": "lora", "r": 0}, "lora.r must be >= 1, got 0"),
        ({"method": "prefix", "length": 0}, "prefix.length must be >= 1, got 0"),
        ({"method": "bottleneck", "activation": "sin"}, "bottleneck.activation must be one of"),
        ({"method": "compacter", "n": 0}, "compacter.n must be >= 1"),
        ({"method": "lora", "rank": 4}, "unknown key 'lora.rank'; known: r, alpha"),
        ({"method": "lorra"}, "unknown method 'lorra'; did you mean 'lora'"),
        ({"r": 4}, "needs the key 'method'"),
        ({"method": "lora", "r": True}, "lora.r must be a whole number below 2.31, got True"),
        ({"method": "lora", "r": 2**31}, "lora.r must be a whole number below 2.31, got 21474836"),
        ({"method": "lora", "r": 8.0}, "lora.r must be a whole number"),
        ({"method": "lora", "alpha": "1"}, "lora.alpha must be a finite number, got '1'"),
        ({"method": "lora", "alpha": math.inf}, "lora.alpha must be a finite number, got inf"),
        ({"method": "lora", "alpha": math.nan}, "lora.alpha must be a finite number, got nan"),
        ({"method": "lora", "roles": "qv"}, r"lora.roles must be a list of words, as \[a, b\]"),
        ({"method": "lora", "roles": [1]}, "lora.roles must be a list of words"),
        ({"method": "lora", "roles": 3}, "lora.roles must be a list of words"),
        ({"method": "lora", "roles": []}, "lora.roles must be some of"),
        ({"method": "lora", "blocks": ["attn"]}, "lora.blocks must be some of .*'self_attn'"),
        ({"method": "prefix", "stacks": ["x"]}, "prefix.stacks must be some of"),
        ({"method": "prefix", "blocks": ["ff"]}, "prefix.blocks must be some of"),
        ({"method": "prefix", "hidden": "8"}, "prefix.hidden must be a whole number or null"),
        ({"method": "prefix", "positions": None}, "prefix.positions must be a word, got None"),
        ({"method": "bottleneck", "norm_first": 1}, "bottleneck.norm_first must be true or false"),
        ({"method": "bottleneck", "reduction": []}, "bottleneck.reduction must be a finite"),
    ],
)
def test_configs_refuse_nonsense(facts: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_from_json(facts)


def test_a_module_must_act_somewhere_and_not_outgrow_its_host(host: Host) -> None:
    for name, given in METHODS.items():
        check_config(host.spec, config_from_json({"method": name, **given}))
    with pytest.raises(InputError, match=r"lora \(r 8, .*\['up'\].* has no site on a '\w+' host"):
        check_config(host.spec, LoraConfig(blocks=("cross_attn",), roles=("up",)))
    with pytest.raises(InputError, match=r"would train [\d,]+ parameters .* smaller size"):
        check_config(host.spec, LoraConfig(r=2**31 - 1))


def test_compacter_needs_divisible_widths(host: Host) -> None:
    config = config_from_json({"method": "compacter", "reduction": 5})
    with pytest.raises(InputError, match=r"n = 4 must divide d_model = 32"):
        method_of(config).sites(host.spec, config)


def test_configs_survive_json(host: Host) -> None:
    for _, cls in methods:
        config = cls().default_config(host.spec)
        assert config_from_json(config.to_json()) == config
    assert PrefixConfig.from_json({"method": "prefix", "blocks": ["self_attn"]}).blocks == (
        "self_attn",
    )


def test_digest_follows_values_and_nothing_else(host: Host) -> None:
    module = noisy(host, "lora")
    assert module.digest == frozen(trainable(module)).digest
    site = next(iter(module.state))
    moved = {**module.state, site: {**module.state[site], "A": module.state[site]["A"] + 1e-6}}
    assert module.digest != replace(module, state=moved).digest
