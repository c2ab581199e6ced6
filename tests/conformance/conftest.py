"""Golden hosts and cases, and float64 that is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peftport.data.tasks import Encoded
from peftport.formats import adapterhub, peft
from peftport.hosts.families.base import Words
from peftport.hosts.load import Host, load_host
from peftport.hosts.spec import HostSpec
from peftport.methods.base import Module

DATA = Path(__file__).resolve().parents[1] / "golden" / "data"
FACTS: dict[str, Any] = json.loads((DATA / "golden.json").read_text())


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_host() -> Callable[..., Host]:
    """tiny_host('bert' or 't5', dtype): a fresh copy of a golden host with its label words."""

    def make(kind: str, dtype: torch.dtype = torch.float32) -> Host:
        host = load_host(str(DATA / "hosts" / kind), dtype=dtype)
        if kind == "t5":
            host.words = Words(tuple(tuple(row) for row in FACTS["words"]))
        return host

    return make


@pytest.fixture
def float64_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' T5 computes its layer norm in float32; a trajectory in float64 must not."""
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    def forward(self: Any, hidden: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))

    monkeypatch.setattr(T5LayerNorm, "forward", forward)


@dataclass(frozen=True)
class Batches:
    """The fixed batches, as the reference trainer takes them.

    Attributes:
        encoded, labels: all texts of all batches in one list.
        order: rows of every step's batch; the batches come round again.
    """

    encoded: Encoded
    labels: list[int]
    order: list[list[int]]

    def tensors(self, step: int) -> tuple[dict[str, Tensor], Tensor]:
        rows = self.order[step]
        return self.encoded.batch(rows, 0), torch.tensor([self.labels[row] for row in rows])


@pytest.fixture(scope="session")
def batches() -> Batches:
    flat = load_file(DATA / "batches.safetensors")
    count = len({key.split("/")[0] for key in flat})
    ids: list[list[int]] = []
    labels: list[int] = []
    rounds: list[list[int]] = []
    for i in range(count):
        rows = zip(flat[f"{i}/input_ids"], flat[f"{i}/attention_mask"], strict=True)
        start = len(ids)
        ids += [row[mask == 1].tolist() for row, mask in rows]
        labels += flat[f"{i}/labels"].tolist()
        rounds.append(list(range(start, len(ids))))
    order = [rounds[step % count] for step in range(FACTS["steps"])]
    return Batches(Encoded(ids), labels, order)


@dataclass(frozen=True)
class Case:
    """One golden case: the library's folder and its numbers by the library's names."""

    key: str
    host: str
    library: str
    folder: Path
    numbers: dict[str, Tensor]

    def module(self, spec: HostSpec) -> Module:
        """The adapter as it was trained: a reparameterised prefix keeps its network."""
        read = peft.read if self.library == "peft" else adapterhub.read
        _, config, state, head, _ = read(self.folder, spec)
        return Module(config, state, head, "")

    def named(self, what: str, spec: HostSpec) -> Module:
        """Gradients (``grad``) or trained parameters (``final``) under our names."""
        theirs = {
            key.removeprefix(f"{what}/"): tensor
            for key, tensor in self.numbers.items()
            if key.startswith(f"{what}/")
        }
        facts = json.loads((self.folder / "adapter_config.json").read_text())
        if self.library == "peft":
            _, config, state, head = peft.from_tensors(theirs, facts, spec)
            return Module(config, state, head, "")
        head = {k: theirs.pop(k) for k in list(theirs) if k.startswith("classifier.")}
        own = adapterhub.canonical(theirs, facts["name"])
        _, config, state = adapterhub.from_tensors(own, facts["config"], facts, spec, spec.family)
        return Module(config, state, head, "")


@pytest.fixture(params=FACTS["cases"])
def case(request: pytest.FixtureRequest) -> Case:
    folder = DATA / "cases" / request.param
    facts = json.loads((folder / "case.json").read_text())
    numbers = load_file(folder / "numbers.safetensors")
    return Case(request.param, facts["host"], facts["library"], folder / "adapter", numbers)


@pytest.fixture(scope="session")
def close() -> Callable[[Any, Any, float], None]:
    """close(ours, theirs, tolerance): every tensor of two modules, norm-relative.

    A tensor below 1 % of the largest is held to that size: a bias's gradient is a sum over the
    batch that may nearly cancel, and float32 knows it as well as the summands, not as the sum.
    (The golden numbers come from another processor than the one that may run this.)
    """

    def check(ours: Module, theirs: Module, tolerance: float) -> None:
        left, right = dict(ours.tensors()), dict(theirs.tensors())
        assert set(left) == set(right)
        least = 0.01 * max(expected.norm() for expected in right.values())
        for name, expected in right.items():
            given = left[name]
            assert given.shape == expected.shape, name
            assert expected.norm() > 0, f"{name}: nothing to compare"
            error = ((given.to(expected) - expected).norm() / max(expected.norm(), least)).item()
            assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.0e}"

    return check
