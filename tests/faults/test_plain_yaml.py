"""YAML of strangers is data or one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peftport.errors import InputError
from peftport.plain_yaml import MAX_BYTES, parse_yaml, read_yaml

TOKENS = ["a", "b: ", ": ", "- ", "[", "]", "{", "}", ",", "\n", "  ", "? ", "!!", "!", "&a ", "*a",
          "bool", "timestamp", "set", "str", "<<", "'", '"', "#", "|", ">", "%", "@", "`", "---",
          "1", "0x", "1e", ".", "_", "-", "+", ":", "2024-13-45", "\t", "\x00", "é"]  # fmt: skip


@given(st.lists(st.sampled_from(TOKENS), max_size=25).map("".join))
@example("{[1]: 2}")
@example("? {a: 1}\n: b")
@example("a: !!timestamp x")
@example("a: !!bool x")
@example("[" * 3000)
@example("9" * 6000)
@settings(max_examples=2000, deadline=None)
def test_any_text_is_data_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, "it")
    except InputError as error:
        assert str(error).startswith("it is not valid YAML: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/name:os.system ''", "tags"),
        ("a: !!str 1", "tags"),
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("{[1]: 2}", "a key must be a word"),
    ],
)
def test_what_is_left_out_of_yaml(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse_yaml(text, "it")


def test_a_file_says_which_it_is(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    with pytest.raises(InputError, match=r"cannot read the task '.*some.yaml': No such file"):
        read_yaml(file, "the task")
    file.write_text("a: 1e-3\n")
    assert read_yaml(file) == {"a": 0.001}
    file.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(InputError, match=r"some.yaml is larger than"):
        read_yaml(file)
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"some.yaml is not valid YAML"):
        read_yaml(file)
