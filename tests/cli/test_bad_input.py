"""Input that cannot be used: one line on stderr, exit 2, and nothing written anywhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftport
from peftport.cli.main import run
from peftport.errors import HostMismatch, InputError
from peftport.testing.pico import pico_bert, pico_reviews

STUDY = """\
name: small
hosts: [./host, ./other]
pairs: [[./host, ./other]]
data: {target: ./reviews.csv, settings: [same], test: 20, validation: 5}
methods: {lora: {r: 2}}
source: {steps: 2, batch: 4}
target: {budgets: [0, 1], batch: 4}
seeds: [0]
inits: [ported, scratch]
rates: {table: {lora: {any: {any: {lr: 0.001}}}}, provenance: a test}
"""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hosts, a dataset, a module of the first host, a study and its finished store."""
    folder = tmp_path_factory.mktemp("prepared")
    pico_bert(folder / "host", 0)
    pico_bert(folder / "other", 1)
    rows = [f"{text},{'pos' if good else 'neg'}" for text, good in pico_reviews(300)]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert (
            run("train lora --host ./host --data reviews.csv -o module --steps 1 -q".split()) == 0
        )
        assert run("study run study.yaml --store store -q".split()) == 0
    return folder


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder."""
    shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder; SQLite's side files come and go with a reader."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if not path.name.endswith(("-wal", "-shm"))
    }


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def poison(file: Path) -> None:
    """NaN in the last tensor."""
    tensors = load_file(file)
    tensors[max(tensors)].view(-1)[0] = torch.nan
    save_file(tensors, file, {"format": "pt"})


def replace(old: str, new: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        text = (place / "study.yaml").read_text()
        assert old in text
        (place / "study.yaml").write_text(text.replace(old, new))

    return change


def nothing(place: Path) -> None:
    pass


TRAIN = "train lora --host ./host --data reviews.csv -o out --steps 1"
RUN = "study run study.yaml --store new"
CASES: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "unknown method": (
        TRAIN.replace("lora", "lorra"),
        nothing,
        ["unknown method 'lorra'", "did you mean 'lora'", "bottleneck, compacter, lora, prefix"],
    ),
    "unknown method in a study": (
        RUN,
        replace("methods: {lora", "methods: {lorra"),
        ["'lorra'", "did you mean 'lora'"],
    ),
    "unknown option of a method": (f"{TRAIN} --set rank=4", nothing, ["lora.rank", "known: r"]),
    "an impossible option": (f"{TRAIN} --set r=0", nothing, ["lora.r", "got 0"]),
    "an impossible rate": (f"{TRAIN} --lr -1", nothing, ["> 0", "-1"]),
    "unknown host": (TRAIN.replace("./host", "minilm"), nothing, ["'minilm'", "minilm-base"]),
    "missing host": (TRAIN.replace("./host", "./nosuch"), nothing, ["'./nosuch'", "folder"]),
    "missing data": (TRAIN.replace("reviews.csv", "no.csv"), nothing, ["no.csv"]),
    "missing data in a study": (RUN, replace("reviews.csv", "no.csv"), ["no.csv"]),
    "missing study": (RUN.replace("study.yaml", "no.yaml"), nothing, ["no.yaml"]),
    "unknown study": (RUN.replace("study.yaml", "quik"), nothing, ["'quik'", "'quick'"]),
    "missing store": ("study status nosuch", nothing, ["nosuch"]),
    "report of a missing store": ("report nosuch -o r.html", nothing, ["nosuch"]),
    "missing task": (f"{TRAIN} --task no.yaml", nothing, ["no.yaml"]),
    "wrong column": (
        f"{TRAIN} --text-column body", nothing, ["reviews.csv", "'body'", "text, label"],
    ),
    "a label column that is none": (f"{TRAIN} --label-column text", nothing, ["'text'", "label"]),
    "wrong column in a study": (
        RUN, replace("target: ./reviews.csv", "target: {ref: ./reviews.csv, text: body}"), ["body"],
    ),
    "truncated host": (
        TRAIN, lambda p: truncate(p / "host/model.safetensors"), ["model.safetensors"],
    ),
    "truncated host, inspected": (
        "hosts info ./host", lambda p: truncate(p / "host/model.safetensors"), ["safetensors"],
    ),
    "truncated host in a study": (
        RUN, lambda p: truncate(p / "other/model.safetensors"), ["model.safetensors"],
    ),
    "NaN in a host": (TRAIN, lambda p: poison(p / "host/model.safetensors"), ["NaN"]),
    "NaN in a study's host": (RUN, lambda p: poison(p / "other/model.safetensors"), ["NaN"]),
    "the folder is taken": (TRAIN.replace("-o out", "-o module"), nothing, ["'module'", "empty"]),
    "an output below a file": (TRAIN.replace("-o out", "-o study.yaml/x"), nothing, ["written"]),
    "unwritable store": (RUN.replace("new", "study.yaml/x"), nothing, ["study.yaml"]),
    "a store that is a file": (RUN.replace("new", "study.yaml"), nothing, ["study.yaml"]),
    "a store of another grid": (
        RUN.replace("new", "store"), replace("seeds: [0]", "seeds: [0, 1]"), ["store", "another"],
    ),
    "an export nowhere": (
        "study export store --format csv -o study.yaml/x.csv", nothing, ["study.yaml"],
    ),
    "a report nowhere": ("report store -o study.yaml/r.html", nothing, ["study.yaml"]),
    "unknown run": ("study module store ffff -o out", nothing, ["ffff"]),
    "unknown executor": (f"{RUN} --executor cluster", nothing, ["'cluster'", "local"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_writes_nothing(
    name: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command, damage, words = CASES[name]
    damage(place)
    before = files(place)
    capfd.readouterr()
    code = run([*command.split(), *(["-q"] if "info" not in command else [])])
    captured = capfd.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    for word in words:
        assert word in captured.err
    assert files(place) == before
    assert sorted(p.name for p in place.parent.iterdir()) == ["here"]


def test_what_the_cases_damage_works_undamaged(place: Path) -> None:
    for command in (
        TRAIN,
        RUN,
        "report store -o r.html",
        "study export store --format csv -o e.csv",
    ):
        assert run([*command.split(), "-q"]) == 0, command


def test_a_module_of_another_host_is_refused(place: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    module = peftport.load_module(place / "module")
    own = AutoModelForSequenceClassification.from_pretrained(place / "host")
    other = AutoModelForSequenceClassification.from_pretrained(place / "other")
    peftport.attach(own, module).detach()
    with pytest.raises(HostMismatch, match="port") as caught:
        peftport.attach(other, module)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [truncate, poison])
def test_a_damaged_module_is_refused(damage: Callable[[Path], None], place: Path) -> None:
    damage(place / "module/adapter_model.safetensors")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
        peftport.load_module(place / "module")


def test_shipped_weights_with_a_wrong_digest_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from peftport.hosts import packaged, published

    monkeypatch.setenv("PEFTPORT_CACHE", str(place / "cache"))
    monkeypatch.setattr(published, "SHA256", "0" * 64)
    monkeypatch.setattr(packaged, "SHA256", "0" * 64)
    code = run("train lora --host minilm-large --data reviews.csv -o out -q".split())
    err = capfd.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert "expected 000000000000" in err
    assert not (place / "out").exists()
