"""``peftport port``: folders in, folders out, and nothing changed that need not be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import peftport
from peftport.cli.main import run
from peftport.errors import HostMismatch, InputError
from peftport.formats import save_module
from peftport.hosts.load import inspect_host
from peftport.methods.base import Module, config_from_json, method_of
from peftport.testing.pico import pico_bert, pico_reviews, pico_t5

HUB = ("adapter.safetensors", "model_head.safetensors")


def drawn(host: Path, facts: dict[str, Any], **fields: Any) -> Module:
    """A module with every tensor drawn at random, and a head."""
    spec = inspect_host(str(host))
    config = config_from_json(facts)
    rng = torch.Generator().manual_seed(1)
    state = method_of(config).init(spec, config, rng)
    head = {"classifier.weight": torch.zeros(2, spec.d_model), "classifier.bias": torch.zeros(2)}
    if spec.family != "bert":
        head = {}
    for tensors in (*state.values(), head):
        for name, tensor in tensors.items():
            tensors[name] = 0.3 * torch.randn(tensor.shape, generator=rng)
    given = {"fingerprint": spec.fingerprint, "host": str(host), "notes": {}} | fields
    return Module(config, state, head, **given)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hosts, texts, and adapters: one that PEFT itself wrote, one of AdapterHub's layout."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("host", "sibling")):
        pico_bert(root / name, seed)
    pico_bert(root / "wide", 2, d_model=48, layers=3)
    pico_t5(root / "t5", 0)
    texts = [text for text, _ in pico_reviews(200)]
    (root / "texts.txt").write_text("\n".join(texts) + "\n")
    rows = [json.dumps({"review": text, "label": 7}) for text in texts]
    (root / "texts.jsonl").write_text("\n".join(rows) + "\n")
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(root / "host", num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    theirs = peft.get_peft_model(model, config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name or "classifier" in name:
            parameter.data.normal_(0, 0.3)
    theirs.save_pretrained(root / "lora")
    module = drawn(root / "host", {"method": "bottleneck", "reduction": 4})
    save_module(module, root / "bottleneck", spec=inspect_host(str(root / "host")))
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with links to what was made."""
    for item in made.iterdir():
        (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logits(model: Any) -> Tensor:
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def classifier(host: Path) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(host, num_labels=2).eval()


def loaded(host: Path, adapter: Path) -> Tensor:
    """What PEFT computes with a folder on a host."""
    return logits(peft.PeftModel.from_pretrained(classifier(host), str(adapter)).eval())


def bytes_of(file: Path) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in load_file(file).items()}


def port(*args: str) -> int:
    return run(["port", *args])


# Round trips -------------------------------------------------------------------------------------


def test_a_copy_is_what_loading_the_original_on_the_other_host_is(place: Path) -> None:
    assert port("lora", "--target", "sibling", "--strategy", "copy", "-o", "out", "-q") == 0
    before, after = (bytes_of(place / n / "adapter_model.safetensors") for n in ("lora", "out"))
    assert after == before  # PEFT's own names and numbers, bit for bit
    ours = loaded(place / "sibling", place / "out")
    torch.testing.assert_close(ours, loaded(place / "sibling", place / "lora"), atol=1e-6, rtol=0)
    assert not torch.allclose(ours, loaded(place / "host", place / "lora"), atol=1e-2)
    assert not torch.allclose(ours, logits(classifier(place / "sibling")), atol=1e-2)
    module = peftport.load_module(place / "out")
    model = classifier(place / "sibling")
    with peftport.attach(model, module):
        torch.testing.assert_close(logits(model), ours, atol=1e-5, rtol=0)


