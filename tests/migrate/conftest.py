"""A pico host, its upgrade, and a folder of adapters as users have them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertModel

from peftport.data.datasets import load_dataset
from peftport.data.tasks import Task, encode
from peftport.formats import save_module
from peftport.hosts.load import inspect_host, load_host
from peftport.methods.base import config_from_json
from peftport.testing.pico import pico_bert, pico_reviews, pico_t5
from peftport.train.fused import Slot, train_bank
from peftport.train.reference import TrainSpec, fresh_module


def upgraded(host: Path, folder: Path, distance: float) -> None:
    """The same host with every matrix moved a little, as further training moves it."""
    shutil.copytree(host, folder)
    model = BertModel.from_pretrained(host)
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=rng)
                parameter.add_(distance * parameter.std() * noise)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``old`` and ``new`` hosts, ``reviews.csv``, and ``adapters``: three lora (one of them noise),
    two of another rank, two bottlenecks; two broken folders and one of another family."""
    root = tmp_path_factory.mktemp("shop")
    pico_bert(root / "old")
    upgraded(root / "old", root / "new", 0.02)
    with (root / "reviews.csv").open("w") as file:
        rows = [(text, ("bad", "good")[label]) for text, label in pico_reviews(900)]
        csv.writer(file).writerows([("text", "label"), *rows])
    host, data = load_host(str(root / "old")), load_dataset(str(root / "reviews.csv"))
    learn = data.split("source-train")
    encoded = encode(host.tokenizer, [e.text for e in learn], Task())
    labels = [e.label for e in learn]
    notes = {"classes": list(data.classes), "task": Task().to_json()}
    spec = inspect_host(str(root / "old"))
    for facts, name, count in (
        ({"method": "lora", "r": 4}, "lora", 3),
        ({"method": "lora", "r": 2}, "small/lora", 2),
        ({"method": "bottleneck", "reduction": 4}, "bottleneck", 2),
    ):
        config = config_from_json(facts)
        slots = [
            Slot(
                fresh_module(host, config, seed), encoded, labels,
                TrainSpec(steps=1 if name == "lora" and seed == 2 else 80, lr=0.01, seed=seed),
            )
            for seed in range(count)
        ]  # fmt: skip
        for seed, slot in enumerate(slots):
            ((_, (module,)),) = train_bank(host, [slot])
            module = type(module)(
                module.config, module.state, module.head, spec.fingerprint, str(root / "old"),
                {**notes, "head": host.head},
            )  # fmt: skip
            save_module(module, root / "adapters" / f"{name}-{seed}", spec=spec)
    broken = root / "adapters/broken"
    shutil.copytree(root / "adapters/lora-0", broken / "cut")
    weights = broken / "cut/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    (broken / "empty").mkdir()
    (broken / "empty/adapter_config.json").write_text("{}")
    pico_t5(root / "t5")
    other = load_host(str(root / "t5"), verbalisers=("bad", "good"))
    module = fresh_module(other, config_from_json({"method": "lora", "r": 4}), 0)
    save_module(module, root / "adapters/t5-lora", spec=other.spec)
    return root
