"""Every broken or unsupported folder ends in one InputError of one line, and nothing is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftport.errors import InputError
from peftport.formats import convert_pickle, load_module, save_module
from peftport.hosts.load import Host

Make = Callable[..., Any]
Break = Callable[[Path], None]
FOLDERS = {"peft": "bert-lora", "prefix": "bert-prefix-past", "hub": "bert-bottleneck",
           "phm": "bert-compacter", "pairs": "bert-prefix-none", "native": "t5-prefix-none",
           "t5": "t5-prefix-past"}  # fmt: skip
WEIGHTS = ("adapter_model.safetensors", "adapter.safetensors", "module.safetensors")


def weights(folder: Path) -> Path:
    return next(folder / name for name in WEIGHTS if (folder / name).exists())


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Break:
    def change(folder: Path) -> None:
        found = load_file(weights(folder))
        edit(found)
        save_file(found, weights(folder))

    return change


def first(change: Callable[[torch.Tensor], torch.Tensor]) -> Break:
    """Change the largest tensor."""

    def edit(found: dict[str, torch.Tensor]) -> None:
        key = max(found, key=lambda k: found[k].numel())
        found[key] = change(found[key]).contiguous()

    return tensors(edit)


def config(**changes: Any) -> Break:
    """Change adapter_config.json (AdapterHub: the inner config too)."""

    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        facts = json.loads(file.read_text())
        for key, value in changes.items():
            inner = facts.get("config")
            (inner if isinstance(inner, dict) and key not in facts else facts)[key] = value
        file.write_text(json.dumps(facts))

    return change


def text(name: str, content: str) -> Break:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


def own(**changes: Any) -> Break:
    def change(folder: Path) -> None:
        facts = json.loads((folder / "peftport.json").read_text()) | changes
        (folder / "peftport.json").write_text(json.dumps(facts))

    return change


def remove(*names: str) -> Break:
    def change(folder: Path) -> None:
        for name in names or [weights(folder).name]:
            (folder / name).unlink()

    return change


def cut(size: int) -> Break:
    return lambda folder: os.truncate(weights(folder), size)


def lie(folder: Path) -> None:
    """A header that promises more bytes than there are."""
    data = weights(folder).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = next(v for k, v in header.items() if k != "__metadata__")
    entry["shape"][0] += 1000
    raw = json.dumps(header).encode()
    weights(folder).write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + size :])


def huge_header(folder: Path) -> None:
    weights(folder).write_bytes((2**62).to_bytes(8, "little") + b"{}")


def spec_of(**changes: Any) -> Break:
    def change(folder: Path) -> None:
        facts = json.loads((folder / "peftport.json").read_text())
        facts["spec"] |= changes
        (folder / "peftport.json").write_text(json.dumps(facts))

    return change


def add(folder: Path) -> None:
    tensors(lambda found: found.update({"base_model.model.x.y": torch.ones(2)}))(folder)


def pop(folder: Path) -> None:
    tensors(lambda found: found.pop(min(found)))(folder)


NAN, INF = float("nan"), float("inf")
CASES: list[tuple[str, Break, str]] = [
    ("peft", cut(100), "cannot read"),
    ("hub", cut(5), "cannot read"),
    ("native", cut(0), "cannot read"),
    ("peft", lie, "cannot read"),
    ("hub", huge_header, "cannot read"),
    ("peft", first(lambda t: t * NAN), "NaN or infinity"),
    ("hub", first(lambda t: t * INF), "NaN or infinity"),
    ("native", first(lambda t: t * NAN), "NaN or infinity"),
    ("peft", first(lambda t: t.to(torch.int32)), "expected floating point"),
    ("peft", pop, "lora_A"),
    ("hub", pop, "expected tensors"),
    ("phm", tensors(lambda t: t.pop(min(k for k in t if "shared" in k))), "phm_rule"),
    ("native", pop, "expected tensors"),
    ("prefix", tensors(lambda t: t.pop("prompt_embeddings")), "no prompt_embeddings"),
    ("peft", add, "not known"),
    ("hub", add, "not known"),
    ("native", add, "not known"),
    ("native", tensors(lambda t: t.update({"x.0/key": torch.ones(2)})), "does not have"),
    ("peft", first(lambda t: t[:-1]), "lora_A"),
    ("peft", first(lambda t: t.flatten()), "lora_A"),
    ("prefix", first(lambda t: t[:, :-1]), "shape"),
    ("hub", first(lambda t: t[:-1]), "shape"),
    ("pairs", first(lambda t: t[:-1]), "numbers"),
    ("native", first(lambda t: t[:-1]), "shape"),
    ("peft", remove(), "no adapter_model.safetensors"),
    ("hub", remove(), "no adapter.safetensors"),
    ("native", remove(), "no module.safetensors"),
    ("peft", remove("adapter_config.json"), "no adapter_config.json"),
    ("peft", text("adapter_config.json", "{"), "cannot read"),
    ("peft", text("adapter_config.json", "[1]"), "must hold a JSON object"),
    ("peft", text("adapter_config.json", "{}"), "is neither PEFT's"),
    ("peft", text("adapter_config.json", "[" * 100_000), "cannot read"),
    ("peft", config(peft_type="LOHA"), "peft_type 'LOHA'"),
    ("peft", config(use_dora=True), "use_dora = True"),
    ("peft", config(bias="all"), "bias = 'all'"),
    ("peft", config(alpha_pattern={"query": 3}), "alpha_pattern"),
    ("peft", config(rank_pattern={"query": 3}), "rank_pattern"),
    ("peft", config(layers_to_transform=[0]), "layers_to_transform"),
    ("peft", config(fan_in_fan_out=True), "fan_in_fan_out"),
    ("peft", config(init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
    ("peft", config(some_new_option=7), "some_new_option = 7"),
    ("peft", config(r=8), "lora_A"),
    ("peft", config(r="4"), "r must be a whole number"),
    ("peft", config(lora_alpha=-1), "lora_alpha must be > 0"),
    ("peft", config(lora_alpha=12), "disagree on lora.alpha"),
    ("peft", config(modules_to_save=None), "not known"),
    ("peft", config(modules_to_save=3), "is damaged"),
    ("prefix", config(num_virtual_tokens=4), "its config asks for"),
    ("prefix", config(num_transformer_submodules=2), "num_transformer_submodules"),
    ("prefix", config(task_type="CAUSAL_LM"), "task_type 'CAUSAL_LM'"),
    ("t5", config(num_transformer_submodules=1), "num_transformer_submodules"),
    ("hub", config(use_gating=True), "use_gating = True"),
    ("hub", config(ln_before=True), "ln_before = True"),
    ("hub", config(is_parallel=True), "is_parallel = True"),
    ("hub", config(inv_adapter="nice"), "inv_adapter = 'nice'"),
    ("hub", config(scaling="learned"), "scaling = 'learned'"),
    ("hub", config(leave_out=[1]), "leave_out = [1]"),
    ("hub", config(reduction_factor={"default": 4}), "reduction_factor"),
    ("hub", config(non_linearity="leakyrelu"), "non_linearity = 'leakyrelu'"),
    ("hub", config(non_linearity=["relu"]), "non_linearity"),
    ("hub", config(architecture="union"), "architecture 'union'"),
    ("hub", config(model_type="bloom"), "unknown model_type 'bloom'"),
    ("hub", config(name="../x"), "not known"),
    ("hub", config(mh_adapter=False), "disagree on the sites"),
    ("phm", config(shared_W_phm=True), "shared_W_phm = True"),
    ("phm", config(phm_dim=3), "disagree on compacter.n"),
    ("phm", config(phm_dim="4"), "compacter.n"),
    ("pairs", config(use_gating=True), "use_gating = True"),
    ("pairs", config(flat=False), "must hold"),
    ("pairs", config(prefix_length=0), "prefix_length"),
    ("peft", own(version=9), "version 9"),
    ("peft", own(config={"method": "nothing"}), "unknown method 'nothing'"),
    ("peft", own(config=None), "is damaged"),
    ("peft", own(spec={"family": "bert"}), "is damaged"),
    ("peft", own(library="other"), "library 'other'"),
    ("native", own(config={"method": "prefix", "length": 10**9}), "shape"),
    ("peft", spec_of(layers={"encoder": 10**9}), "is damaged"),
    ("native", spec_of(layers={"encoder": 3, "decoder": 2}), "lacks site"),
    ("native", spec_of(heads=10**6), "shape"),
    ("peft", spec_of(family="bloom"), "unknown host family 'bloom'"),
]


@pytest.mark.parametrize(
    ("kind", "damage", "words"), CASES, ids=[f"{i}-{k}-{w}" for i, (k, _, w) in enumerate(CASES)]
)
def test_a_bad_folder_is_refused_in_one_line(
    kind: str, damage: Break, words: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for file in saved[kind].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert load_module(folder)  # sound before it is damaged
    damage(folder)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with pytest.raises(InputError) as caught:
        load_module(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


@pytest.fixture(scope="module")
def saved(
    hosts: dict[str, Host], make: Make, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    return {
        kind: save_module(make(name), root / kind, spec=hosts[name.split("-")[0]].spec)
        for kind, name in FOLDERS.items()
    }


def test_a_folder_for_another_shape_of_host_is_refused(
    hosts: dict[str, Host], saved: dict[str, Path]
) -> None:
    for kind in ("peft", "hub", "phm", "pairs", "prefix"):
        with pytest.raises(InputError):
            load_module(saved[kind], spec=hosts["t5"].spec)
    narrow = replace(hosts["bert"].spec, heads=2, kv_heads=2, d_kv=8)
    with pytest.raises(InputError, match="heads"):
        load_module(saved["prefix"], spec=narrow)


@pytest.mark.parametrize("path", ["missing", "peft/adapter_config.json", ""])
def test_what_is_no_folder_is_refused(path: str, saved: dict[str, Path], tmp_path: Path) -> None:
    where = {"missing": tmp_path / "missing", "": tmp_path}.get(path, saved["peft"] / path)
    with pytest.raises(InputError):
        load_module(where)


# Pickles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pickle"), [("peft", "adapter_model.bin"), ("hub", "pytorch_adapter.bin")]
)
def test_a_pickle_is_read_only_after_it_was_converted(
    kind: str, pickle: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    for file in saved[kind].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(weights(tmp_path)), tmp_path / pickle)
    weights(tmp_path).unlink()
    with pytest.raises(InputError, match="convert_pickle"):
        load_module(tmp_path)
    convert_pickle(tmp_path)
    assert load_module(tmp_path).digest == load_module(saved[kind]).digest


def test_a_pickle_that_runs_code_is_never_converted(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"x": Evil()}, tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match="plain weights"):
        convert_pickle(tmp_path)
    torch.save([1], tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match="more than named tensors"):
        convert_pickle(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["adapter_model.bin"]


def test_nothing_to_convert_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pickle"):
        convert_pickle(tmp_path)


# Writing ---------------------------------------------------------------------------------------


def test_a_taken_place_is_refused_and_left_alone(
    hosts: dict[str, Host], make: Make, tmp_path: Path
) -> None:
    spec, module = hosts["bert"].spec, make("bert-lora")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name in ("full", "file", "link"):
        for overwrite in (False, True):
            with pytest.raises(InputError):
                save_module(module, tmp_path / name, spec=spec, overwrite=overwrite)
    with pytest.raises(InputError):
        save_module(module, tmp_path / "file" / "below", spec=spec)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "link"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_overwrite_replaces_only_what_peftport_wrote(
    hosts: dict[str, Host], make: Make, tmp_path: Path
) -> None:
    spec = hosts["bert"].spec
    folder = save_module(make("bert-lora"), tmp_path / "m", spec=spec)
    with pytest.raises(InputError, match="not empty"):
        save_module(make("bert-bottleneck"), folder, spec=spec)
    save_module(make("bert-bottleneck"), folder, spec=spec, overwrite=True)
    assert load_module(folder).config.method == "bottleneck"
    assert not (folder / "adapter_model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_module_with_nan_or_of_another_shape_is_not_written(
    hosts: dict[str, Host], make: Make, tmp_path: Path
) -> None:
    spec, module = hosts["bert"].spec, make("bert-bottleneck")
    broken = replace(module, head={k: t * NAN for k, t in module.head.items()})
    with pytest.raises(InputError, match="NaN"):
        save_module(broken, tmp_path / "m", spec=spec)
    with pytest.raises(InputError):
        save_module(module, tmp_path / "m", spec=hosts["t5"].spec)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_writing_leaves_nothing(
    hosts: dict[str, Host], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peftport.formats.files.os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        save_module(make("bert-lora"), tmp_path / "m", spec=hosts["bert"].spec)
    assert list(tmp_path.iterdir()) == []
