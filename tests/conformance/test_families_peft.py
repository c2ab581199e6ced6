"""PEFT and peftport compute the same on every family, on transformers 5, in both directions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peftport.data.tasks import Task, encode
from peftport.errors import InputError
from peftport.formats import library_for, load_module, save_module
from peftport.hosts.load import Host, load_host
from peftport.methods.attach import attach
from peftport.methods.base import Module
from peftport.testing import pico
from peftport.testing.contracts_family import CONFIGS, drawn

MAKE: dict[str, Callable[[Path], Path]] = {
    "roberta": pico.pico_roberta,
    "distilbert": pico.pico_distilbert,
    "llama": pico.pico_llama,
    "qwen2": lambda path: pico.pico_llama(path, kind="qwen2"),
    "qwen3": lambda path: pico.pico_llama(path, kind="qwen3"),
    "gpt2": pico.pico_gpt2,
}
DECODERS = ("llama", "qwen2", "qwen3", "gpt2")
#: what people adapt on each
TARGETS = {
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "llama": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": "all-linear",
    "gpt2": ["c_attn"],
}
TOLERANCE = 1e-5  # norm-relative


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    root = tmp_path_factory.mktemp("hosts")
    return {kind: load_host(str(make(root / kind))) for kind, make in MAKE.items()}


def logits(model: Any, host: Host) -> Tensor:
    """Of a padded batch: class logits, or next-token logits at every real position."""
    texts = encode(host.tokenizer, ["the film is good and very fine", "a dull plot"], Task())
    batch = texts.batch([0, 1], host.pad_id)
    with torch.no_grad():
        out = model(**batch).logits
    return out[batch["attention_mask"].bool()] if out.dim() == 3 else out


def ours(host: Host, module: Module) -> Tensor:
    with attach(host.model, module, spec=host.spec):
        return logits(host.model, host)


def differ(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()


def theirs(host: Host, config: peft.PeftConfig) -> Any:
    """PEFT's model with every trained parameter drawn."""
    model = peft.get_peft_model(copy.deepcopy(host.model), config).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if "prompt" in name else parameter.shape[-1] ** -0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


@pytest.mark.parametrize("kind", MAKE)
def test_a_lora_that_peft_made(kind: str, hosts: dict[str, Host], tmp_path: Path) -> None:
    """It loads with and without the host's spec, and is written back bit for bit."""
    host = hosts[kind]
    task = "CAUSAL_LM" if kind in DECODERS else "SEQ_CLS"
    saved = {"modules_to_save": ["pre_classifier", "classifier"]} if kind == "distilbert" else {}
    config = peft.LoraConfig(
        task_type=task, r=4, lora_alpha=6, target_modules=TARGETS[kind], **saved
    )
    model = theirs(host, config)
    expected = logits(model, host)
    model.save_pretrained(tmp_path / "theirs")
    module = load_module(tmp_path / "theirs", spec=host.spec)
    assert differ(ours(host, module), expected) < TOLERANCE
    assert differ(logits(host.model, host), expected) > 1e-2
    told = load_module(tmp_path / "theirs")  # by the names in the file alone
    assert (told.config, told.digest) == (module.config, module.digest)
    save_module(module, tmp_path / "ours", spec=host.spec)
    left, right = (
        load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("theirs", "ours")
    )
    assert set(left) == set(right)
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(
    "roles", [("q", "v"), ("q",), ("k", "v", "down"), CONFIGS["lora"]["roles"]]
)
def test_a_lora_that_we_made(
    kind: str, roles: tuple[str, ...], hosts: dict[str, Host], tmp_path: Path
) -> None:
    host = hosts[kind]
    module = drawn(host, {"method": "lora", "r": 3, "alpha": 5, "roles": roles})
    assert library_for(module, host.spec)[0] == "peft"
    folder = save_module(module, tmp_path / "out", spec=host.spec)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(host.model), str(folder)).eval()
    expected = ours(host, module)
    assert differ(logits(model, host), expected) < TOLERANCE
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    paths = {host.family.module_path(host.spec, host.spec.site(name)) for name in module.state}
    assert len(adapted) == len(paths)  # target_modules match our linear layers and no other
    back = load_module(folder, spec=host.spec)
    assert (back.config.to_json(), back.digest) == (module.config.to_json(), module.digest)
    (folder / "peftport.json").unlink()
    alone = load_module(folder, spec=host.spec)
    assert differ(ours(host, alone), expected) < TOLERANCE
    same = {name for name in module.state if module.state[name]["B"].any()}
    assert set(alone.state) == same


def test_a_fresh_lora_on_a_fused_linear_keeps_its_rank(
    hosts: dict[str, Host], tmp_path: Path
) -> None:
    """All of B is zero: only peftport.json tells how the rank was put together."""
    host = hosts["gpt2"]
    for roles in (("q", "k", "v"), ("q", "v")):
        module = drawn(host, {"method": "lora", "r": 2, "roles": roles})
        for ab in module.state.values():
            ab["B"].zero_()
        folder = save_module(module, tmp_path / "-".join(roles), spec=host.spec)
        facts = json.loads((folder / "adapter_config.json").read_text())
        assert (facts["r"], facts["lora_alpha"]) == (2 * len(roles), 16 * len(roles))
        assert load_module(folder, spec=host.spec).digest == module.digest


@pytest.mark.parametrize("kind", DECODERS)
def test_a_prefix_that_peft_made(kind: str, hosts: dict[str, Host], tmp_path: Path) -> None:
    host = hosts[kind]
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        token_dim=host.spec.heads * host.spec.d_kv,
    )
    model = theirs(host, config)
    expected = logits(model, host)
    model.save_pretrained(tmp_path / "theirs")
    module = load_module(tmp_path / "theirs", spec=host.spec)
    assert next(iter(module.state.values()))["key"].shape == (
        3,
        host.spec.kv_heads * host.spec.d_kv,
    )
    assert differ(ours(host, module), expected) < TOLERANCE
    assert differ(logits(host.model, host), expected) > 1e-2
    with pytest.raises(InputError, match="does not say which one"):
        load_module(tmp_path / "theirs")


@pytest.mark.parametrize("kind", DECODERS)
def test_a_prefix_that_we_made(kind: str, hosts: dict[str, Host], tmp_path: Path) -> None:
    host = hosts[kind]
    module = drawn(host, CONFIGS["prefix"])
    assert library_for(module, host.spec)[0] == "peft"
    folder = save_module(module, tmp_path / "out", spec=host.spec)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(host.model), str(folder)).eval()
    assert differ(logits(model, host), ours(host, module)) < TOLERANCE


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_peft_refuses_a_prefix_on_an_encoder(kind: str, hosts: dict[str, Host]) -> None:
    """Why there is nothing to compare on transformers 5; if this fails, compare here."""
    config = peft.PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=3, token_dim=32, num_attention_heads=4, num_layers=2
    )
    model = peft.get_peft_model(copy.deepcopy(hosts[kind].model), config)
    with pytest.raises(ValueError, match="past key values"):
        logits(model, hosts[kind])
