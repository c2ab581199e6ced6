"""Hosts that are made on this machine, by ``make hosts-llm`` or ``make hosts-drift``, and found by
name afterwards.

A built host is an ordinary transformers folder ``hosts/<name>`` in the user's cache, beside the
default hosts. Its ``peftport.json`` says what it was made by and what its files should be:
``{"format": 1, "name", "identity", "fingerprint", "files": {name: sha256}, ...facts}``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftport.errors import InputError, UnknownName
from peftport.hosts.packaged import BUILT, DRIFT, cache_folder
from peftport.hosts.published import sha256_of

RECEIPT = "peftport.json"
RECEIPT_FORMAT = 1


def built_path(name: str) -> Path:
    """Where a built host lies, or will lie. Raises UnknownName when it is none of ``BUILT``."""
    if name not in BUILT:
        raise UnknownName("built host", name, BUILT)
    return cache_folder() / "hosts" / name


def make_target(name: str) -> str:
    """The target of the Makefile that builds a host and its like."""
    return "hosts-drift" if name in DRIFT else "hosts-llm"


def read_built(name: str) -> dict[str, Any] | None:
    """What is known of a built host, or None when it is not (or not wholly) there."""
    try:
        facts = json.loads((built_path(name) / RECEIPT).read_text(encoding="utf-8"))
        if facts["format"] != RECEIPT_FORMAT or not isinstance(facts["files"], dict):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(facts)


def built_folder(name: str) -> Path:
    """Folder of a built host whose files are the ones that were written.

    Raises:
        UnknownName: no such built host.
        InputError: it is not built on this machine, or damaged; the text says how to build it.
    """
    folder, facts = built_path(name), read_built(name)
    remedy = f"make {make_target(name)} (this one alone: peftport hosts build {name})"
    if facts is None:
        raise InputError(f"host '{name}' is not built on this machine; build it with: {remedy}")
    damaged = _damaged(folder, facts["files"])
    if damaged:
        raise InputError(
            f"'{folder / damaged}' is not the file that was built; delete '{folder}' and build it"
            f" again with: {remedy}"
        )
    return folder


_SOUND: set[tuple[str, tuple[tuple[str, str, int, int], ...]]] = set()


def _damaged(folder: Path, files: dict[str, str]) -> str:
    """Name of the first file that is missing or another one, "" when all are sound; digests are
    checked once a process while the files' sizes and times stay."""
    stats = []
    for name, digest in sorted(files.items()):
        try:
            stat = (folder / name).stat()
        except OSError:
            return name
        stats.append((name, digest, stat.st_size, stat.st_mtime_ns))
    key = (str(folder.resolve()), tuple(stats))
    if key not in _SOUND:
        for name, digest in files.items():
            if sha256_of(folder / name) != digest:
                return name
        _SOUND.add(key)
    return ""
