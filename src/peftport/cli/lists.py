"""``peftport list``: the names that can be given elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from peftport.cli.options import echo_json, echo_table, json_option, quiet_option

Row = dict[str, Any]


@click.group()
def lists() -> None:
    """List what can be named in a command or in a study file.

    \b
    Example:
      peftport list methods
      peftport list strategies --json
    """


def _command(name: str, about: str, rows: Callable[[], list[Row]]) -> None:
    """One ``peftport list NAME``."""

    @json_option
    @quiet_option
    def show(as_json: bool, quiet: bool) -> None:
        found = rows()
        if as_json:
            echo_json(found)
            return
        header = list(found[0])
        echo_table(
            [key.replace("_", " ") for key in header],
            ([_cell(row[key]) for key in header] for row in found),
        )

    example = f"\b\nExample:\n  peftport list {name}\n  peftport list {name} --json"
    lists.command(name, help=f"{about}\n\n{example}")(show)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_cell(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "-"
    return str(value)


def _methods() -> list[Row]:
    from dataclasses import fields

    from peftport.methods.base import methods

    return [
        {
            "name": name,
            "options": {f.name: f.default for f in fields(cls.config_class)},
            "source": cls.reference_url,
        }
        for name, cls in methods
    ]


def _strategies() -> list[Row]:
    from peftport.porting.strategies.base import strategies

    return [
        {
            "name": name,
            "needs": [
                word
                for word, needed in (("texts", item.needs_texts), ("weights", item.needs_weights))
                if needed
            ],
            "options": dict(item.options),
            "choices": {option: list(words) for option, words in item.choices.items()},
            "source": item.reference_url,
            "what": _first_sentence(item),
        }
        for name, item in strategies
    ]


def _datasets() -> list[Row]:
    from peftport.data.sources.base import datasets

    return [
        {"name": name, "what": source.summary, "source": source.reference_url}
        for name, source in datasets
    ]


def _families() -> list[Row]:
    from peftport.hosts.families.base import families

    return [
        {
            "name": name,
            "model_types": sorted(family.model_types),
            "decides_by": family.decides_by,
            "source": family.reference_url,
        }
        for name, family in families
    ]


def _first_sentence(item: Any) -> str:
    paragraph = (item.__doc__ or "").strip().split("\n\n")[0]
    paragraph = re.sub(r":\w+:`([^`]+)`", r"\1", paragraph).replace("`", "")
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".:")


_command("methods", "List the PEFT methods and their options with defaults.", _methods)
_command("strategies", "List the ways to carry a module over to another host.", _strategies)
_command("datasets", "List the datasets known by name; files and Hub ids work too.", _datasets)
_command("families", "List the host architectures, and how each one decides.", _families)
