"""Build the hosts of ``make hosts-llm`` and ``make hosts-drift`` in the user's cache: seeded,
resumable, whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftport.atomic import write_text
from peftport.errors import InputError, UnknownName
from peftport.hosts import packaged
from peftport.hosts.built import (
    RECEIPT,
    RECEIPT_FORMAT,
    built_folder,
    built_path,
    read_built,
)
from peftport.hosts.fingerprint import weight_fingerprint
from peftport.hosts.forge.facts import processor
from peftport.hosts.published import sha256_of


@dataclass(frozen=True)
class Task:
    """One host that is to be built.

    Attributes:
        name: of ``packaged.BUILT``.
        known: identity of the host that is there already, "" without one.
        work: folder for checkpoints; removed once the host is there.
        quick: a few steps only.
    """

    name: str
    known: str
    work: Path
    quick: bool


@dataclass(frozen=True)
class MadeHost:
    """A finished host: how to write its files, and what is recorded of its making (with
    "identity"). ``prefix`` is the architecture's base_model_prefix."""

    write: Callable[[Path], None]
    facts: Mapping[str, Any]
    prefix: str


#: makes a host, or returns None when ``task.known`` says that it is there
Maker = Callable[[Task], MadeHost | None]


def build_local(
    names: Sequence[str] | None = None, *, quick: bool = False, threads: int | None = None
) -> list[Path]:
    """Build hosts into ``hosts/<name>`` of the user's cache and return their folders.

    What is there by the same recipe is left alone; what was interrupted goes on from its last
    checkpoint. A host that another one is made from is built first.

    Args:
        names: of ``packaged.BUILT``; all by default.
        quick: a few steps only, to check the code.
        threads: of torch; its own choice by default.
    Raises:
        UnknownName: a name that is none of them.
        InputError: text or weights that are needed are missing, or the cache cannot be written.
    """
    for name in names or ():
        if name not in packaged.BUILT:
            raise UnknownName("built host", name, packaged.BUILT)
    if threads is not None:
        torch.set_num_threads(threads)
    wanted = set(names or packaged.BUILT)
    if packaged.SIBLING in wanted and read_built(packaged.SMOLLM2) is None:
        wanted.add(packaged.SMOLLM2)
    makers = _makers()
    return [_build(name, makers[name], quick) for name in packaged.BUILT if name in wanted]


def _makers() -> dict[str, Maker]:
    """The maker of every host; their modules need this one."""
    from peftport.hosts.forge.dequantise import make_smollm2
    from peftport.hosts.forge.local_drift import drift_maker
    from peftport.hosts.forge.local_minilm import make_shallow, make_words
    from peftport.hosts.forge.local_smollm import make_sibling

    return {
        packaged.SHALLOW: make_shallow,
        packaged.WORDS: make_words,
        packaged.SMOLLM2: make_smollm2,
        packaged.SIBLING: make_sibling,
        **{name: drift_maker(at) for at, name in enumerate(packaged.DRIFT)},
    }


def _build(name: str, make: Maker, quick: bool) -> Path:
    final = built_path(name)
    work = final.with_name(f".{name}.work")
    facts = read_built(name)
    try:
        known = str(facts["identity"]) if facts and built_folder(name) else ""
    except InputError:  # damaged: made again
        known = ""
    partial = final.with_name(f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        work.mkdir(parents=True, exist_ok=True)
        made = make(Task(name, known, work, quick))
        if made is None:
            say(f"{name}: already built in '{final}'")
        else:
            partial.mkdir()
            made.write(partial)
            _seal(partial, name, made, quick)
            replace_folder(partial, final)
            say(f"{name}: built in '{final}'")
    except OSError as error:
        raise InputError(
            f"cannot write the host '{name}' to '{final}': {error.strerror or error};"
            " set PEFTPORT_CACHE to a folder with space that you may write to"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    return final


def _seal(folder: Path, name: str, made: MadeHost, quick: bool) -> None:
    """Write the receipt: what the files are and how they were made."""
    files = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    facts = {
        **made.facts,
        "format": RECEIPT_FORMAT,
        "name": name,
        "quick": quick,
        "fingerprint": weight_fingerprint(folder, made.prefix),
        "files": files,
        "size_bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "processor": processor(),
    }
    write_text(folder / RECEIPT, json.dumps(facts, indent=1, sort_keys=True) + "\n")


def replace_folder(partial: Path, final: Path) -> None:
    """Rename a whole folder into place; an older one there makes way."""
    old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
    if final.exists():
        os.rename(final, old)
    os.rename(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)
