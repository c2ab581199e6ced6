"""What an accelerator runs, tested on the CPU: the padded layout, bfloat16 hosts, divergence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from peftport.data.tasks import Encoded, Task, encode
from peftport.errors import InputError, RunError
from peftport.hosts.load import Host, load_host
from peftport.hosts.packed.device import as_on_an_accelerator, use_deterministic, use_device
from peftport.hosts.packed.layout import pack
from peftport.methods.base import Module, config_from_json
from peftport.testing.pico import pico_bert, pico_reviews, pico_t5
from peftport.train.evaluate import bank_scores, class_scores
from peftport.train.fused import Slot, train_bank
from peftport.train.reference import TrainSpec, fresh_module, train

CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "r": 3},
    "lora everywhere": {
        "method": "lora",
        "r": 2,
        "roles": ["q", "k", "v", "o", "up", "gate", "down"],
    },
    "prefix": {"method": "prefix", "length": 3},
    "prefix of the past": {"method": "prefix", "length": 3, "positions": "past"},
    "bottleneck": {"method": "bottleneck", "reduction": 8},
    "compacter": {"method": "compacter", "reduction": 4},
}
FAMILIES = ("t5", "bert")
SPECS = (
    TrainSpec(8, lr=2e-3, head_lr=1e-2, batch_size=4, seed=1),
    TrainSpec(8, lr=3e-3, batch_size=4, seed=2, clip=0.1),
    TrainSpec(8, lr=1e-3, batch_size=4, seed=1, clip=10.0),
)
#: how far bfloat16 may be from float32 on pico hosts, as a share of how far training moved
#: (bfloat16 keeps 8 bits, a rounding of 0.4 %; steps on random weights amplify it)
BF16_SCORES = 0.1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hosts")
    made = {"bert": pico_bert(folder / "bert"), "t5": pico_t5(folder / "t5")}
    return {name: str(path) for name, path in made.items()}


def load(folder: str, family: str, dtype: torch.dtype) -> Host:
    words = ("negative", "positive") if family == "t5" else None
    return load_host(folder, dtype=dtype, verbalisers=words)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def together() -> Iterator[None]:
    with as_on_an_accelerator():
        yield


def data(host: Host, count: int, seed: int) -> tuple[Encoded, np.ndarray]:
    rows = pico_reviews(count, seed)
    return encode(host.tokenizer, [text for text, _ in rows], Task()), np.array(
        [c for _, c in rows]
    )


def slots(host: Host, name: str, specs: Sequence[TrainSpec] = SPECS) -> list[Slot]:
    config = config_from_json(CONFIGS[name])
    return [
        Slot(fresh_module(host, config, k), *data(host, 40 + 8 * k, 3 + k), spec)
        for k, spec in enumerate(specs)
    ]


def last(found: Any) -> Any:
    return list(found)[-1][1]


def gap(a: Module, b: Module) -> float:
    pairs = zip(a.tensors(), b.tensors(), strict=True)
    return max((x - y).abs().max().item() for (_, x), (_, y) in pairs)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("together")
def test_all_slots_at_once_are_the_references(
    folders: dict[str, str], family: str, name: str
) -> None:
    host = load(folders[family], family, torch.float64)
    bank = slots(host, name)
    made = last(train_bank(host, bank))
    encoded, _ = data(host, 20, seed=50)
    scores = bank_scores(host, made, encoded)
    for slot, module, own in zip(bank, made, scores, strict=True):
        expected = last(train(host, slot.module, slot.encoded, slot.labels, slot.spec))
        assert gap(module, expected) < (1e-6 if name == "lora everywhere" else 1e-8)
        assert gap(module, slot.module) > 1e-3
        np.testing.assert_allclose(own, class_scores(host, expected, encoded), atol=1e-6)


@pytest.mark.usefixtures("together")
def test_a_slot_that_diverges_touches_no_other(folders: dict[str, str], family: str) -> None:
    host = load(folders[family], family, torch.float64)
    bank = slots(host, "lora")
    alone = last(train_bank(host, [bank[0], bank[2]]))
    bad = bank[1].module
    for tensors in bad.state.values():
        tensors["A"][0, 0] = torch.nan
    made = last(train_bank(host, bank))
    assert isinstance(made[1], RunError)
    assert "diverged at step 1 (loss nan)" in str(made[1])
    assert max(gap(made[0], alone[0]), gap(made[2], alone[1])) < 1e-10


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_hosts_train_float32_modules(
    folders: dict[str, str], family: str, name: str, at_once: bool
) -> None:
    exact, narrow = (load(folders[family], family, d) for d in (torch.float32, torch.bfloat16))
    expected = last(train_bank(exact, slots(exact, name)))
    encoded, _ = data(exact, 40, seed=50)
    if at_once:
        with as_on_an_accelerator():
            made = last(train_bank(narrow, slots(narrow, name)))
            scores = bank_scores(narrow, made, encoded)
    else:
        made = last(train_bank(narrow, slots(narrow, name)))
        scores = bank_scores(narrow, made, encoded)
    starts = [s.module for s in slots(exact, name)]
    wanted, before = bank_scores(exact, expected, encoded), bank_scores(exact, starts, encoded)
    for module in made:
        assert all(tensor.dtype == torch.float32 for _, tensor in module.tensors())
    moved = np.abs(wanted - before).mean()
    assert np.abs(scores - wanted).mean() < BF16_SCORES * moved


@pytest.mark.usefixtures("together")
def test_the_same_numbers_twice(folders: dict[str, str], family: str) -> None:
    host = load(folders[family], family, torch.bfloat16)
    use_deterministic(host.device)
    try:
        one, two = (last(train_bank(host, slots(host, "prefix"))) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert [m.digest for m in one] == [m.digest for m in two]


def test_steps_smaller_than_bfloat16_are_not_lost(folders: dict[str, str]) -> None:
    host = load(folders["t5"], "t5", torch.bfloat16)
    bank = slots(host, "prefix", [TrainSpec(2, lr=1e-6, batch_size=4)])
    [module] = last(train_bank(host, bank))
    start = bank[0].module
    assert 1e-7 < gap(module, start) < 1e-5
    for (_, new), (_, old) in zip(module.tensors(), start.tensors(), strict=True):
        assert torch.equal(new.bfloat16(), old.bfloat16()) or (new - old).abs().max() < 1e-5


def test_the_reference_refuses_a_bfloat16_host(folders: dict[str, str]) -> None:
    host = load(folders["bert"], "bert", torch.bfloat16)
    slot = slots(host, "lora")[0]
    with pytest.raises(InputError, match="host in bfloat16 modules are trained in banks only"):
        last(train(host, slot.module, slot.encoded, slot.labels, slot.spec))


@pytest.mark.usefixtures("together")
def test_texts_are_padded_to_one_length() -> None:
    packed = pack([[[5, 6], [7]], [[8, 9, 10], [4] * 9]])
    assert packed.mask is not None
    ids, mask = packed.ids.view(4, 16), packed.mask.added
    assert [row[own == 0].tolist() for row, own in zip(ids, mask, strict=True)] == [
        [5, 6], [7], [8, 9, 10], [4] * 9,
    ]  # fmt: skip
    assert torch.isinf(mask).sum() == 4 * 16 - 15
    assert packed.tokens == ((0, 32), (32, 64))
    assert packed.texts == ((0, 2), (2, 4))
    assert packed.positions.view(4, 16)[3].tolist() == list(range(16))


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert use_device("cpu") == use_device("auto") == torch.device("cpu")
    with pytest.raises(
        InputError, match="device 'cuda' is not to be had here; use 'cpu' or 'auto'"
    ):
        use_device("cuda")
    with pytest.raises(InputError, match="unknown device 'gpu'; known: auto, cpu, cuda"):
        use_device("gpu")
