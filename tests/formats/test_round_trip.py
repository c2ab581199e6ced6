"""What we write, PEFT reads with equal logits, and the reverse; AdapterHub: see tests/interop."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from peftport.formats import load_module, save_module
from peftport.hosts.load import Host
from peftport.methods.base import Module, config_from_json, method_of
from peftport.methods.prefix import PrefixConfig

from .conftest import MODULES

Make = Callable[..., Any]
RUNS_IN_PEFT = [
    name
    for name, (_, _, library) in MODULES.items()
    if library == "peft" and name != "bert-prefix-past"  # on transformers 4.57: see interop
]


def same(left: Module, right: Module) -> None:
    a, b = dict(left.tensors()), dict(right.tensors())
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", MODULES)
def test_a_saved_module_comes_back_whole(
    name: str, hosts: dict[str, Host], make: Make, tmp_path: Path
) -> None:
    kind, _, library = MODULES[name]
    module, spec = make(name), hosts[kind].spec
    folder = save_module(module, tmp_path / "out", spec=spec)
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # as the umask says
    assert json.loads((folder / "peftport.json").read_text())["library"] == library
    for back in (load_module(folder, spec=spec), load_module(folder)):
        assert back.config == module.config
        assert (back.fingerprint, back.host) == (module.fingerprint, "tiny host")
        assert back.notes == module.notes
        assert back.digest == module.digest
        same(back, module)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [n for n, (_, _, lib) in MODULES.items() if lib != "peftport"])
def test_without_peftport_json_the_librarys_files_say_enough(
    name: str, hosts: dict[str, Host], make: Make, attached: Make, tmp_path: Path
) -> None:
    kind = MODULES[name][0]
    module, spec = make(name), hosts[kind].spec
    folder = save_module(module, tmp_path / "out", spec=spec, base_model="org/base")
    (folder / "peftport.json").unlink()
    back = load_module(folder, spec=spec)
    assert (back.fingerprint, back.host) == ("", "org/base")
    same(back, module)
    assert torch.equal(attached(kind, back), attached(kind, module))
    if "t5-prefix" not in name:  # a prefix of an encoder-decoder does not say how deep its host is
        same(load_module(folder), module)


@pytest.mark.parametrize("name", RUNS_IN_PEFT)
def test_peft_reads_what_we_write(
    name: str, hosts: dict[str, Host], make: Make, attached: Make, logits: Make, tmp_path: Path
) -> None:
    kind = MODULES[name][0]
    host, module = hosts[kind], make(name)
    folder = save_module(module, tmp_path / "out", spec=host.spec)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(host.model), str(folder)).eval()
    adapted = [n for n, _ in theirs.named_parameters() if "lora_A" in n]
    if module.config.method == "lora":  # target_modules name our layers and no other
        assert len(adapted) == len(module.state)
    expected = attached(kind, module)
    torch.testing.assert_close(logits(theirs, host), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(host.model, host), expected, rtol=1e-2, atol=1e-2)


def _lora(targets: Any, **options: Any) -> Callable[[str], peft.PeftConfig]:
    return lambda task: peft.LoraConfig(
        task_type=task, r=4, lora_alpha=7, target_modules=targets, **options
    )


def _prefix(**options: Any) -> Callable[[str], peft.PeftConfig]:
    return lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3, **options)


T5 = {"token_dim": 48, "num_attention_heads": 4}
FROM_PEFT: dict[str, tuple[str, Callable[[str], peft.PeftConfig]]] = {
    "bert-lora": ("bert", _lora(["query", "value"])),
    "bert-rslora": ("bert", _lora(["query", "value"], use_rslora=True)),
    "bert-lora-dense": ("bert", _lora(["dense"], exclude_modules=["bert.pooler.dense"])),
    "bert-lora-dropout": ("bert", _lora(["key"], lora_dropout=0.3, init_lora_weights="gaussian")),
    "t5-lora": ("t5", _lora(["q", "v"])),
    "t5-lora-regex": ("t5", _lora(r"decoder\..*EncDecAttention\.(q|k)")),
    "t5-prefix-shared-pairs": ("t5", _prefix(**T5)),
    "t5-prefix": ("t5", _prefix(**T5, num_layers=3)),
    "t5-prefix-network": ("t5", _prefix(**T5, prefix_projection=True, encoder_hidden_size=8)),
}


@pytest.mark.parametrize("name", FROM_PEFT)
def test_we_read_what_peft_writes(
    name: str, hosts: dict[str, Host], attached: Make, logits: Make, tmp_path: Path
) -> None:
    kind, config = FROM_PEFT[name]
    host = hosts[kind]
    torch.manual_seed(5)
    task = "SEQ_CLS" if kind == "bert" else "SEQ_2_SEQ_LM"
    theirs = peft.get_peft_model(copy.deepcopy(host.model), config(task)).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    if name == "bert-lora-dense":  # written for this very host: drop what only restates that
        _drop(tmp_path / "theirs" / "adapter_config.json", "exclude_modules")
    module = load_module(tmp_path / "theirs", spec=host.spec)
    ours = attached(kind, module)
    torch.testing.assert_close(ours, logits(theirs, host), rtol=1e-5, atol=1e-5)
    if "prefix" not in name:
        same(load_module(tmp_path / "theirs"), module)
    if name in ("t5-prefix-shared-pairs", "t5-prefix-network", "t5-prefix"):
        return  # pairs are laid out anew: see the next test
    save_module(module, tmp_path / "ours", spec=host.spec)
    first = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    second = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def _drop(file: Path, key: str) -> None:
    facts = json.loads(file.read_text())
    facts.pop(key)
    file.write_text(json.dumps(facts))


@pytest.mark.parametrize("name", ["t5-prefix-past", "bert-prefix-past"])
def test_a_prefix_survives_two_trips_bit_for_bit(
    name: str, hosts: dict[str, Host], make: Make, tmp_path: Path
) -> None:
    spec = hosts[MODULES[name][0]].spec
    save_module(make(name), tmp_path / "a", spec=spec)
    save_module(load_module(tmp_path / "a", spec=spec), tmp_path / "b", spec=spec)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_reparameterised_prefix_is_saved_as_the_pairs_it_makes(
    hosts: dict[str, Host], attached: Make, tmp_path: Path
) -> None:
    spec = hosts["bert"].spec
    config = PrefixConfig(length=3, hidden=8)
    state = method_of(config).init(spec, config, torch.Generator().manual_seed(1))
    module = Module(config, state, {}, spec.fingerprint)
    back = load_module(save_module(module, tmp_path / "out", spec=spec))
    assert back.config == replace(config, hidden=None)
    torch.testing.assert_close(attached("bert", back), attached("bert", module))


def test_a_head_on_mean_pooled_states_is_kept_from_the_libraries(
    hosts: dict[str, Host], make: Make, tmp_path: Path
) -> None:
    """Their ...ForSequenceClassification would put it on the pooler and give other logits."""
    module = replace(make("bert-lora"), notes={"head": "mean"})
    folder = save_module(module, tmp_path / "out", spec=hosts["bert"].spec)
    assert not (folder / "adapter_config.json").exists()
    same(load_module(folder), module)


def test_adapterhub_configs_have_the_keys_that_the_library_writes(
    hosts: dict[str, Host], make: Make, tmp_path: Path
) -> None:
    """Against the golden folders, which adapters 1.3 wrote itself."""
    golden = Path(__file__).resolve().parents[1] / "golden" / "data" / "cases"
    pairs = {
        "bert-bottleneck": "bert-bottleneck-double",
        "bert-compacter": "bert-compacter",
        "bert-prefix-none": "bert-prefix-flat",
        "bert-bottleneck-norm-first": "bert-bottleneck-ff",
        "t5-compacter": "t5-compacter",
    }
    for ours, theirs in pairs.items():
        spec = hosts[MODULES[ours][0]].spec
        folder = save_module(make(ours), tmp_path / ours, spec=spec)
        for file in ("adapter_config.json", "head_config.json"):
            if not (golden / theirs / "adapter" / file).is_file():
                continue
            left = json.loads((folder / file).read_text())
            right = json.loads((golden / theirs / "adapter" / file).read_text())
            assert set(left) == set(right)
            if file == "adapter_config.json":
                assert _without(left["config"]) == _without(right["config"])
                assert (left["model_class"], left["version"]) == (
                    right["model_class"],
                    right["version"],
                )


def _without(options: dict[str, Any]) -> dict[str, Any]:
    """Options that the cases share: not the activation, which differs on purpose."""
    return {k: v for k, v in options.items() if k not in ("non_linearity",)}


def test_configs_keep_what_only_training_reads(hosts: dict[str, Host], tmp_path: Path) -> None:
    spec = hosts["bert"].spec
    config = config_from_json({"method": "prefix", "length": 2, "init_std": 0.7})
    state = method_of(config).init(spec, config, torch.Generator().manual_seed(0))
    folder = save_module(Module(config, state, {}, "f"), tmp_path / "x", spec=spec)
    assert load_module(folder).config == config
