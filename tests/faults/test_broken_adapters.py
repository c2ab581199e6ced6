"""Whatever is wrong with an adapter's folder: one clear line, exit 2, no output, little memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftport.cli.main import run

Break = Callable[[Path], object]
WEIGHTS = ("adapter_model.safetensors", "adapter.safetensors")
CONFIG, HEAD = "adapter_config.json", "model_head.safetensors"
PORT = "port adapter --target other --strategy copy -o out -q"


def weights(folder: Path) -> Path:
    return next(folder / name for name in WEIGHTS if os.path.lexists(folder / name))


def text(name: str, content: str | bytes) -> Break:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def edit(name: str, /, **changes: Any) -> Break:
    """Change a JSON file; what AdapterHub keeps inside 'config' is changed there."""

    def change(folder: Path) -> None:
        facts = json.loads((folder / name).read_text())
        for key, value in changes.items():
            inner = facts.get("config")
            (inner if isinstance(inner, dict) and key not in facts else facts)[key] = value
        (folder / name).write_text(json.dumps(facts))

    return change


def plain(change: Break) -> Break:
    """A folder as its own library writes it, without peftport.json."""

    def both(folder: Path) -> None:
        (folder / "peftport.json").unlink()
        change(folder)

    return both


def config(**changes: Any) -> Break:
    return plain(edit(CONFIG, **changes))


def own(**changes: Any) -> Break:
    return edit("peftport.json", **changes)


def spec(**changes: Any) -> Break:
    def change(folder: Path) -> None:
        file = folder / "peftport.json"
        facts = json.loads(file.read_text())
        facts["spec"] |= changes
        file.write_text(json.dumps(facts))

    return change


def twice(folder: Path) -> None:
    """A key is given two times."""
    file = folder / CONFIG
    file.write_text(file.read_text().replace("{", '{"peft_type": "LORA", "config": {}, ', 1))
    file.write_text(file.read_text().replace("{", '{"peft_type": "LORA", "config": {}, ', 1))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def both(folder: Path) -> None:
        found = load_file(weights(folder))
        change(found)
        save_file({k: t.contiguous() for k, t in found.items()}, weights(folder))

    return both


def first(change: Callable[[torch.Tensor], torch.Tensor]) -> Break:
    def both(found: dict[str, torch.Tensor]) -> None:
        key = max(found, key=lambda k: found[k].numel())
        found[key] = change(found[key])

    return tensors(both)


def head(change: Callable[[torch.Tensor], torch.Tensor]) -> Break:
    """Change the head's weight in a PEFT folder."""

    def both(found: dict[str, torch.Tensor]) -> None:
        key = next(key for key in found if key.endswith("classifier.weight"))
        found[key] = change(found[key])

    return tensors(both)


def header(change: Callable[[dict[str, Any]], object], size: int | None = None) -> Break:
    """Change what the weights' header claims; ``size``: pretend that the file is so large."""

    def both(folder: Path) -> None:
        data = weights(folder).read_bytes()
        length = int.from_bytes(data[:8], "little")
        claims = json.loads(data[8 : 8 + length])
        entries = {k: v for k, v in claims.items() if k != "__metadata__"}
        change(entries)
        raw = json.dumps(entries).encode()
        weights(folder).write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])
        if size is not None:
            os.truncate(weights(folder), 8 + len(raw) + size)

    return both


def entry(**changes: Any) -> Break:
    return header(lambda entries: entries[min(entries)].update(changes))


def overlap(entries: dict[str, Any]) -> None:
    """Two tensors in one place."""
    one, two = sorted(entries, key=lambda k: entries[k]["data_offsets"])[:2]
    entries[two]["data_offsets"] = entries[one]["data_offsets"]


