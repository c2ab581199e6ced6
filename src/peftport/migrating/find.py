"""Adapters below a folder, whoever wrote them."""

from __future__ import annotations

import os
from pathlib import Path

from peftport.errors import InputError
from peftport.formats import FILES
from peftport.formats.files import PICKLES


def find_adapters(folder: Path, without: Path) -> dict[str, Path]:
    """Every folder below (or at) ``folder`` that holds a file of an adapter, by relative path.

    What lies below an adapter's own folder (a trainer's checkpoints) is not looked at, nor are
    hidden folders and links.

    Args:
        folder: where to look.
        without: a folder that is left out, with all below it: the output.

    Raises:
        InputError: no such folder, or no adapter in it.
    """
    if not folder.is_dir():
        raise InputError(f"no folder at '{folder}'; give the folder that holds your adapters")
    own = {*FILES, *PICKLES}
    found: dict[str, Path] = {}
    output = without.resolve()
    for place, folders, files in os.walk(folder):
        path = Path(place)
        if path.resolve() == output:
            folders.clear()
        elif own & set(files):
            found[path.relative_to(folder).as_posix()] = path
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    if not found:
        raise InputError(
            f"'{folder}' holds no adapter; expected folders with an adapter_config.json or a "
            "peftport.json below it"
        )
    return dict(sorted(found.items()))
