"""Fast equals slow: a bank's trainings are the reference trainer's, on every method and family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from peftport.data.tasks import Encoded, Task, encode
from peftport.errors import InputError, RunError
from peftport.hosts.fingerprint import model_fingerprint
from peftport.hosts.load import Host, load_host
from peftport.methods.attach import attach, trainable
from peftport.methods.bank import Bank
from peftport.methods.base import Module, config_from_json, method_of
from peftport.testing.pico import pico_bert, pico_reviews, pico_t5
from peftport.train.evaluate import bank_scores, class_scores
from peftport.train.fused import (
    BankTraining,
    Slot,
    StateError,
    program_of,
    train_bank,
    trains_in_banks,
)
from peftport.train.reference import TrainSpec, fresh_module, train

WORDS = ("negative", "positive")
FAMILIES = ("bert", "t5")
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "r": 3},
    "lora everywhere": {
        "method": "lora", "r": 2, "roles": ["q", "k", "v", "o", "up", "gate", "down"],
    },
    "prefix": {"method": "prefix", "length": 3},
    "prefix of the past": {"method": "prefix", "length": 3, "positions": "past"},
    "prefix shifted": {"method": "prefix", "length": 3, "positions": "shifted"},
    "prefix by a network": {"method": "prefix", "length": 3, "hidden": 8},
    "bottleneck": {"method": "bottleneck", "reduction": 8},
    "bottleneck, norm first": {"method": "bottleneck", "reduction": 8, "norm_first": True,
                               "blocks": ["ff"]},
    "bottleneck across": {"method": "bottleneck", "blocks": ["cross_attn", "ff"]},
    "compacter": {"method": "compacter", "reduction": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hosts")
    made = {"bert": pico_bert(folder / "bert"), "t5": pico_t5(folder / "t5")}
    return {name: str(path) for name, path in made.items()}


def load(folders: dict[str, str], family: str, dtype: torch.dtype, head: str = "pooler") -> Host:
    words = WORDS if family == "t5" else None
    return load_host(folders[family], dtype=dtype, head=head, verbalisers=words)


@pytest.fixture(scope="module")
def hosts(folders: dict[str, str]) -> dict[str, Host]:
    return {name: load(folders, name, torch.float64) for name in FAMILIES}


def data(host: Host, count: int = 48, seed: int = 3) -> tuple[Encoded, np.ndarray]:
    rows = pico_reviews(count, seed)
    texts = [text for text, _ in rows]
    return encode(host.tokenizer, texts, Task()), np.array([c for _, c in rows])


def slots(host: Host, name: str, specs: Sequence[TrainSpec]) -> list[Slot]:
    """Every slot has its own module and its own texts."""
    config = config_from_json(CONFIGS[name])
    return [
        Slot(fresh_module(host, config, k), *data(host, 40 + 8 * k, seed=3 + k), spec)
        for k, spec in enumerate(specs)
    ]


#: rates at which a trajectory does not amplify rounding: at 1e-2 a lora on the random T5 carries a
#: difference of 1e-15 after one step to 1e-1 after 100
SPECS = (
    TrainSpec(100, lr=2e-3, head_lr=1e-2, batch_size=4, seed=1),
    TrainSpec(100, lr=3e-3, batch_size=4, seed=2, clip=0.1),
    TrainSpec(100, lr=1e-3, batch_size=4, seed=1, clip=10.0),
)
#: the methods as they are by default; their variants are followed for fewer steps
PLAIN = ("lora", "prefix", "bottleneck", "compacter")


def last(found: Any) -> Any:
    return list(found)[-1][1]


def gap(a: Module, b: Module) -> float:
    assert [n for n, _ in a.tensors()] == [n for n, _ in b.tensors()]
    pairs = zip(a.tensors(), b.tensors(), strict=True)
    return max((x - y).abs().max().item() for (_, x), (_, y) in pairs)


def check(host: Host, bank: Sequence[Slot]) -> None:
    """Every slot equals its reference, in parameters and in scores."""
    made = last(train_bank(host, bank))
    encoded, _ = data(host, 20, seed=50)
    scores = bank_scores(host, made, encoded)
    moved = []
    for slot, module, own in zip(bank, made, scores, strict=True):
        expected = last(train(host, slot.module, slot.encoded, slot.labels, slot.spec))
        assert gap(module, expected) < 1e-8
        assert module.config == expected.config
        assert module.fingerprint == host.spec.fingerprint
        np.testing.assert_allclose(own, class_scores(host, expected, encoded), atol=1e-6)
        moved.append(np.abs(own - class_scores(host, None, encoded)).max())
    assert min(moved) > 1e-3  # training does something at all


#: on an encoder these are what they are without
ONLY_T5 = ("prefix shifted", "bottleneck across")
CASES = [(f, name) for f in FAMILIES for name in CONFIGS if f == "t5" or name not in ONLY_T5]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_hundred_steps_are_the_references(hosts: dict[str, Host], family: str, name: str) -> None:
    steps = 100 if name in PLAIN else 20
    check(hosts[family], slots(hosts[family], name, [replace(s, steps=steps) for s in SPECS]))


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_need_not_be_sorted(
    hosts: dict[str, Host], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def anyhow(lengths: Sequence[int], size: int, steps: int, seed: int) -> list[list[int]]:
        random = np.random.default_rng(seed)
        return [random.permutation(len(lengths))[:size].tolist() for _ in range(steps)]

    monkeypatch.setattr("peftport.train.fused.train_batches", anyhow)
    monkeypatch.setattr("peftport.train.reference.train_batches", anyhow)
    check(hosts[family], slots(hosts[family], "lora", [replace(s, steps=10) for s in SPECS]))


@pytest.mark.parametrize("name", ["lora", "prefix", "bottleneck"])
def test_the_mean_head_too(folders: dict[str, str], name: str) -> None:
    host = load(folders, "bert", torch.float64, head="mean")
    check(host, slots(host, name, [replace(spec, steps=20) for spec in SPECS]))


def test_a_probe_trains_heads_alone(hosts: dict[str, Host]) -> None:
    host = hosts["bert"]
    specs = [replace(spec, steps=20, only_head=True) for spec in SPECS]
    bank = slots(host, "lora", specs)
    check(host, bank)
    for slot, module in zip(bank, last(train_bank(host, bank)), strict=True):
        for site, tensors in module.state.items():
            for key, tensor in tensors.items():
                assert torch.equal(tensor.float(), slot.module.state[site][key])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lora everywhere", "prefix", "bottleneck", "compacter"])
def test_float32_gradients(folders: dict[str, str], family: str, name: str) -> None:
    """Loss and gradient of one step against autograd through the ordinary model."""
    host = load(folders, family, torch.float32)
    config = config_from_json(CONFIGS[name])
    # B = 0 would leave half of a fresh lora without gradient
    noise = torch.Generator().manual_seed(1)
    fresh = [fresh_module(host, config, k) for k in range(2)]
    modules = [_shaken(module, noise) for module in fresh]
    encoded, labels = data(host, 12)
    from peftport.hosts.packed.layout import pack

    packed = pack([encoded.ids, encoded.ids[::-1]])
    own = torch.as_tensor(np.concatenate([labels, labels[::-1]]))[packed.order]
    bank = Bank(host.spec, modules, dtype=host.dtype, grad=True)
    bank.refresh()
    losses = program_of(host).losses(packed, bank.layer, own)
    grads = torch.autograd.grad(losses.sum(), bank.leaves)
    for k, module in enumerate(modules):
        live = trainable(module)
        leaves = [t for _, t in live.tensors()]
        batch = encoded.batch(range(12), host.pad_id)
        with attach(host.model, live, spec=host.spec):
            loss = host.family.loss(host.model, batch, torch.as_tensor(labels), host.words)
            expected = torch.autograd.grad(loss, leaves)
        assert losses[k].item() == pytest.approx(loss.item(), rel=1e-5)
        ours = torch.cat([grad[k].flatten() for grad in grads])
        theirs = torch.cat([grad.flatten() for grad in expected])
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
        for own, other in zip(grads, expected, strict=True):  # where a tensor's own norm is tiny
            assert (own[k] - other).norm() <= 1e-4 * other.norm() + 1e-6


def _shaken(module: Module, noise: torch.Generator) -> Module:
    def shake(t: torch.Tensor) -> torch.Tensor:
        return t + 0.05 * torch.randn(t.shape, generator=noise)

    return replace(
        module,
        state={s: {n: shake(t) for n, t in ts.items()} for s, ts in module.state.items()},
        head={n: shake(t) for n, t in module.head.items()},
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slot_does_not_depend_on_its_neighbours(hosts: dict[str, Host], family: str) -> None:
    host = hosts[family]
    bank = slots(host, "bottleneck", [replace(spec, steps=20) for spec in SPECS])
    together = last(train_bank(host, bank))
    reversed_ = last(train_bank(host, bank[::-1]))[::-1]
    for k, slot in enumerate(bank):
        (alone,) = last(train_bank(host, [slot]))
        assert gap(alone, together[k]) < 1e-12
        assert gap(reversed_[k], together[k]) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lora", "prefix", "bottleneck", "compacter"])
def test_a_slot_that_diverges_touches_no_other(
    hosts: dict[str, Host], family: str, name: str
) -> None:
    host = hosts[family]
    bank = slots(host, name, [replace(spec, steps=8) for spec in SPECS])
    healthy = last(train_bank(host, bank))
    poison = replace(
        bank[1].module,
        state={
            site: {key: torch.full_like(t, torch.nan) for key, t in tensors.items()}
            for site, tensors in bank[1].module.state.items()
        },
    )
    bank[1] = replace(bank[1], module=poison)
    points = list(train_bank(host, bank, (0, 4, 8)))
    assert isinstance(points[0][1][1], Module)  # at 0 steps nothing was computed yet
    for _, found in points[1:]:
        assert isinstance(found[1], RunError)
        assert "diverged at step 1" in str(found[1])
    for k in (0, 2):
        assert gap(points[-1][1][k], healthy[k]) == 0.0


def test_a_slot_may_diverge_late(hosts: dict[str, Host]) -> None:
    host = hosts["bert"]
    specs = [replace(SPECS[0], steps=30), replace(SPECS[1], steps=30, lr=1e200, head_lr=1e-3)]
    bank = slots(host, "bottleneck", specs)
    healthy = last(train_bank(host, bank[:1]))[0]
    good, bad = last(train_bank(host, bank))
    assert isinstance(bad, RunError)
    assert gap(good, healthy) < 1e-12


def test_budgets_are_points_of_one_trajectory(hosts: dict[str, Host]) -> None:
    host = hosts["bert"]
    bank = slots(host, "lora", [replace(spec, steps=9) for spec in SPECS])
    points = dict(train_bank(host, bank, (0, 4, 9)))
    assert list(points) == [0, 4, 9]
    for k, slot in enumerate(bank):
        assert gap(points[0][k], slot.module) == 0.0
        short = replace(slot, spec=replace(slot.spec, steps=4))
        assert gap(points[4][k], last(train_bank(host, [short]))[0]) < 1e-12
        assert gap(points[9][k], points[4][k]) > 1e-6


@pytest.mark.parametrize("name", [*PLAIN, "prefix by a network"])
def test_a_bank_goes_on_from_its_state_bit_for_bit(folders: dict[str, str], name: str) -> None:
    host = load(folders, "bert", torch.float32)  # as studies are done
    specs = [replace(spec, steps=8) for spec in SPECS]
    bank = slots(host, name, [*specs, replace(specs[0], lr=1e30)])  # the last one diverges
    whole = BankTraining(host, bank, (0, 3, 8))
    points, states = {}, {}
    for budget, found in whole:
        points[budget], states[budget] = found, whole.state()
    assert [state.done for state in states.values()] == [0, 3, 8]
    for begin, left in ((0, (3, 8)), (3, (8,))):
        for budget, found in BankTraining(host, bank, left, states[begin]):
            for module, expected in zip(found, points[budget], strict=True):
                if isinstance(expected, Module):
                    assert module.digest == expected.digest
                else:
                    assert str(module) == str(expected)
    assert isinstance(points[8][3], RunError)
    assert gap(points[8][0], points[3][0]) > 1e-6


def test_a_bank_refuses_a_state_that_is_not_its_own(hosts: dict[str, Host]) -> None:
    host = hosts["bert"]
    bank = slots(host, "lora", [replace(spec, steps=4) for spec in SPECS])
    training = BankTraining(host, bank, (2, 4))
    next(iter(training))
    state = training.state()
    with pytest.raises(StateError, match="another bank's: its 'flat' is"):
        BankTraining(host, bank[:2], (4,), state)
    with pytest.raises(StateError, match=r"another bank's: its 'mean' is torch\.float32"):
        BankTraining(host, bank, (4,), replace(state, mean=state.mean.float()))
    with pytest.raises(StateError, match="after 2 steps nothing is left to be seen at 1"):
        BankTraining(host, bank, (1, 4), state)


def test_the_host_is_left_as_it_was(hosts: dict[str, Host]) -> None:
    for host in hosts.values():
        before = model_fingerprint(host.model, host.family.weight_prefix)
        for name in PLAIN:
            bank = slots(host, name, [replace(spec, steps=2) for spec in SPECS])
            starts = [slot.module.digest for slot in bank]
            bank_scores(host, last(train_bank(host, bank)), data(host, 8)[0])
            assert [slot.module.digest for slot in bank] == starts
        assert model_fingerprint(host.model, host.family.weight_prefix) == before
        for module in host.model.modules():
            assert not module._forward_hooks
            assert all(p.grad is None and not p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("copies", [1, 5])
def test_scores_of_a_bank_are_those_of_its_modules(folders: dict[str, str], copies: int) -> None:
    for family in FAMILIES:
        host = load(folders, family, torch.float32)
        encoded, _ = data(host, 90)
        for name in CONFIGS:
            noise = torch.Generator().manual_seed(2)
            config = config_from_json(CONFIGS[name])
            modules = [_shaken(fresh_module(host, config, k), noise) for k in range(copies)]
            if name == "prefix by a network":
                modules = [_direct(host, module) for module in modules]
            scores = bank_scores(host, modules, encoded)
            assert scores.shape == (copies, 90, 2)
            for own, module in zip(scores, modules, strict=True):
                np.testing.assert_allclose(own, class_scores(host, module, encoded), atol=2e-4)


def _direct(host: Host, module: Module) -> Module:
    config, state = method_of(module.config).finish(host.spec, module.config, module.state)
    return replace(module, config=config, state=state)


def test_what_does_not_fit_is_refused(hosts: dict[str, Host]) -> None:
    host = hosts["bert"]
    first, second, _ = slots(host, "lora", [replace(spec, steps=3) for spec in SPECS])
    other = slots(host, "prefix", SPECS[:1])[0]
    with pytest.raises(InputError, match="same steps, got 3 and 100"):
        last(train_bank(host, [first, replace(second, spec=SPECS[0])]))
    with pytest.raises(InputError, match="one config"):
        last(train_bank(host, [first, replace(other, spec=first.spec)]))
    with pytest.raises(InputError, match=r"budgets must lie in 0\.\.3"):
        last(train_bank(host, [first], (0, 4)))
    with pytest.raises(InputError, match="belongs to host"):
        strange = replace(first.module, fingerprint="0" * 64)
        last(train_bank(host, [replace(first, module=strange)]))


def test_who_trains_in_banks(hosts: dict[str, Host]) -> None:
    assert all(trains_in_banks(host) for host in hosts.values())
    assert trains_in_banks(hosts["bert"], config_from_json(CONFIGS["compacter"]))