def sparse(size: int) -> Callable[[dict[str, Any]], None]:
    """A single tensor of so many bytes."""

    def change(entries: dict[str, Any]) -> None:
        entries.clear()
        name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
        entries[name] = {"dtype": "F16", "shape": [4, size // 8], "data_offsets": [0, size]}

    return change


def link(target: str) -> Break:
    def change(folder: Path) -> None:
        file = weights(folder)
        file.unlink()
        file.symlink_to(target)

    return change


def link_config(name: str, target: str) -> Break:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pickled(folder: Path) -> None:
    name = {"adapter_model.safetensors": "adapter_model.bin"}.get(
        weights(folder).name, "pytorch_adapter.bin"
    )
    torch.save(load_file(weights(folder)), folder / name)
    weights(folder).unlink()


def folder_as_weights(folder: Path) -> None:
    file = weights(folder)
    file.unlink()
    file.mkdir()


def pipe(folder: Path) -> None:
    file = weights(folder)
    file.unlink()
    os.mkfifo(file)


NAN, INF = float("nan"), float("inf")
DEEP = "[" * 200_000
BOTH: dict[str, tuple[Break, str]] = {
    "no config": (lambda f: (f / CONFIG).unlink(), "no adapter_config.json"),
    "empty config": (text(CONFIG, ""), "cannot read"),
    "config is not JSON": (text(CONFIG, "{'peft_type': 1}"), "cannot read"),
    "config is a list": (text(CONFIG, "[1]"), "must hold a JSON object"),
    "config is deep": (text(CONFIG, DEEP), "cannot read"),
    "config is deep objects": (text(CONFIG, '{"a":' * 200_000), "cannot read"),
    "config is huge": (text(CONFIG, b"{" + b" " * (17 << 20)), "larger than"),
    "config has a huge number": (text(CONFIG, '{"config": ' + "9" * 9999 + "}"), "cannot read"),
    "config is not UTF-8": (text(CONFIG, b'{"\xff": 1}'), "cannot read"),
    "config gives a key twice": (twice, "is there twice"),
    "config is of no library": (text(CONFIG, "{}"), "neither PEFT's"),
    "config is a device": (link_config(CONFIG, "/dev/zero"), "not a regular file"),
    "config leads nowhere": (link_config(CONFIG, "nowhere"), "not a regular file"),
    "no weights": (lambda f: weights(f).unlink(), "safetensors in"),
    "pickle only": (pickled, "convert_pickle"),
    "empty weights": (lambda f: os.truncate(weights(f), 0), "cannot read"),
    "weights of 7 bytes": (lambda f: os.truncate(weights(f), 7), "cannot read"),
    "truncated weights": (lambda f: os.truncate(weights(f), 900), "cannot read"),
    "weights one byte short": (
        lambda f: os.truncate(weights(f), weights(f).stat().st_size - 1), "cannot read",
    ),
    "weights with a tail": (
        lambda f: os.truncate(weights(f), weights(f).stat().st_size + 8), "cannot read",
    ),
    "header larger than any": (
        lambda f: weights(f).write_bytes((2**62).to_bytes(8, "little") + b"{}"), "cannot read",
    ),
    "header is no JSON": (
        lambda f: weights(f).write_bytes((64).to_bytes(8, "little") + b"x" * 64), "cannot read",
    ),
    "offsets beyond the end": (entry(data_offsets=[0, 1 << 40]), "cannot read"),
    "offsets backwards": (entry(data_offsets=[512, 0]), "cannot read"),
    "offsets that overlap": (header(overlap), "cannot read"),
    "shape whose product overflows": (entry(shape=[1 << 33, 1 << 33]), "cannot read"),
    "shape of negative size": (entry(shape=[-4, -32]), "cannot read"),
    "a terabyte that takes no disk": (
        header(sparse(1 << 40), 1 << 40), "bytes, more than a module",
    ),
    "half a gigabyte that takes no disk": (
        header(sparse(1 << 29), 1 << 29), "numbers, more than a module",
    ),
    "unknown dtype": (entry(dtype="Q7"), "cannot read"),
    "weights are a device": (link("/dev/zero"), "not a regular file"),
    "weights are a folder": (folder_as_weights, "not a regular file"),
    "weights link to a folder": (link("/"), "not a regular file"),
    "weights link to themselves": (lambda f: link(weights(f).name)(f), "not a regular file"),
    "weights are a pipe": (pipe, "not a regular file"),
    "weights are some other file": (link("/etc/hostname"), "cannot read"),
    "NaN": (first(lambda t: t * NAN), "NaN or infinity"),
    "infinity": (first(lambda t: t * INF), "NaN or infinity"),
    "integers": (first(lambda t: t.to(torch.int64)), "expected floating point"),
    "a bool": (first(lambda t: t > 0), "expected floating point"),
    "a tensor too many": (tensors(lambda t: t.update({"x.y": torch.ones(2)})), "not known"),
    "a tensor with a path": (tensors(lambda t: t.update({"../../x": torch.ones(2)})), "not known"),
    "no tensor at all": (tensors(lambda t: t.clear()), "holds no"),
    "a narrower tensor": (first(lambda t: t[..., :-1]), "shape"),
    "a tensor of rank 0": (first(lambda t: t.sum()), "()"),
    "an empty tensor": (first(lambda t: t[:0]), "(0, 32)"),
    "peftport.json is no JSON": (text("peftport.json", "{"), "cannot read"),
    "peftport.json is deep": (text("peftport.json", DEEP), "cannot read"),
    "peftport.json is a device": (link_config("peftport.json", "/dev/zero"), "not a regular file"),
    "peftport.json of the future": (own(version=99), "version 99"),
    "peftport.json without a spec": (own(spec=None), "is damaged"),
    "peftport.json with an unknown library": (own(library="other"), "'other'"),
    "peftport.json says native": (own(library="peftport"), "no module.safetensors"),
    "peftport.json with another method": (own(config={"method": "prefix"}), "disagree"),
    "peftport.json with no method": (own(config={"method": "magic"}), "unknown method 'magic'"),
    "peftport.json with another host": (own(fingerprint="0" * 64), "belongs to host 'host'"),
    "peftport.json whose host is a list": (own(host=["x"]), "must be a text"),
    "peftport.json whose notes are a list": (own(notes=[1]), "notes must be a table"),
    "peftport.json with an odd head": (own(notes={"head": "../x"}), "unknown head"),
    "peftport.json with odd classes": (own(notes={"classes": 7}), "classes must be a list"),
    "peftport.json with an odd task": (own(notes={"task": {"x": 1}}), "unknown key of task 'x'"),
    "a host of 100,000 layers": (spec(layers={"encoder": 10**5}), "layers out of range"),
    "a host of 10**12": (spec(d_model=10**12), "d_model out of range"),
    "a host without heads": (spec(heads=0), "heads out of range"),
    "a host of a family that is none": (spec(family="nosuch"), "unknown host family"),
    "a host that is nowhere": (own(host="./nowhere"), "--source"),
    "a host that is not named": (own(host=7), "must be a text"),
    "a host with a control character": (own(host="a\u202eb\x1b[2J"), "--source"),
    "a host with a lone surrogate": (own(host="\ud800"), "--source"),
    "a host of 5,000 letters": (own(host="x" * 5000), "--source"),
    "a host that is a URL": (own(host="https://example.org/x"), "--source"),
    "a host that is a command": (own(host="$(touch pwned)"), "--source"),
    "a host above": (own(host="../../../../etc"), "--source"),
    "a host of a user who is none": (own(host="~nosuchuser/x"), "--source"),
}  # fmt: skip
PEFT: dict[str, tuple[str, Break, str]] = {
    "unknown peft_type": ("peft", config(peft_type="LOHA"), "peft_type 'LOHA'"),
    "peft_type is a list": ("peft", config(peft_type=["LORA"]), "peft_type"),
    "peft_type is endless": ("peft", config(peft_type="A" * 10**6), "peft_type"),
    "r is a billion": ("peft", config(r=10**9), "lora_A [1000000000"),
    "r is beyond 64 bits": ("peft", config(r=10**30), "lora_A"),
    "r is a fraction": ("peft", config(r=1.5), "whole number"),
    "own r is a billion": ("peft", own(config={"method": "lora", "r": 10**9}), "disagree"),
    "alpha is NaN": ("peft", config(lora_alpha=NAN), "lora_alpha"),
    "an unknown layer": (
        "peft",
        tensors(lambda t: t.update({k.replace(".0.", ".9."): t.pop(k) for k in [min(t)]})),
        "",
    ),
    "a head of another width": ("peft", head(lambda t: t[..., :-1]), "of width 32 has"),
    "a head of no class": ("peft", head(lambda t: t[:0]), "of width 32 has"),
    "a head without a bias": (
        "peft",
        tensors(lambda t: t.pop(next(k for k in t if k.endswith("classifier.bias")))), "expected",
    ),
    "lora_B missing": (
        "peft", tensors(lambda t: t.pop(next(k for k in t if "lora_B" in k))), "lora_B",
    ),
    "modules_to_save is a number": ("peft", config(modules_to_save=3), "damaged"),
    "modules_to_save is a path": ("peft", config(modules_to_save=["../../x"]), "not known"),
    "no base model": ("peft", config(base_model_name_or_path=None), "--source"),
    "base model is a list": (
        "peft", config(base_model_name_or_path=["x"]), "base_model_name_or_path must be a text",
    ),
    "revision is a table": ("peft", config(revision={}), "must be a text"),
    "base model is a URL": (
        "peft", config(base_model_name_or_path="https://example.org/a"), "--source",
    ),
    "base model is a command": ("peft", config(base_model_name_or_path="x; touch y"), "--source"),
    "base model is on the Hub": ("peft", config(base_model_name_or_path="org/nosuch"), "--source"),
    "base model with a null": ("peft", config(base_model_name_or_path="a\x00b"), "--source"),
    "10**12 virtual tokens": ("prefix", config(num_virtual_tokens=10**12), "its config asks for"),
    "10**9 pairs": ("prefix", config(num_layers=10**9), "its config asks for"),
    "own length is 10**9": (
        "prefix",
        own(config={"method": "prefix", "length": 10**9, "positions": "past"}), "disagree",
    ),
    "own length is 10**12": (
        "prefix",
        own(config={"method": "prefix", "length": 10**12, "positions": "past"}), "below 2^31",
    ),
    "no heads": ("prefix", config(num_attention_heads=0), "num_attention_heads"),
    "a prefix of another shape": ("prefix", first(lambda t: t[:, :-1]), "shape"),
}  # fmt: skip
HUB: dict[str, tuple[str, Break, str]] = {
    "unknown model_type": ("hub", config(model_type="nosuch"), "unknown model_type 'nosuch'"),
    "model_type is a list": ("hub", config(model_type=["bert"]), "model_type"),
    "unknown architecture": ("hub", config(architecture="union"), "architecture 'union'"),
    "inner config is a list": ("hub", plain(edit(CONFIG, config=[1])), "lacks 'config'"),
    "name with a path": ("hub", config(name="../../x"), "not known"),
    "name with a direction": ("hub", config(name="a\u202eb"), "not known"),
    "name is a number": ("hub", config(name=7), "lacks"),
    "reduction of nothing": ("hub", config(reduction_factor=0), "reduction"),
    "reduction of almost nothing": ("hub", config(reduction_factor=1e-300), ""),
    "reduction is NaN": ("hub", config(reduction_factor=NAN), ""),
    "hidden_size is 10**12": ("pairs", spec(d_model=10**12), "d_model out of range"),
    "phm_dim is a billion": ("phm", config(phm_dim=10**9), ""),
    "own n is a billion": (
        "phm", own(config={"method": "compacter", "reduction": 4, "n": 10**9}), "",
    ),
    "prefix_length is 10**12": ("pairs", config(prefix_length=10**12), ""),
    "prefix_length is a list": ("pairs", config(prefix_length=[3]), "prefix_length"),
    "no model name": ("hub", config(model_name=None), "--source"),
    "model name is a number": ("hub", config(model_name=7), "model_name must be a text"),
    "a head with another name": (
        "hub",
        lambda f: save_file(
            {k.replace("bias", "b"): t for k, t in load_file(f / HEAD).items()}, f / HEAD
        ),
        "expected",
    ),
    "the head is a device": (
        "hub", link_config("model_head.safetensors", "/dev/zero"), "not a regular file",
    ),
    "the head's config is a folder": (
        "hub", link_config("head_config.json", "/"), "not a regular file",
    ),
    "the head is a pickle": (
        "hub", lambda f: (f / "model_head.safetensors").rename(f / "pytorch_model_head.bin"),
        "convert_pickle",
    ),
    "a bottleneck of another shape": ("hub", first(lambda t: t[:-1]), "shape"),
}  # fmt: skip
CASES = {
    **{f"{kind}: {name}": (kind, *case) for kind in ("peft", "hub") for name, case in BOTH.items()},
    **{f"peft: {name}": case for name, case in PEFT.items()},
    **{f"hub: {name}": case for name, case in HUB.items()},
}


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("host", "other"):
        (tmp_path / name).symlink_to(sound / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_a_broken_adapter_is_one_line(
    name: str, sound: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, damage, words = CASES[name]
    shutil.copytree(sound / kind, place / "adapter")
    damage(place / "adapter")
    capfd.readouterr()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = run(PORT.split())
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    captured = capfd.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 1300
    assert captured.err.strip().isprintable()
    assert words in captured.err
    assert sorted(p.name for p in place.iterdir()) == ["adapter", "host", "other"]
    assert grown_kb < 250_000, "memory follows what is there, not what is claimed"


@pytest.mark.parametrize("kind", ["peft", "prefix", "hub", "phm", "pairs"])
@pytest.mark.parametrize("change", [lambda f: None, plain(lambda f: None)], ids=["own", "plain"])
def test_what_the_cases_break_is_sound(kind: str, change: Break, sound: Path, place: Path) -> None:
    shutil.copytree(sound / kind, place / "adapter")
    change(place / "adapter")
    assert run(PORT.split()) == 0


OUTPUTS: dict[str, tuple[str, str]] = {
    "a folder in use": ("full", "not empty"),
    "a file": ("file", "not a folder"),
    "below a file": ("file/out", "cannot be written"),
    "a link": ("elsewhere", "not a folder"),
    "the adapter": ("adapter", "adapter's own folder"),
    "inside the adapter": ("adapter/out", "adapter's own folder"),
    "around the adapter": (".", "adapter's own folder"),
    "the adapter by another way": ("full/../adapter/out", "adapter's own folder"),
    "the adapter by a link": ("link/out", "adapter's own folder"),
}


@pytest.mark.parametrize("options", ["", "--overwrite"], ids=["new", "overwrite"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_is_taken(
    name: str, options: str, sound: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output, words = OUTPUTS[name]
    shutil.copytree(sound / "peft", place / "adapter")
    (place / "full").mkdir()
    (place / "full/mine.txt").write_text("mine")
    (place / "file").write_text("mine")
    (place / "link").symlink_to("adapter")
    (place / "elsewhere").symlink_to("full")
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    capfd.readouterr()
    code = run([*PORT.replace("-o out", f"-o {output}").split(), *options.split()])
    err = capfd.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert words in err or (options and "not overwritten" in err)
    assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


def test_a_full_disk_leaves_nothing(
    sound: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(sound / "peft", place / "adapter")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peftport.formats.files.os.fsync", full)
    assert run(PORT.replace("-o out", "-o new/deep/out").split()) == 2
    assert "No space left" in capfd.readouterr().err
    assert sorted(p.name for p in place.iterdir()) == ["adapter", "host", "other"]
