"""Files that are either whole or absent: written under another name, synced, then renamed."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``; whoever reads it meets the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, survives a power cut
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))
