"""Loading a host, or refusing to: names, configs, weights, fingerprints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftport.errors import InputError, UnknownName
from peftport.hosts.load import inspect_host, label_words, load_host, load_tokenizer
from peftport.port_folder.hosts import find
from peftport.refs import Ref
from peftport.testing.pico import pico_bert, pico_t5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pico_bert(tmp_path / "host")


def test_inspecting_equals_loading(folder: Path) -> None:
    assert inspect_host(str(folder)) == load_host(str(folder)).spec


def test_everything_is_frozen_and_the_head_is_empty(folder: Path) -> None:
    host = load_host(str(folder), labels=3)
    assert not any(p.requires_grad for p in host.model.parameters())
    assert not host.model.training
    head = host.family.head_parameters(host.model)
    assert {n: tuple(p.shape) for n, p in head.items()} == {
        "classifier.weight": (3, 32),
        "classifier.bias": (3,),
    }
    assert all(not p.any() for p in head.values())


def test_the_fingerprint_is_that_of_the_body(folder: Path, tmp_path: Path) -> None:
    """A task head, the file's name of a weight's prefix and the dtype on disk don't matter."""
    plain = inspect_host(str(folder)).fingerprint
    twin = tmp_path / "twin"
    shutil.copytree(folder, twin)
    weights = load_file(folder / "model.safetensors")
    other = {f"bert.{name}": t for name, t in weights.items()}
    other["classifier.weight"] = torch.randn(2, 32)
    save_file(other, twin / "model.safetensors", metadata={"format": "pt"})
    assert inspect_host(str(twin)).fingerprint == plain
    name = "bert.encoder.layer.1.output.dense.weight"
    other[name] = other[name] + 1e-6
    save_file(other, twin / "model.safetensors", metadata={"format": "pt"})
    assert inspect_host(str(twin)).fingerprint != plain


def test_sharded_weights_have_the_same_fingerprint(tmp_path: Path) -> None:
    from transformers import T5ForConditionalGeneration

    whole = pico_t5(tmp_path / "whole")
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    (parts / "model.safetensors").unlink()
    T5ForConditionalGeneration.from_pretrained(whole).save_pretrained(parts, max_shard_size="40KB")
    assert len(list(parts.glob("model-*.safetensors"))) > 1
    assert inspect_host(str(parts)).fingerprint == inspect_host(str(whole)).fingerprint


def test_the_tokenizer_digest_follows_the_vocabulary(folder: Path, tmp_path: Path) -> None:
    before = inspect_host(str(folder)).tokenizer
    tokenizer = load_tokenizer(folder)
    tokenizer(["a film"], truncation=True, max_length=4, padding=True)
    tokenizer.save_pretrained(folder)
    assert inspect_host(str(folder)).tokenizer == before
    facts = json.loads((folder / "tokenizer.json").read_text())
    vocab = facts["model"]["vocab"]
    vocab["film"], vocab["movie"] = vocab["movie"], vocab["film"]
    (folder / "tokenizer.json").write_text(json.dumps(facts))
    assert inspect_host(str(folder)).tokenizer != before


def test_t5_sites_use_d_kv(tmp_path: Path) -> None:
    spec = inspect_host(str(pico_t5(tmp_path)))
    assert spec.site("encoder.0.self_attn.q").d_out == 48  # 4 heads x 12, not d_model
    assert spec.site("decoder.1.cross_attn.o").d_in == 48
    assert "encoder.0.cross_attn.q" not in spec.by_name
    assert spec.site("decoder.1.ff.gate").d_out == 64


def damage_truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["pooler.dense.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors")


def damage_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damage_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bertt"}')


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_missing(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "cannot read .*model.safetensors"),
        (damage_nan, "weight 'pooler.dense.bias' .* holds NaN"),
        (damage_pickle, "pickled weights only; convert"),
        (damage_type, "unknown model_type 'bertt'; did you mean 'bert'"),
        (damage_config, "cannot read .*config.json"),
        (damage_missing, "no config.json in"),
        (damage_index, "names the shard"),
    ],
)
def test_broken_hosts_are_named_in_one_line(folder: Path, damage, message: str) -> None:
    damage(folder)
    for use in (inspect_host, load_host):
        with pytest.raises(InputError, match=message) as caught:
            use(str(folder))
        assert "\n" not in str(caught.value)


def test_a_host_without_pooler_needs_the_mean_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in weights.items() if not name.startswith("pooler")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"no pooler weights.*--head mean"):
        load_host(str(folder))
    assert load_host(str(folder), head="mean").head == "mean"


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="did you mean 'minilm-large'"):
        load_host("minilm-larg")
    with pytest.raises(InputError, match="neither an existing path nor a Hub id"):
        load_host("not a/host name")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        load_host("someone/some-host@main")


def test_verbalisers_must_differ_at_the_first_step(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pico_t5(tmp_path))
    assert len(label_words(tokenizer, ["negative", "positive"]).ids[0]) == 2  # word and end
    with pytest.raises(InputError, match="share their first token"):
        label_words(tokenizer, ["good film", "good plot"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Ref("hub", "org/name")),
        ("org/name@v1.0", Ref("hub", "org/name", "v1.0")),
        ("hf://org/name@refs/pr/1", Ref("hub", "org/name", "refs/pr/1")),
        ("./missing", Ref("path", "./missing")),
    ],
)
def test_references(text: str, expected: Ref) -> None:
    assert Ref.parse(text) == expected
    if expected.kind == "hub":
        assert Ref.parse(str(expected)) == expected


def test_a_folder_named_like_a_packaged_host_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = inspect_host(str(pico_bert(tmp_path / "minilm-base", 3))).fingerprint
    monkeypatch.chdir(tmp_path)
    assert inspect_host("./minilm-base").fingerprint == own
    assert find("./minilm-base").spec.fingerprint == own