def test_peft_reads_what_was_ported_to_another_shape(place: Path) -> None:
    args = "lora --target wide --strategy ridge --texts texts.txt --norm-match -o out -q"
    assert port(*args.split()) == 0
    module = peftport.load_module(place / "out", spec=inspect_host("wide"))
    model = classifier(place / "wide")
    with peftport.attach(model, module):
        expected = logits(model)
    torch.testing.assert_close(loaded(place / "wide", place / "out"), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, logits(model), atol=1e-2)
    config = json.loads((place / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "wide"


def test_adapterhubs_folder_stays_the_same_file_by_file(place: Path) -> None:
    assert port("bottleneck", "--target", "sibling", "--strategy", "copy", "-o", "out", "-q") == 0
    for name in HUB:
        assert bytes_of(place / "out" / name) == bytes_of(place / "bottleneck" / name)
    for name in ("adapter_config.json", "head_config.json"):
        before, after = (
            json.loads((place / folder / name).read_text()) for folder in ("bottleneck", "out")
        )
        assert before.pop("model_name") == str((place / "host").resolve())
        assert after.pop("model_name") == "sibling"
        assert after == before
    (place / "out/peftport.json").unlink()
    back, was = (peftport.load_module(place / f) for f in ("out", "bottleneck"))
    assert [n for n, _ in back.tensors()] == [n for n, _ in was.tensors()]
    assert back.digest == was.digest


def test_there_and_back_is_the_same_module(place: Path) -> None:
    assert port("bottleneck", "--target", "sibling", "--strategy", "copy", "-o", "a", "-q") == 0
    assert port("a", "--target", "host", "--strategy", "copy", "-o", "b", "-q") == 0
    was, now = (peftport.load_module(place / folder) for folder in ("bottleneck", "b"))
    assert (was.digest, was.fingerprint) == (now.digest, now.fingerprint)
    assert now.notes["source_notes"]["ported"]["target"]["host"] == "sibling"


def test_the_function_does_what_the_command_does(place: Path) -> None:
    assert port("lora", "--target", "wide", "--strategy", "pad", "-o", "one", "-q") == 0
    result = peftport.port("lora", "wide", "two", strategy="pad")
    assert result.folder == place / "two"
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md", "peftport.json"):
        assert (place / "one" / name).read_bytes() == (place / "two" / name).read_bytes()


def test_another_format_is_explained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head on mean-pooled states is no library's own, whatever wrote the folder."""
    facts = {"notes": {"head": "mean"}}
    save_module(
        drawn(place / "host", {"method": "lora", "r": 2}),
        place / "mean",
        spec=inspect_host("host"),
    )
    own = json.loads((place / "mean/peftport.json").read_text())
    (place / "mean/peftport.json").write_text(json.dumps(own | facts))
    assert port(*"mean --target sibling --strategy copy -o out".split()) == 0
    captured = capsys.readouterr()
    words = "written as a peftport folder, not as peft: a head on mean-pooled states"
    assert words in captured.out
    assert words in (place / "out/README.md").read_text()
    assert (place / "out/module.safetensors").exists()


# Hosts -------------------------------------------------------------------------------------------


def test_the_source_is_what_the_adapter_says(place: Path) -> None:
    facts = json.loads((place / "lora/adapter_config.json").read_text())
    assert facts["base_model_name_or_path"].endswith("host")
    result = peftport.port("lora", "sibling", "out", strategy="copy")
    spec = inspect_host("host")
    assert result.facts["source"]["fingerprint"] == spec.fingerprint
    assert result.module.fingerprint == inspect_host("sibling").fingerprint
    assert result.facts["target"]["host"] == result.module.host == "sibling"


def test_a_wrong_source_names_both_hosts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = "bottleneck --target wide --source sibling --strategy pad -o out -q"
    assert port(*args.split()) == 2
    err = capsys.readouterr().err
    for name in ("host", "sibling"):
        assert f"/{name}' (" in err or f"'{name}' ({inspect_host(name).fingerprint[:12]})" in err
        assert inspect_host(name).fingerprint[:12] in err
    assert not (place / "out").exists()


def test_loading_or_attaching_on_another_host_names_the_command(place: Path) -> None:
    sibling = inspect_host("sibling")
    with pytest.raises(HostMismatch, match="peftport port bottleneck --target HOST -o OUT") as one:
        peftport.load_module("bottleneck", spec=sibling)
    with pytest.raises(HostMismatch, match=r"peftport port ADAPTER --target .*sibling -o OUT"):
        peftport.attach(classifier(place / "sibling"), peftport.load_module("bottleneck"))
    assert sibling.fingerprint[:12] in str(one.value)
    assert inspect_host("host").fingerprint[:12] in str(one.value)


# Auto --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "--texts texts.txt"])
def test_auto_gets_what_is_known_and_its_reason_is_kept(
    options: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Any] = []

    def choose(source: Any, target: Any, module: Any, *, have_texts: bool) -> Any:
        seen[:] = [source.fingerprint, target.fingerprint, module.config.method, have_texts]
        return SimpleNamespace(strategy="pad", why="the moon is | full")

    monkeypatch.setitem(
        sys.modules,
        "peftport.porting.auto",
        SimpleNamespace(choose=choose),  # type: ignore[arg-type]
    )
    args = f"lora --target wide -o out {options}"
    assert port(*args.split(), "--dry-run") == 0
    assert "by pad: the moon is | full" in capsys.readouterr().out
    assert port(*args.split()) == 0
    hosts = [inspect_host(name).fingerprint for name in ("host", "wide")]
    assert seen == [*hosts, "lora", bool(options)]
    assert "the moon is" in (place / "out/README.md").read_text()
    notes = json.loads((place / "out/peftport.json").read_text())["notes"]
    assert notes["ported"]["why"] == "the moon is | full"


# Texts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts", ["texts.txt", "texts.jsonl --text-column review", "rotten-tomatoes"]
)
def test_where_texts_come_from(texts: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = f"lora --target wide --strategy ridge -o out --json --text-count 40 --texts {texts}"
    assert port(*args.split()) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ported"]["texts"] == 40
    assert set(facts["ported"]["maps"]) >= {"read head"}
    assert all(m["held_out"] >= 0 for m in facts["ported"]["maps"].values())


def test_texts_are_the_first_different_ones() -> None:
    from peftport.port_folder.texts import unlike

    assert unlike(["A b.", "", "a  B", "...", "c", "d"], 2, "x") == ["A b.", "c"]


def test_labels_change_nothing(place: Path) -> None:
    """The same texts with other labels, or none, give the same bytes."""
    args = "lora --target wide --strategy ridge -q --text-column review --texts"
    assert port(*args.split(), "texts.jsonl", "-o", "one") == 0
    lines = [json.loads(line) for line in (place / "texts.jsonl").read_text().splitlines()]
    (place / "bare.jsonl").write_text("".join(json.dumps({"review": r["review"]}) + "\n"
                                              for r in lines))  # fmt: skip
    assert port(*args.split(), "bare.jsonl", "-o", "two") == 0
    name = "adapter_model.safetensors"
    assert (place / "one" / name).read_bytes() == (place / "two" / name).read_bytes()


BAD: dict[str, tuple[str, list[str]]] = {
    "unknown strategy": ("--strategy copi -o out", ["'copi'", "did you mean 'copy'", "auto"]),
    "unknown layer rule": ("--layers deep -o out", ["--layers", "'depth', 'cka'"]),
    "unknown target": ("--target nosuch -o out", ["'nosuch'", "minilm-base"]),
    "unknown source": ("--source ./nosuch -o out", ["./nosuch"]),
    "copy across widths": ("--strategy copy -o out", ["d_model 32 -> 48", "ridge"]),
    "texts are needed": ("--strategy ridge -o out", ["--texts"]),
    "norm match needs texts": ("--strategy pad --norm-match -o out", ["--texts"]),
    "cka needs texts": ("--strategy pad --layers cka -o out", ["--texts", "--layers depth"]),
    "missing texts": ("--strategy ridge --texts no.txt -o out", ["no.txt"]),
    "unknown dataset": ("--strategy ridge --texts rotten -o out", ["'rotten'", "rotten-tomatoes"]),
    "no such column": ("--strategy ridge --texts texts.jsonl -o out", ["'text'", "--text-column"]),
    "too few texts": ("--strategy ridge --texts texts.txt --text-count 3 -o out", ["16", "3"]),
    "texts are weights": ("--strategy ridge --texts host/model.safetensors -o out", ["UTF-8"]),
    "texts are a folder of none": ("--strategy ridge --texts host -o out", ["host", "csv"]),
    "no output": ("--strategy pad", ["-o", "--dry-run"]),
    "rank 0": ("--strategy pad --rank 0 -o out", ["--rank"]),
    "too many tokens": (
        "--strategy ridge --texts texts.txt --max-tokens 5000 -o out", ["96", "--max-tokens"],
    ),
    "no slot": ("--strategy pad --template x -o out", ["{text}"]),
    "another kind of host": ("--strategy pad --target t5 -o out", ["bert", "t5"]),
    "unknown option of a strategy": ("--strategy pad --set x=1 -o out", ["'x'"]),
    "a missing adapter": ("--strategy pad --adapter nosuch -o out", ["--adapter"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_one_line_and_write_nothing(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, words = BAD[name]
    target = [] if "--target" in options else ["--target", "wide"]
    before = sorted(p.name for p in place.iterdir())
    assert port("lora", *target, *options.split(), "-q") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
    assert sorted(p.name for p in place.iterdir()) == before


# What is printed and written ---------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["pad", "ridge"])
def test_a_dry_run_prints_the_plan_and_builds_nothing(
    strategy: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run computes nothing")

    for name in ("load_host", "read_texts", "apply_port", "save_module"):
        monkeypatch.setattr(f"peftport.port_folder.run.{name}", never)
    args = f"lora --target wide --strategy {strategy} --texts texts.txt --dry-run"
    before = sorted(p.name for p in place.iterdir())
    assert port(*args.split()) == 0
    out = capsys.readouterr().out
    assert "encoder.2.self_attn.v" in out
    assert "d_model 48" in out
    assert port(*args.split(), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["dry_run"] is True
    assert (facts["strategy"], facts["format"]) == (strategy, "peft")
    assert len(facts["plan"]["sites"]) == 6
    assert sorted(p.name for p in place.iterdir()) == before


def test_data_free_strategies_build_no_host(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftport.port_folder.run.load_host", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: 1 / 0)
    for strategy in ("pad", "subspace"):
        args = f"lora --target wide --strategy {strategy} -o {strategy} -q --texts texts.txt"
        assert port(*args.split()) == 0


def test_another_rank(place: Path) -> None:
    assert port(*"lora --target sibling --strategy copy --rank 2 -o out -q".split()) == 0
    assert json.loads((place / "out/adapter_config.json").read_text())["r"] == 2


def test_layers_by_cka(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = "lora --target sibling --strategy copy --layers cka --texts texts.txt -o out --json"
    assert port(*args.split()) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ported"]["layers"] == facts["layers"] == "cka"
    assert facts["plan"]["layer_map"] == {"encoder": [0, 1]}


def test_the_card_says_what_was_measured_and_what_was_not(place: Path) -> None:
    args = "lora --target wide --strategy ridge --texts texts.txt -o out -q --base-model org/wide"
    assert port(*args.split()) == 0
    text = (place / "out/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["base_model"] == "org/wide"
    assert facts["library_name"] == "peft"
    assert {"peftport", "lora"} <= set(facts["tags"])
    for words in ("`ridge`", "| encoder | 2 | 1 |", "held out", "is unknown", "head was mapped",
                  "effect, source", inspect_host("wide").fingerprint[:16]):  # fmt: skip
        assert words in body, words
    config = json.loads((place / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/wide"
    notes = json.loads((place / "out/peftport.json").read_text())["notes"]["ported"]
    residual = notes["maps"]["read head"]["held_out"]
    assert f"| `read head` | {residual:.3f} |" in body


def test_the_card_says_what_became_of_layers_without_a_partner(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert port(*"lora --target wide --strategy pad -o deep -q".split()) == 0
    cards, said = {}, {}
    for strategy in ("ridge", "effect"):
        args = f"deep --target host --strategy {strategy} --texts texts.txt -o {strategy}"
        assert port(*args.split()) == 0
        said[strategy] = capsys.readouterr().out
        cards[strategy] = (place / strategy / "README.md").read_text()
    assert "Source layers that went nowhere: encoder 1." in cards["ridge"]
    assert "without a partner, taken over with the next one: encoder 1." in cards["effect"]
    assert "fitted to the predictions" in cards["effect"]
    assert "| `fit of encoder.1.self_attn.v` |" in cards["effect"]
    assert "--norm-match" not in said["effect"]


def test_names_cannot_break_the_card(place: Path) -> None:
    name = "a`|<b>\u202e\x1b"
    (place / name).symlink_to(place / "lora")
    assert port(name, "--target", "sibling", "--strategy", "copy", "-o", "out", "-q") == 0
    text = (place / "out/README.md").read_text()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "`a'¦<b>\\u202e\\u001b`" in text


def test_overwriting_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = "lora --target sibling --strategy copy -o out -q"
    assert port(*args.split()) == 0
    assert port(*args.split()) == 2
    assert "not empty" in capsys.readouterr().err
    assert port(*args.split(), "--overwrite", "--rank", "2") == 0
    assert json.loads((place / "out/adapter_config.json").read_text())["r"] == 2


def test_what_was_measured_on_the_source_is_not_said_of_the_target(place: Path) -> None:
    notes = {"scores": {"accuracy": 0.9}, "task": {"template": "so: {text}"}, "classes": ["a", "b"]}
    module = drawn(place / "host", {"method": "lora", "r": 2}, notes=notes)
    save_module(module, place / "scored", spec=inspect_host("host"))
    result = peftport.port("scored", "sibling", "out", strategy="copy")
    assert "scores" not in result.module.notes
    assert result.module.notes["source_notes"]["scores"] == {"accuracy": 0.9}
    assert result.module.notes["classes"] == ["a", "b"]
    assert result.prepared.task.template == "so: {text}"


def test_a_word_host(place: Path) -> None:
    module = drawn(place / "t5", {"method": "lora", "r": 2})
    save_module(module, place / "word", spec=inspect_host("t5"))
    pico_t5(place / "t5-wide", 4, d_model=48)
    result = peftport.port("word", "t5-wide", "out", strategy="ridge", texts="texts.txt")
    assert result.plan.head == "none"
    assert "answers with a word" in (place / "out/README.md").read_text()


def test_the_same_bytes_in_another_process(place: Path) -> None:
    args = "lora --target wide --strategy ridge --texts texts.txt -q -o".split()
    assert port(*args, "one") == 0
    subprocess.run([sys.executable, "-m", "peftport", "port", *args, "two"], check=True)
    for file in (place / "one").iterdir():
        assert file.read_bytes() == (place / "two" / file.name).read_bytes(), file.name


def test_python_errors_are_input_errors(place: Path) -> None:
    tries: list[Callable[[], Any]] = [
        lambda: peftport.port("nosuch", "wide", "out"),
        lambda: peftport.port("lora", "wide", "out", strategy="pad", rank=0),
        lambda: peftport.port("lora", "wide", "out", layers="deep", strategy="pad"),
        lambda: peftport.port("lora", "wide", "out", strategy="ridge", texts=["one", "two"]),
        lambda: peftport.port("lora", "wide", "out", strategy="ridge", texts=[]),
        lambda: peftport.port("lora", "w" * 5000, "out", strategy="pad"),
        lambda: peftport.port("w" * 5000, "wide", "out", strategy="pad"),
        lambda: peftport.port("~nosuchuser/x", "wide", "out", strategy="pad"),
    ]
    for attempt in tries:
        with pytest.raises(InputError):
            attempt()
    assert not (place / "out").exists()
