"""Adapters whose files were changed at random are ported, or refused in one line: nothing else.

PEFTPORT_EXAMPLES=400 makes so many of each kind; ``make fuzz`` does.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import peftport
from peftport.errors import InputError, RunError

KINDS = ("peft", "prefix", "hub", "phm", "pairs")
FILES = (
    "adapter_config.json", "peftport.json", "adapter_model.safetensors", "adapter.safetensors",
    "head_config.json", "model_head.safetensors",
)  # fmt: skip
few = settings(
    max_examples=int(os.environ.get("PEFTPORT_EXAMPLES", "40")),
    deadline=None,
    derandomize="PEFTPORT_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([2**31, 2**63, 10**12, 10**30, -(2**63)])
    | st.floats()
    | st.sampled_from(["lora", "LORA", "past", "bert", "../x", "/dev/zero", "\ud800", "a\u202eb"])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def check(folder: Path, root: Path, hostile: Any) -> None:
    """Port and load it; the result loads too."""
    with hostile.reading(folder.parent):
        port_and_load(folder, root)


def port_and_load(folder: Path, root: Path) -> None:
    out = folder.parent / "out"
    try:
        peftport.port(folder, str(root / "other"), out, source=str(root / "host"), strategy="copy")
    except (InputError, RunError) as error:
        assert "\n" not in str(error)
        assert [p.name for p in folder.parent.iterdir()] == ["adapter"]
    else:
        peftport.load_module(out, spec=peftport.inspect_host(str(root / "other")))
    try:
        peftport.load_module(folder)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("own", [True, False], ids=["own", "plain"])
@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data())
def test_bytes(kind: str, own: bool, data: st.DataObject, sound: Path, hostile: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(sound / kind, Path(place) / "adapter"))
        if not own:
            (folder / "peftport.json").unlink()
        names = [name for name in FILES if (folder / name).exists()]
        file = folder / data.draw(st.sampled_from(names))
        changed = bytearray(file.read_bytes())
        where = st.integers(0, min(len(changed), 3000) - 1)
        for at, byte in data.draw(st.lists(st.tuples(where, st.integers(0, 255)), max_size=4)):
            changed[at] = byte
        cut = data.draw(st.none() | st.integers(0, len(changed)))
        file.write_bytes(bytes(changed[:cut]))
        check(folder, sound, hostile)


def spots(facts: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON document."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(facts, dict | list):
        inner = list(facts.items() if isinstance(facts, dict) else enumerate(facts))
    deeper = [spot for key, value in inner for spot in spots(value, (*path, key))]
    return [path, *deeper] if path else deeper


@pytest.mark.parametrize("own", [True, False], ids=["own", "plain"])
@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data())
def test_values(kind: str, own: bool, data: st.DataObject, sound: Path, hostile: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(sound / kind, Path(place) / "adapter"))
        if not own:
            (folder / "peftport.json").unlink()
        names = [name for name in FILES if name.endswith("json") and (folder / name).exists()]
        file = folder / data.draw(st.sampled_from(names))
        facts = json.loads(file.read_text())
        for _ in range(data.draw(st.integers(1, 2))):
            *above, key = data.draw(st.sampled_from(spots(facts)))
            spot = facts
            for step in above:
                spot = spot[step]
            spot[key] = data.draw(values)
        file.write_text(json.dumps(facts))
        check(folder, sound, hostile)
