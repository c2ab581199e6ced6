"""Reading what cannot be trusted, and writing so that nothing half-written is ever seen."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from peftport.errors import InputError

#: weights that the libraries write when not told otherwise, and what we read instead
PICKLES = {
    "adapter_model.bin": "adapter_model.safetensors",
    "pytorch_adapter.bin": "adapter.safetensors",
    "pytorch_model_head.bin": "model_head.safetensors",
}
_JSON_LIMIT = 16 << 20  # bytes; a config is a few KB
#: most numbers that a file may hold where no host says how many it can need: 8 GiB in float32
MOST_NUMBERS = 1 << 31
_HEADER_LIMIT = 100_000_000  # bytes; safetensors reads no longer one


def check_regular(file: Path) -> None:
    """Raises InputError where there is something under this name that is no file: a folder, a
    device, a pipe, a link to nothing. Links to files are fine (the Hub's cache is made of them)."""
    if os.path.lexists(file) and not file.is_file():
        raise InputError(f"'{file}' is not a regular file; get the folder again")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError: missing, unreadable, not JSON, not an object, or a key
    that is given twice."""
    check_regular(file)
    try:
        with file.open("rb") as opened:
            data = opened.read(_JSON_LIMIT + 1)
        if len(data) > _JSON_LIMIT:
            raise InputError(f"'{file}' is larger than {_JSON_LIMIT} bytes; that is no config")
        facts = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise InputError(f"no {file.name} in '{file.parent}'; give a module's folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read '{file}': {error}; get the file again") from None
    if not isinstance(facts, dict):
        raise InputError(f"'{file}' must hold a JSON object, got {type(facts).__name__}")
    return facts


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"the key {name!r} is there twice")
        made[name] = value
    return made


def check_numbers(file: Path, limit: int) -> None:
    """Raises InputError where a file claims more numbers than ``limit``. Only its header is read:
    a claim must not cost memory before it is known to be possible."""
    check_regular(file)
    if not file.is_file():
        return
    size, most = file.stat().st_size, 8 * limit + _HEADER_LIMIT
    if size > most:  # it is not even mapped then
        raise InputError(
            f"'{file}' has {size:,} bytes, more than a module of this host can need ({most:,}); "
            "get the right file"
        )
    total = 0
    with _opened(file) as tensors:
        for key in tensors.keys():  # noqa: SIM118
            total += math.prod(tensors.get_slice(key).get_shape())
    if total > limit:
        raise InputError(
            f"'{file}' holds {total:,} numbers, more than a module of this host can need "
            f"({limit:,}); get the right file"
        )


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot read '{file}': {reason}; get the file again") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file: float64 stays, all other floats become float32.

    Raises:
        InputError: missing (a pickle in its place is named with its remedy), truncated, a header
            that lies, not floating point, NaN or infinity.
    """
    check_regular(file)
    if not file.is_file():
        for pickle, name in PICKLES.items():
            if name == file.name and (file.parent / pickle).is_file():
                raise InputError(
                    f"'{file.parent}' holds the pickle {pickle}, which can run code when it is "
                    "read; convert it once with peftport.formats.convert_pickle(folder)"
                )
        raise InputError(f"no {file.name} in '{file.parent}'; give a module's folder")
    tensors: dict[str, Tensor] = {}
    with _opened(file) as opened:
        for key in opened.keys():  # noqa: SIM118
            tensors[key] = opened.get_tensor(key)
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"'{key}' in '{file}' is {tensor.dtype}; expected floating point")
        if not torch.isfinite(tensor).all():
            raise InputError(f"'{key}' in '{file}' holds NaN or infinity; train the module again")
        if tensor.dtype != torch.float64:
            tensors[key] = tensor.to(torch.float32)
    return tensors


def write_json(file: Path, facts: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises InputError when a weight is NaN or infinite: such a module is not worth a file."""
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"'{key}' holds NaN or infinity; this module cannot be saved")
    own = {key: t.detach().cpu().clone().contiguous() for key, t in tensors.items()}
    # safetensors' own file can be read by its owner alone, whatever the umask says
    file.write_bytes(save(own, metadata={"format": "pt"}))


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when the block ends well.

    Args:
        folder: where the result will be; its parents are made.
        overwrite: replace an older module folder; any other non-empty folder is refused.

    Raises:
        InputError: the place is taken or cannot be written to.
    """
    check_place(folder, overwrite)
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot write to '{folder.parent}': {error.strerror}") from None
    try:
        yield made
        made.chmod(0o755)
        for file in made.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        _replace(made, folder)
    except OSError as error:
        raise InputError(f"cannot write '{folder}': {error.strerror or error}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if not folder.exists():
            for parent in missing:  # the deepest first; one that is in use stays
                with suppress(OSError):
                    parent.rmdir()


def check_place(folder: Path, overwrite: bool) -> None:
    """Raises InputError unless a module's folder can be made there, or may be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"'{folder}' exists and is not a folder; give another output folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise InputError(
            f"'{folder}' exists and is not empty; give another output folder or overwrite"
        )
    inside = list(folder.iterdir())
    if any(item.is_dir() for item in inside) or not (folder / "peftport.json").is_file():
        raise InputError(f"'{folder}' is not a folder that peftport wrote; it is not overwritten")


def _replace(made: Path, folder: Path) -> None:
    """Move ``made`` to ``folder``, an older folder out of the way first."""
    if folder.is_dir() and any(folder.iterdir()):
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, aside)
        os.replace(made, folder)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(made, folder)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def convert_pickle(folder: Path | str) -> list[Path]:
    """Write the safetensors file beside every pickle of a folder made by PEFT or AdapterHub.

    The pickle is read with ``weights_only=True``, which runs no code, and is left as it is.
    Tensors that share memory (AdapterHub's prefixes) are written once each by name.

    Returns:
        The files written.

    Raises:
        InputError: no pickle there, or one that holds more than tensors.
    """
    folder = Path(folder)
    written: list[Path] = []
    found = [(folder / p, folder / s) for p, s in PICKLES.items() if (folder / p).is_file()]
    if not found:
        raise InputError(f"no pickle in '{folder}'; expected one of {', '.join(PICKLES)}")
    for pickle, target in found:
        try:
            tensors = torch.load(pickle, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"cannot read '{pickle}' as plain weights: {reason}") from None
        if not isinstance(tensors, dict) or not all(
            isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items()
        ):
            raise InputError(f"'{pickle}' holds more than named tensors; it is not converted")
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
        os.close(handle)
        try:
            write_tensors(Path(name), tensors)
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
        written.append(target)
    return written
