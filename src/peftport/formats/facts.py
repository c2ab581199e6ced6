"""peftport.json: what a module's folder says beyond the library's own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peftport.errors import InputError
from peftport.formats import keys
from peftport.formats.files import read_json, write_json
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, Module, config_from_json, method_of

FILE = "peftport.json"
VERSION = 1

#: fields that no library's file states: they matter to training only
_TRAINING_ONLY = {"init_std", "hidden"}
#: fields that follow from the sites, which are compared as such
_BY_SITES = {"roles", "blocks", "stacks"}
#: numbers of a host's shape
_WIDTHS = ("d_model", "heads", "d_kv", "d_ff", "vocab_size")


@dataclass(frozen=True)
class Facts:
    """Parsed peftport.json.

    Attributes:
        library: ``peft``, ``adapterhub`` or ``peftport``.
        config: the module's full config.
        spec: shape of its host (no tokenizer or weight digest).
        fingerprint, host, notes: as in :class:`Module`.
    """

    library: str
    config: MethodConfig
    spec: HostSpec
    fingerprint: str
    host: str
    notes: Mapping[str, Any]


def write(folder: Path, module: Module, spec: HostSpec, library: str, reasons: list[str]) -> None:
    write_json(
        folder / FILE,
        {
            "version": VERSION,
            "library": library,
            "config": module.config.to_json(),
            "spec": spec.to_json() | {"gated": any(s.role == "gate" for s in spec.sites)},
            "fingerprint": module.fingerprint,
            "host": module.host,
            "notes": dict(module.notes),
            "why_no_library": reasons,
        },
    )


def read(folder: Path) -> Facts | None:
    """The facts of a folder, None without the file. Raises InputError when it is damaged."""
    file = folder / FILE
    if not file.is_file():
        return None
    raw = read_json(file)
    if raw.get("version") != VERSION:
        raise InputError(
            f"'{file}' has version {raw.get('version')!r}, this peftport reads {VERSION}"
        )
    try:
        shape = raw["spec"]
        layers = {str(stack): int(count) for stack, count in shape["layers"].items()}
        if not all(0 <= count <= 10_000 for count in layers.values()):
            raise ValueError("layers out of range")
        for name in _WIDTHS:
            if not 1 <= int(shape[name]) <= 1 << 24:
                raise ValueError(f"{name} out of range")
        for name in ("library", "fingerprint", "host"):
            if not isinstance(raw[name], str):
                raise TypeError(f"{name} must be a text")
        _check_notes(raw["notes"])
        facts = Facts(
            library=raw["library"],
            config=config_from_json(raw["config"]),
            spec=keys.describe({**shape, "layers": layers}, bool(shape["gated"])),
            fingerprint=raw["fingerprint"],
            host=raw["host"],
            notes=dict(raw["notes"]),
        )
    except InputError:
        raise
    except Exception as error:  # transformers' configs check themselves, with types of their own
        raise InputError(
            f"'{file}' is damaged ({type(error).__name__}: {error}); get the folder again, or "
            "delete this file to read what the library's own files say"
        ) from None
    if facts.library not in ("peft", "adapterhub", "peftport"):
        raise InputError(f"'{file}' names the library '{facts.library}', which is not known")
    return facts


def _check_notes(notes: object) -> None:
    """The notes are free but for those that other code reads."""
    if not isinstance(notes, dict):
        raise TypeError("notes must be a table")
    head, classes, task = (notes.get(name) for name in ("head", "classes", "task"))
    if head not in (None, "", "pooler", "mean"):
        raise ValueError(f"unknown head {head!r}")
    if not isinstance(task, dict | None):
        raise TypeError("task must be a table")
    if classes is not None and not (
        isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    ):
        raise TypeError("classes must be a list of names")


def agree(ours: MethodConfig, theirs: MethodConfig, spec: HostSpec) -> None:
    """Raises InputError when peftport.json and the library's config say different things."""
    if ours.method != theirs.method:
        raise _disagreement("the method", ours.method, theirs.method)
    for one in fields(ours):
        if one.name in _TRAINING_ONLY | _BY_SITES:
            continue
        left, right = getattr(ours, one.name), getattr(theirs, one.name)
        if left != right:
            raise _disagreement(f"{ours.method}.{one.name}", left, right)
    sites = [{s.name for s in method_of(c).sites(spec, c)} for c in (ours, theirs)]
    if sites[0] != sites[1]:
        raise _disagreement("the sites", *(", ".join(sorted(s)[:2]) + ", ..." for s in sites))


def _disagreement(what: str, ours: object, theirs: object) -> InputError:
    return InputError(
        f"{FILE} and the library's config disagree on {what}: {ours!r} and {theirs!r}; delete "
        f"{FILE} if the library's is right"
    )
