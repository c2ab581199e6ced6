"""``studies/paper.yaml`` by its own code path, with a local stand-in for the Hub's cache.

The hosts have the configurations of T5 v1.1 and Flan-T5 with random weights: exact ones when
PEFTPORT_EXACT is set (two hosts of 1 GB, minutes), else the same with fewer and narrower layers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
import torch
import yaml

from peftport.cli.main import run
from peftport.data.datasets import load_dataset
from peftport.hosts.known import KNOWN
from peftport.hosts.load import inspect_host
from peftport.study.files import shipped
from peftport.study.store import Store

EXACT = bool(os.environ.get("PEFTPORT_EXACT"))
SMALLER = {"d_model": 32, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2,
           "num_heads": 4}  # fmt: skip
PAPER = yaml.safe_load(shipped()["paper"].read_text())
HOSTS = [ref for ref in PAPER["hosts"] if "base" in ref]
TOKENIZER = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>",
             "unk_token": "<unk>", "extra_ids": 0}  # fmt: skip
#: sentences of Rotten Tomatoes that the stand-in for SST-2 holds too
SHARED = 25


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache with two hosts and SST-2, at the revisions that the study names."""
    folder = tmp_path_factory.mktemp("hub")
    target = load_dataset("rotten-tomatoes")
    texts = [e.text for e in target.split("source-train")]
    for number, ref in enumerate(HOSTS):
        host(snapshot(folder, "models", ref), ref, texts, seed=number)
    from peftport.data.sources.sst2 import Sst2

    protected = [e.text for e in target.split("test")][:SHARED]
    sst2(snapshot(folder, "datasets", Sst2.hub), protected)
    return folder


def snapshot(cache: Path, kind: str, ref: str) -> Path:
    """Where huggingface_hub looks for a repository at a revision."""
    name, _, revision = ref.partition("@")
    folder = cache / f"{kind}--{name.replace('/', '--')}" / "snapshots" / revision
    folder.mkdir(parents=True)
    return folder


def host(folder: Path, ref: str, texts: list[str], seed: int) -> None:
    from transformers import AutoConfig, T5ForConditionalGeneration

    facts = {**KNOWN[ref.partition("@")[0]].config, **({} if EXACT else SMALLER)}
    config = AutoConfig.for_model(**facts)
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder, max_shard_size="300MB" if EXACT else "2MB")
    assert (folder / "model.safetensors.index.json").exists()
    (folder / "config.json").write_text(json.dumps({**facts, "vocab_size": 32128}))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, "sentiment: negative", "sentiment: positive"] * 2),
        model_prefix=str(folder / "spiece"), vocab_size=2000, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, minloglevel=2,
        user_defined_symbols=["▁negative", "▁positive"],
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "T5Tokenizer",
                "eos_token": "</s>",
                "pad_token": "<pad>",
                "unk_token": "<unk>",
                "extra_ids": 0,
            }
        )
    )


def sst2(folder: Path, shared: list[str]) -> None:
    """Parquet files in the Hub's layout: columns and splits of stanfordnlp/sst2."""
    rows = [(text, n % 2) for n, text in enumerate(shared)]
    rows += [(f"a film number {n} that one may {'love' if n % 2 else 'hate'}", n % 2)
             for n in range(400)]  # fmt: skip
    tests = [(f"hidden sentence number {n} of the test part", -1) for n in range(30)]
    valid = [(f"a sentence number {n} to be tested on", n % 2) for n in range(40)]
    (folder / "data").mkdir()
    for part, own in (("train", rows), ("validation", valid), ("test", tests)):
        table = pa.table(
            {"idx": list(range(len(own))), "sentence": [t for t, _ in own],
             "label": [label for _, label in own]}
        )  # fmt: skip
        pq.write_table(table, folder / "data" / f"{part}-00000-of-00001.parquet")


@pytest.fixture
def stand_in(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def twelve_runs(folder: Path) -> Path:
    """Twelve runs of the paper's grid, at fewer steps and sentences."""
    slice_: dict[str, Any] = {
        **PAPER,
        "name": "paper-slice",
        "hosts": HOSTS,
        "pairs": "all",
        "methods": {"lora": {}},
        "seeds": [0],
        "data": {**PAPER["data"], "test": 40, "train": 200},
        "source": {**PAPER["source"], "steps": 4, "batch": 4},
        "target": {"budgets": [0, 2], "batch": 4},
        "strategy": {**PAPER["strategy"], "texts": 32},
        "extras": {"native": {"seeds": [0]}},
    }
    file = folder / "paper-slice.yaml"
    file.write_text(yaml.safe_dump(slice_))
    return file


@pytest.mark.usefixtures("stand_in")
def test_twelve_runs_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, store = twelve_runs(tmp_path), tmp_path / "store"
    given = ["--store", str(store), "--bank", "4", "--dtype", "bfloat16"]
    assert run(["study", "run", str(study), *given]) == 0
    said = capsys.readouterr().err
    assert "dropped from source-train other" in said
    with Store.read(store) as opened:
        status = opened.status()
        assert status["kinds"]["grid"]["done"] == 12
        assert status["missing"] == status["failed"] == 0
        # of those that fall into the part that source modules would have read
        dropped = opened.guard["dropped from source-train other"]
        assert 0 < dropped <= SHARED
    assert run(["study", "status", str(store)]) == 0
    assert f"dropped from source-train other {dropped}" in capsys.readouterr().out
    assert run(["study", "status", str(store), "--json"]) == 0
    guard = json.loads(capsys.readouterr().out)["guard"]
    assert guard["dropped from source-train other"] == dropped
    page = tmp_path / "report.html"
    assert run(["report", str(store), "-o", str(page)]) == 0
    assert "dropped from source-train other" in page.read_text()


@pytest.mark.usefixtures("stand_in")
def test_hosts_come_from_sharded_files_at_the_pinned_revision() -> None:
    one, two = (inspect_host(ref) for ref in HOSTS)
    assert one.family == "t5"
    assert one.fingerprint != two.fingerprint
    assert one.shape_digest == two.shape_digest
    if EXACT:
        assert one.shape_digest == KNOWN["google/t5-v1_1-base"].spec.shape_digest


@pytest.mark.usefixtures("stand_in")
def test_sst2_is_tested_on_its_validation_part() -> None:
    found = load_dataset("sst2")
    assert found.sizes["test"] == 40
    assert any("hidden" in note for note in found.notes)


@pytest.mark.usefixtures("stand_in")
def test_another_revision_is_not_taken_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    name = HOSTS[0].partition("@")[0]
    assert run(["hosts", "info", f"{name}@{'0' * 40}"]) == 2
    said = capsys.readouterr().err
    assert (
        "is not in the local Hub cache and HF_HUB_OFFLINE is set; give an existing folder" in said
    )
