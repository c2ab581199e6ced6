"""YAML that a stranger may have written: size-limited, without aliases, tags and doubled keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from peftport.errors import InputError

MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (they can expand without bound), tags and doubled keys, which reads
    1e-3 as a number: YAML 1.1 wants a dot, and people write it all the same."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if self.peek_event().tag is not None:
            raise yaml.YAMLError(f"tags ({self.peek_event().tag}) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError("a key must be a word, not a list or mapping")
            if key_node.value in seen:
                raise yaml.YAMLError(f"key '{key_node.value}' is given twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$"),
    list("+-.0123456789"),
)


def read_yaml(path: Path, what: str = "") -> Any:
    """The content of a YAML file; ``what`` it is, for error messages.

    Raises:
        InputError: the file is missing, too large or not plain YAML.
    """
    named = f"{what} '{path}'" if what else str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {named}: {error.strerror}; give a YAML file") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{named} is larger than {MAX_BYTES} bytes; give a page of YAML")
    return parse_yaml(raw, named)


def parse_yaml(raw: bytes | str, name: str) -> Any:
    """The content of YAML text; ``name`` is for error messages."""
    try:
        return yaml.load(raw, Loader=_Loader)
    except (yaml.YAMLError, ValueError, UnicodeDecodeError, RecursionError) as error:
        text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{name} is not valid YAML: {' '.join(text.split())[:200]}") from None
