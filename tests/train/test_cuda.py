"""The CUDA path on a real device; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peftport.data.tasks import Encoded, Task, encode
from peftport.hosts.load import Host, load_host
from peftport.hosts.packed.device import free_bytes, use_deterministic, use_device
from peftport.methods.base import Module, config_from_json
from peftport.testing.pico import pico_bert, pico_reviews, pico_t5
from peftport.train.evaluate import bank_scores, class_scores
from peftport.train.fused import Slot, train_bank
from peftport.train.reference import TrainSpec, fresh_module, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "r": 3},
    "prefix": {"method": "prefix", "length": 3},
    "bottleneck": {"method": "bottleneck", "reduction": 8},
    "compacter": {"method": "compacter", "reduction": 4},
}
SPECS = tuple(TrainSpec(24, lr=2e-3, batch_size=4, seed=k) for k in range(3))
CASES = [(family, name) for family in ("t5", "bert") for name in CONFIGS]


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    found = use_device("cuda")
    use_deterministic(found)
    yield found
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hosts")
    return {"bert": pico_bert(folder / "bert"), "t5": pico_t5(folder / "t5")}


def load(folder: Path, family: str, dtype: torch.dtype, device: torch.device | None = None) -> Host:
    words = ("negative", "positive") if family == "t5" else None
    return load_host(str(folder), dtype=dtype, device=device, verbalisers=words)


def data(host: Host, count: int, seed: int) -> tuple[Encoded, np.ndarray]:
    rows = pico_reviews(count, seed)
    texts = [text for text, _ in rows]
    return encode(host.tokenizer, texts, Task()), np.array([c for _, c in rows])


def slots(host: Host, name: str) -> list[Slot]:
    config = config_from_json(CONFIGS[name])
    return [
        Slot(fresh_module(host, config, k), *data(host, 40 + 8 * k, 3 + k), spec)
        for k, spec in enumerate(SPECS)
    ]


def last(found: Any) -> Any:
    return list(found)[-1][1]


def gap(a: Module, b: Module) -> float:
    pairs = zip(a.tensors(), b.tensors(), strict=True)
    return max((x - y).abs().max().item() for (_, x), (_, y) in pairs)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_float64_is_the_reference(
    folders: dict[str, Path], device: torch.device, family: str, name: str
) -> None:
    here, there = (load(folders[family], family, torch.float64, d) for d in (None, device))
    made = last(train_bank(there, slots(there, name)))
    encoded, _ = data(here, 20, seed=50)
    scores = bank_scores(there, made, encoded)
    for slot, module, own in zip(slots(here, name), made, scores, strict=True):
        expected = last(train(here, slot.module, slot.encoded, slot.labels, slot.spec))
        # T5's own norm takes its mean in float32, on each device in its own order
        assert gap(module, expected) < (1e-5 if family == "t5" else 1e-8)
        np.testing.assert_allclose(own, class_scores(here, expected, encoded), atol=1e-5)


@pytest.mark.parametrize(("family", "name"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_the_cpus(
    folders: dict[str, Path], device: torch.device, family: str, name: str, dtype: torch.dtype
) -> None:
    here = load(folders[family], family, torch.float32)
    there = load(folders[family], family, dtype, device)
    encoded, _ = data(here, 40, seed=50)
    begin = slots(here, name)
    expected = last(train_bank(here, begin))
    wanted = bank_scores(here, expected, encoded)
    moved = np.abs(wanted - bank_scores(here, [s.module for s in begin], encoded)).mean()
    made = last(train_bank(there, slots(there, name)))
    off = np.abs(bank_scores(there, made, encoded) - wanted).mean()
    assert off < (0.01 if dtype == torch.float32 else 0.1) * moved


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_same_numbers_twice(
    folders: dict[str, Path], device: torch.device, family: str, name: str
) -> None:
    host = load(folders[family], family, torch.bfloat16, device)
    one, two = (last(train_bank(host, slots(host, name))) for _ in range(2))
    assert [m.digest for m in one] == [m.digest for m in two]
    encoded, _ = data(host, 40, seed=50)
    assert np.array_equal(bank_scores(host, one, encoded), bank_scores(host, two, encoded))


def test_the_reference_trainer_runs_there_too(
    folders: dict[str, Path], device: torch.device
) -> None:
    here, there = (load(folders["bert"], "bert", torch.float64, d) for d in (None, device))
    slot = slots(here, "lora")[0]
    spec = replace(slot.spec, steps=4)
    one, two = (
        last(train(host, slot.module, slot.encoded, slot.labels, spec)) for host in (here, there)
    )
    assert gap(one, two) < 1e-7


def test_free_memory_is_asked_for(device: torch.device) -> None:
    free = free_bytes(device)
    held = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    assert free - free_bytes(device) >= held.numel() // 2
