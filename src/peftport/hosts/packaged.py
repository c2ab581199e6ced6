"""The default hosts as ordinary transformers folders in the user's cache.

``minilm-large`` is a published model (see ``published.py``). The three derived hosts ship in
float16 beside this file, in ``weights/``: every encoder layer and pooler, and embeddings only
where they are not another host's. Here they are put together, in float32, once per machine.
Hosts that nobody needs by default are built on the user's machine (see ``built.py``).
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from peftport.atomic import write_bytes, write_text
from peftport.errors import InputError, UnknownName
from peftport.hosts import published
from peftport.hosts.fingerprint import weight_fingerprint
from peftport.hosts.published import SHA256, TEXT_FILES, WEIGHTS, sha256_of

LARGE, LARGE_TUNED = "minilm-large", "minilm-large-tuned"
BASE, BASE_TUNED = "minilm-base", "minilm-base-tuned"
NAMES: tuple[str, ...] = (LARGE, LARGE_TUNED, BASE, BASE_TUNED)
SHALLOW, WORDS = "minilm-shallow", "minilm-words"
SMOLLM2, SIBLING = "smollm2-135m", "smollm2-sibling"
#: descendants of minilm-base saved along one continued pretraining, nearest first
DRIFT: tuple[str, ...] = tuple(f"minilm-base-drift-{i}" for i in range(1, 7))
#: hosts of ``make hosts-llm`` and ``make hosts-drift``, in the order in which they are built
BUILT: tuple[str, ...] = (SHALLOW, WORDS, SMOLLM2, SIBLING, *DRIFT)
PARENTS: Mapping[str, str] = {LARGE_TUNED: LARGE, BASE: LARGE, BASE_TUNED: BASE}

#: the weights that come with peftport
SHIPPED = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
_RECEIPT = "peftport.json"
_REBUILD = "rebuild it with: make hosts"


def is_packaged(name: str) -> bool:
    """Whether ``name`` is one of :data:`NAMES` or of :data:`BUILT`."""
    return name in NAMES or name in BUILT


def materialise(name: str, *, weights: Path = SHIPPED) -> Path:
    """Folder of a packaged host: config.json, model.safetensors (float32), tokenizer files.

    A host of :data:`BUILT` is found here, never made. A default host lies in the user's cache and
    is made on first use. A folder whose files are not the ones that were written is made again;
    processes that do this at the same time agree on the result.

    Args:
        name: one of :data:`NAMES` or of :data:`BUILT`.
        weights: folder with the float16 weights and their manifest.
    Raises:
        UnknownName: no such host.
        InputError: weights are missing or damaged, or the cache cannot be written, or a host of
            :data:`BUILT` is not built.
    """
    if name in BUILT:
        from peftport.hosts.built import built_folder  # it needs this module's cache folder

        return built_folder(name)
    if not is_packaged(name):
        raise UnknownName("host", name, (*NAMES, *BUILT))
    fingerprint = SHA256 if name == LARGE else str(host_facts(name, weights)["fingerprint"])
    final = cache_folder() / "hosts" / f"{name}-{fingerprint[:12]}"
    if _is_sound(final):
        return final
    partial = final.with_name(f".{final.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        partial.mkdir(parents=True)
        _fill(partial, name, weights)
        _publish(partial, final)
    except OSError as error:
        raise InputError(
            f"cannot write the host '{name}' to '{final}': {error.strerror or error};"
            " set PEFTPORT_CACHE to a folder with space that you may write to"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def cache_folder() -> Path:
    """``$PEFTPORT_CACHE``, else ``peftport`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("PEFTPORT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftport"


def read_manifest(weights: Path = SHIPPED) -> dict[str, Any]:
    """What is known of the derived hosts in a folder: files, digests, recipes, losses.

    Raises:
        InputError: there is no manifest of a known format.
    """
    file = weights / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != MANIFEST_FORMAT:
            raise ValueError(f"format {manifest['format']}, expected {MANIFEST_FORMAT}")
        hosts: dict[str, Any] = manifest["hosts"]
        if not all(isinstance(facts, dict) for facts in hosts.values()):
            raise ValueError("hosts must be a table")
    except FileNotFoundError:
        raise InputError(f"no derived hosts in '{weights}'; build them with: make hosts") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read '{file}': {error}; {_REBUILD}") from None
    return dict(manifest)


def host_facts(name: str, weights: Path = SHIPPED) -> dict[str, Any]:
    """The manifest's entry of a derived host. Raises InputError when there is none."""
    facts = read_manifest(weights)["hosts"].get(name)
    if facts is None:
        raise InputError(f"no host '{name}' in '{weights}'; build it with: make hosts")
    missing = [key for key in ("file", "sha256", "fingerprint", "config") if key not in facts]
    if missing:
        raise InputError(
            f"'{weights / MANIFEST}' does not say {', '.join(missing)} of '{name}'; {_REBUILD}"
        )
    return dict(facts)


def derived_weights(name: str, weights: Path = SHIPPED) -> dict[str, Tensor]:
    """All tensors of a derived host, float32, by BertModel's names.

    Raises:
        InputError: a file is missing or has another digest than the manifest says.
    """
    facts = host_facts(name, weights)
    tensors = _read(weights, facts)
    if "embeddings.word_embeddings.weight" not in tensors:
        parent = PARENTS[name]
        donor = large_weights() if parent == LARGE else _read(weights, host_facts(parent, weights))
        tensors |= {n: t for n, t in donor.items() if n.startswith("embeddings.")}
    return {n: tensors[n].to(torch.float32).contiguous() for n in sorted(tensors)}


def large_weights() -> dict[str, Tensor]:
    """All tensors of minilm-large by BertModel's names (its position_ids are no weights)."""
    tensors: dict[str, Tensor] = load((published.published() / WEIGHTS).read_bytes())
    return {n: t for n, t in tensors.items() if not n.endswith("position_ids")}


def _read(weights: Path, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    file = weights / str(facts["file"])
    if not file.is_file():
        raise InputError(f"'{file}' is missing; reinstall peftport or {_REBUILD}")
    found = sha256_of(file)
    if found != facts["sha256"]:
        raise InputError(
            f"'{file}' has sha256 {found[:12]}..., expected {str(facts['sha256'])[:12]}...;"
            f" reinstall peftport or {_REBUILD}"
        )
    try:
        tensors: dict[str, Tensor] = load(file.read_bytes())
    except SafetensorError as error:
        raise InputError(f"cannot read '{file}': {error}; {_REBUILD}") from None
    return tensors


def _fill(folder: Path, name: str, weights: Path) -> None:
    """Write all files of a host, then the receipt that says what they should be."""
    origin = published.published()
    for text in TEXT_FILES:
        write_bytes(folder / text, (origin / text).read_bytes())
    if name == LARGE:
        write_bytes(folder / WEIGHTS, (origin / WEIGHTS).read_bytes())
    else:
        facts = host_facts(name, weights)
        config = json.dumps(facts["config"], indent=2, sort_keys=True) + "\n"
        write_text(folder / "config.json", config)
        write_bytes(folder / WEIGHTS, save(derived_weights(name, weights), {"format": "pt"}))
        found = weight_fingerprint(folder, "bert")
        if found != facts["fingerprint"]:
            raise InputError(
                f"host '{name}' has fingerprint {found[:12]}..., expected"
                f" {str(facts['fingerprint'])[:12]}...; {_REBUILD}"
            )
    receipt = {file: sha256_of(folder / file) for file in (*TEXT_FILES, WEIGHTS)}
    write_text(folder / _RECEIPT, json.dumps(receipt, indent=2, sort_keys=True) + "\n")


_SOUND: set[tuple[str, tuple[tuple[int, int], ...]]] = set()


def _is_sound(folder: Path) -> bool:
    """Whether every file is the one that was written; checked once a process while the files'
    sizes and times stay."""
    files = [folder / name for name in (*TEXT_FILES, WEIGHTS, _RECEIPT)]
    try:
        stats = [file.stat() for file in files]
        key = (str(folder.resolve()), tuple((s.st_size, s.st_mtime_ns) for s in stats))
        if key in _SOUND:
            return True
        receipt = json.loads(files[-1].read_text(encoding="utf-8"))
        sound = all(receipt[file.name] == sha256_of(file) for file in files[:-1])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if sound:
        _SOUND.add(key)
    return sound


def _publish(partial: Path, final: Path) -> None:
    """Rename into place; a damaged folder there makes way, a sound one (another process was
    faster) stays."""
    for _ in range(10):
        try:
            os.rename(partial, final)
            return
        except OSError:
            if not final.exists():
                raise
        if _is_sound(final):
            return
        damaged = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.damaged")
        try:
            os.rename(final, damaged)
        except FileNotFoundError:
            continue
        shutil.rmtree(damaged, ignore_errors=True)
    raise InputError(f"'{final}' cannot be replaced; delete it and try again")
