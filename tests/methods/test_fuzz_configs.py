"""A config of any values is a config or one line, and so is a fresh module of it."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftport.errors import InputError
from peftport.hosts.families.base import families
from peftport.hosts.spec import HostSpec
from peftport.methods.base import check_config, config_from_json, methods

WORDS = st.sampled_from(["q", "v", "ff", "self_attn", "encoder", "past", "relu", "gelu", "", "x"])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(1, 64),
    st.floats(),
    WORDS,
    st.lists(WORDS, max_size=3),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(WORDS, st.integers(), max_size=1),
)


@pytest.fixture(scope="module")
def spec() -> HostSpec:
    from transformers import BertConfig

    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    return families.get("bert")().describe(config)


@pytest.mark.parametrize("method", [name for name, _ in methods])
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_values_are_a_config_or_one_line(
    method: str, data: st.DataObject, spec: HostSpec
) -> None:
    names = [f.name for f in fields(methods.get(method).config_class)]
    given_values = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))
    try:
        config = config_from_json({"method": method, **given_values})
        check_config(spec, config)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert config_from_json(config.to_json()) == config
