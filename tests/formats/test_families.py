"""Folders of the newer families: what real ones look like, what we write, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftport.errors import InputError
from peftport.formats import library_for, load_module, save_module
from peftport.hosts.load import Host, load_host
from peftport.methods.attach import attach
from peftport.testing import pico
from peftport.testing.contracts_family import CONFIGS, drawn

MAKE: dict[str, Callable[[Path], Path]] = {
    "roberta": pico.pico_roberta,
    "distilbert": pico.pico_distilbert,
    "llama": pico.pico_llama,
    "gpt2": pico.pico_gpt2,
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    root = tmp_path_factory.mktemp("hosts")
    return {kind: load_host(str(make(root / kind))) for kind, make in MAKE.items()}


#: as PEFT writes it; each case adds what differs
PEFT = {
    "auto_mapping": None, "base_model_name_or_path": "org/base", "bias": "none",
    "inference_mode": True, "init_lora_weights": True, "layers_pattern": None,
    "layers_to_transform": None, "lora_alpha": 16, "lora_dropout": 0.05, "modules_to_save": None,
    "peft_type": "LORA", "r": 8, "rank_pattern": {}, "alpha_pattern": {}, "revision": None,
    "use_rslora": False, "use_dora": False, "loftq_config": {}, "megatron_config": None,
    "megatron_core": "megatron.core", "fan_in_fan_out": False,
}  # fmt: skip
_LAYER = {
    "roberta": "roberta.encoder.layer.{}.attention.self",
    "distilbert": "distilbert.transformer.layer.{}.attention",
    "llama": "model.layers.{}.self_attn",
    "gpt2": "transformer.h.{}.attn",
}


def published(kind: str, folder: Path, targets: Mapping[str, int], head: Mapping[str, Tensor],
              **facts: Any) -> Path:  # fmt: skip
    """A folder with a LoRA of rank 8 on some linears (name -> d_out) of two layers."""
    folder.mkdir()
    given = {**PEFT, "target_modules": list(targets), **facts}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    tensors = {f"base_model.model.{name}": tensor for name, tensor in head.items()}
    for layer in range(2):
        for name, d_out in targets.items():
            path = f"base_model.model.{_LAYER[kind].format(layer)}.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(8, 32)
            tensors[f"{path}.lora_B.weight"] = torch.randn(d_out, 8)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _head(*shapes: tuple[str, int, int]) -> dict[str, Tensor]:
    made = {f"{name}.weight": torch.randn(out, width) for name, out, width in shapes}
    return made | {f"{name}.bias": torch.randn(out) for name, out, _ in shapes}


REAL: dict[str, tuple[dict[str, int], dict[str, Tensor], dict[str, Any]]] = {
    "llama": ({"q_proj": 48, "v_proj": 24}, {}, {"task_type": "CAUSAL_LM"}),
    "gpt2": ({"c_attn": 96}, {}, {"task_type": "CAUSAL_LM", "fan_in_fan_out": True}),
    "distilbert": (
        {"q_lin": 32, "v_lin": 32},
        _head(("pre_classifier", 32, 32), ("classifier", 2, 32)),
        # PEFT's own list, and still pre_classifier is saved: its name ends so
        {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]},
    ),
    "roberta": (
        {"query": 32, "value": 32},
        _head(("classifier.dense", 32, 32), ("classifier.out_proj", 2, 32)),
        {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]},
    ),
}


@pytest.mark.parametrize("kind", REAL)
def test_a_published_lora_loads(kind: str, hosts: dict[str, Host], tmp_path: Path) -> None:
    targets, head, facts = REAL[kind]
    folder = published(kind, tmp_path / "theirs", targets, head, **facts)
    host = hosts[kind]
    module = load_module(folder, spec=host.spec)
    roles = ("q", "k", "v") if kind == "gpt2" else ("q", "v")
    assert (module.config.r, module.config.alpha, module.config.roles) == (8, 16.0, roles)
    assert set(module.head) == set(head) == set(host.family.head_parameters(host.model))
    attach(host.model, module, spec=host.spec).detach()
    assert load_module(folder).digest == module.digest
    back = save_module(module, tmp_path / "ours", spec=host.spec)
    left, right = (load_file(f / "adapter_model.safetensors") for f in (folder, back))
    assert set(left) == set(right)
    assert all(torch.equal(left[key], right[key]) for key in left)
    ours = json.loads((back / "adapter_config.json").read_text())
    assert ours["task_type"] == facts["task_type"]
    assert sorted(ours["target_modules"]) == sorted(targets)
    assert bool(ours.get("fan_in_fan_out")) == (kind == "gpt2")


def test_a_fused_linear_holds_three_sites(tmp_path: Path, hosts: dict[str, Host]) -> None:
    targets, head, facts = REAL["gpt2"]
    folder = published("gpt2", tmp_path / "theirs", targets, head, **facts)
    raw = load_file(folder / "adapter_model.safetensors")
    path = "base_model.model.transformer.h.1.attn.c_attn"
    module = load_module(folder, spec=hosts["gpt2"].spec)
    for i, role in enumerate("qkv"):
        own = module.state[f"decoder.1.self_attn.{role}"]
        assert torch.equal(own["A"], raw[f"{path}.lora_A.weight"])
        assert torch.equal(own["B"], raw[f"{path}.lora_B.weight"][32 * i : 32 * (i + 1)])
    changed = {s: dict(t) for s, t in module.state.items()}
    changed["decoder.1.self_attn.k"]["A"] = torch.zeros(8, 32)  # one layer no longer shares A
    out = save_module(replace(module, state=changed), tmp_path / "out", spec=hosts["gpt2"].spec)
    facts = json.loads((out / "adapter_config.json").read_text())
    assert (facts["r"], facts["lora_alpha"]) == (24, 48)
    tensors = load_file(out / "adapter_model.safetensors")
    assert tensors[f"{path}.lora_A.weight"].shape == (24, 32)
    assert load_module(out, spec=hosts["gpt2"].spec).digest == replace(module, state=changed).digest


REFUSED = [
    ("llama", {"fan_in_fan_out": True}, "fan_in_fan_out"),
    ("llama", {"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
    ("gpt2", {"rank_pattern": {"c_attn": 4}}, r"needs lora_A \[4, d_in\]"),
    ("gpt2", {"rank_pattern": {"c_attn": "8"}}, "must be a whole number"),
    ("gpt2", {"alpha_pattern": {"c_attn": -1}}, "lora_alpha must be > 0"),
    ("distilbert", {"modules_to_save": None}, "not known"),
]


@pytest.mark.parametrize(("kind", "facts", "says"), REFUSED)
def test_what_does_not_run_is_refused(
    kind: str, facts: dict[str, Any], says: str, hosts: dict[str, Host], tmp_path: Path
) -> None:
    targets, head, own = REAL[kind]
    folder = published(kind, tmp_path / "m", targets, head, **{**own, **facts})
    for spec in (None, hosts[kind].spec):
        with pytest.raises(InputError, match=says):
            load_module(folder, spec=spec)


def test_a_linear_of_another_width_is_refused(hosts: dict[str, Host], tmp_path: Path) -> None:
    folder = published("gpt2", tmp_path / "m", {"c_attn": 64}, {}, task_type="CAUSAL_LM")
    with pytest.raises(InputError, match="64 rows, this host needs 96"):
        load_module(folder, spec=hosts["gpt2"].spec)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("method", ["bottleneck", "compacter"])
def test_adapterhub_names_of_a_bottleneck(
    kind: str, method: str, hosts: dict[str, Host], tmp_path: Path
) -> None:
    """The names that ``adapters`` 1.3 has in its own files (see scripts/golden/interop.py)."""
    host = hosts[kind]
    module = drawn(host, CONFIGS[method])
    assert library_for(module, host.spec)[0] == "adapterhub"
    folder = save_module(module, tmp_path / "out", spec=host.spec)
    tensors = load_file(folder / "adapter.safetensors")
    blocks = {
        "roberta": ("encoder.layer.1.attention.output", "encoder.layer.1.output"),
        "distilbert": (
            "transformer.layer.1.attention_adapters",
            "transformer.layer.1.output_adapters",
        ),
        "llama": ("layers.1.attention_adapters", "layers.1.output_adapters"),
        "gpt2": ("h.1.attention_adapters", "h.1.output_adapters"),
    }[kind]
    for block in blocks:
        prefix = f"{host.family.weight_prefix}.{block}.adapters.peftport."
        assert any(key.startswith(prefix) for key in tensors)
    facts = json.loads((folder / "adapter_config.json").read_text())
    names = {
        "roberta": "RobertaForSequenceClassification",
        "distilbert": "DistilBertForSequenceClassification",
        "llama": "LlamaForCausalLM",
        "gpt2": "GPT2LMHeadModel",
    }
    assert (facts["model_type"], facts["model_class"]) == (kind, names[kind])
    if host.family.decides_by == "class":
        assert json.loads((folder / "head_config.json").read_text())["num_labels"] == 2
    (folder / "peftport.json").unlink()
    for back in (load_module(folder, spec=host.spec), load_module(folder)):
        assert dict(back.head).keys() == module.head.keys()
        assert back.state.keys() == module.state.keys()
        assert all(
            torch.equal(back.state[s][n], t)
            for s, own in module.state.items()
            for n, t in own.items()
        )


@pytest.mark.parametrize(
    ("kind", "facts", "library", "reason"),
    [
        ("llama", {"positions": "none"}, "peftport", "was not compared"),
        ("gpt2", {"positions": "past"}, "peft", ""),
        ("roberta", {"positions": "past"}, "peftport", "PEFT cannot run"),
        ("roberta", {"positions": "none"}, "adapterhub", ""),
        ("distilbert", {"positions": "none"}, "adapterhub", ""),
        ("distilbert", {"positions": "past"}, "peftport", "PEFT cannot run"),
    ],
)
def test_who_runs_a_prefix(
    kind: str, facts: dict[str, Any], library: str, reason: str, hosts: dict[str, Host],
    tmp_path: Path,
) -> None:  # fmt: skip
    host = hosts[kind]
    module = drawn(host, {"method": "prefix", "length": 2, **facts})
    found, reasons = library_for(module, host.spec)
    assert found == library
    if reason:
        assert any(reason in one for one in reasons)
    folder = save_module(module, tmp_path / "out", spec=host.spec)
    assert load_module(folder).digest == module.digest


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_a_mean_head_is_ours_alone(kind: str, hosts: dict[str, Host], tmp_path: Path) -> None:
    host = load_host(str(hosts[kind].path), head="mean")
    module = drawn(host, {"method": "lora", "r": 2})
    assert library_for(module, host.spec)[0] == "peftport"
    assert load_module(save_module(module, tmp_path / "o", spec=host.spec)).digest == module.digest
