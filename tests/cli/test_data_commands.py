"""Commands that print data: names, hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftport.cli.main import run
from peftport.cli.options import parse_settings
from peftport.errors import InputError
from peftport.testing.pico import pico_bert


def as_json(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    assert run([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", {"lora", "prefix", "bottleneck", "compacter"}),
        ("strategies", {"copy", "pad", "ridge"}),
        ("datasets", {"rotten-tomatoes", "imdb-sentences", "sst2"}),
        ("families", {"bert", "t5"}),
    ],
)
def test_lists_as_json_and_as_a_table(
    what: str, names: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = as_json(capsys, "list", what)
    assert names <= {row["name"] for row in rows}
    assert all(row["source"].startswith("https://") for row in rows)
    assert run(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "name"
    assert [line.split()[0] for line in lines[1:]] == [row["name"] for row in rows]
    assert all(line == line.rstrip() for line in lines)


def test_strategies_show_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in as_json(capsys, "list", "strategies")}
    assert rows["copy"]["needs"] == []
    assert rows["ridge"]["needs"] == ["texts"]
    assert rows["subspace"]["needs"] == ["weights"]
    assert rows["subspace"]["options"]["directions"] > 0
    assert rows["subspace"]["choices"] == {}
    assert rows["distil"]["options"]["start"] == "nearest" in rows["distil"]["choices"]["start"]
    assert not any("`" in row["what"] for row in rows.values())
    assert run(["list", "strategies"]) == 0
    told = capsys.readouterr().out
    assert "weights" in told and "start=nearest,effect,silent,copy" in told


def test_methods_show_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in as_json(capsys, "list", "methods")}
    assert rows["lora"]["options"]["alpha"] == 16
    assert rows["lora"]["options"]["roles"] == ["q", "v"]
    assert run(["list", "methods"]) == 0
    assert "roles=q,v" in capsys.readouterr().out


def test_hosts_list_states_shape_parent_and_distance(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in as_json(capsys, "hosts", "list")}
    first = ["minilm-large", "minilm-large-tuned", "minilm-base", "minilm-base-tuned"]
    assert list(rows)[:4] == first
    assert rows["minilm-base"]["width"] == 256
    assert rows["minilm-large-tuned"]["parent"] == "minilm-large"
    assert rows["minilm-large-tuned"]["distance"] >= 0.1
    assert run(["hosts", "list"]) == 0
    assert "org/name@revision" in capsys.readouterr().out
    assert run(["hosts", "list", "-q"]) == 0
    assert "org/name@revision" not in capsys.readouterr().out


def test_hosts_info_equals_the_loaded_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peftport.hosts.load import load_host

    pico_bert(tmp_path / "host")
    facts = as_json(capsys, "hosts", "info", str(tmp_path / "host"))
    spec = load_host(str(tmp_path / "host")).spec
    assert facts["fingerprint"] == spec.fingerprint
    assert facts["tokenizer"] == spec.tokenizer
    assert facts["layers"] == {"encoder": 2}
    assert run(["hosts", "info", str(tmp_path / "host")]) == 0
    assert spec.fingerprint in capsys.readouterr().out


def test_settings_are_read_as_yaml() -> None:
    assert parse_settings(["rate=1e-3", "a=-1E5", "b=.5e2"]) == {"rate": 1e-3, "a": -1e5, "b": 50.0}
    assert parse_settings(["a=1e", "b=e3", "c=1e3x"]) == {"a": "1e", "b": "e3", "c": "1e3x"}
    assert parse_settings(["r=4", "roles=[q, v]", "alpha=1.5", "hidden=null", "x=a=b"]) == {
        "r": 4, "roles": ["q", "v"], "alpha": 1.5, "hidden": None, "x": "a=b",
    }  # fmt: skip


@pytest.mark.parametrize(
    "pairs", [["r"], ["=4"], ["r=1", "r=2"], ["roles=[q"], ["a=[&x 1, *x]"], ["a={b: 1, b: 2}"]]
)
def test_settings_that_are_none(pairs: list[str]) -> None:
    with pytest.raises(InputError, match="--set"):
        parse_settings(pairs)
