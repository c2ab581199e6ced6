"""Reading a module's folder: whose format it is, which host it is for, what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from peftport.errors import HostMismatch, InputError, PeftportError
from peftport.formats import adapterhub, facts, native, peft
from peftport.formats.files import MOST_NUMBERS, check_numbers, check_regular, read_json
from peftport.formats.heads import check_head
from peftport.hosts.spec import HostSpec
from peftport.methods.attach import check_shapes
from peftport.methods.base import MethodConfig, Module, State, method_of

_CONFIGS = (peft.CONFIG, adapterhub.HEAD_CONFIG, facts.FILE)
_WEIGHTS = (peft.WEIGHTS, adapterhub.WEIGHTS, adapterhub.HEAD_WEIGHTS, native.WEIGHTS)
#: every file of a module's folder that is read
FILES = (*_CONFIGS, *_WEIGHTS)


@dataclass(frozen=True)
class Recorded:
    """What a folder says of its host.

    Attributes:
        library: whose format it is in: ``peft``, ``adapterhub`` or ``peftport``.
        host: how the host was named; empty where nothing says it.
        fingerprint: of the host's weights; empty where nothing says it.
    """

    library: str
    host: str
    fingerprint: str


def recorded(folder: Path | str) -> Recorded:
    """Which host a folder says that it is for; its weights are not read.

    Raises:
        InputError: missing or damaged config.
    """
    folder = Path(folder)
    with _blamed(folder):
        known = facts.read(folder)
        if known is not None and known.library == "peftport":
            return Recorded("peftport", known.host, known.fingerprint)
        raw = read_json(folder / peft.CONFIG)
        library = _library(folder, raw)
        key = "base_model_name_or_path" if library == "peft" else "model_name"
        name, revision = raw.get(key), raw.get("revision") if library == "peft" else None
        for value in (name, revision):
            if not isinstance(value, str | None):
                raise InputError(f"'{folder / peft.CONFIG}': {key} must be a text, got {value!r}")
        named = f"{name}@{revision}" if name and revision else name or ""
        if known is None:
            return Recorded(library, named, "")
        return Recorded(library, known.host or named, known.fingerprint)


def load_module(folder: Path | str, *, spec: HostSpec | None = None) -> Module:
    """Read a folder written by PEFT, AdapterHub or peftport.

    Args:
        folder: local folder.
        spec: the host, where it is at hand: the module is checked against it. Without it, and
            without peftport.json, the architecture is told by the names in the file.

    Returns:
        The module; its fingerprint is empty when no peftport.json says which host it is for.

    Raises:
        InputError: missing or damaged files, a pickle, an option that is not supported, tensors
            that are missing, extra, of a wrong shape, NaN or infinite.
    """
    folder = Path(folder)
    with _blamed(folder):
        return _load(folder, spec)


@contextmanager
def _blamed(folder: Path) -> Iterator[None]:
    """Whatever a file that cannot be trusted sets off is an InputError about its folder."""
    try:
        if not folder.is_dir():
            raise InputError(f"no folder '{folder}'; give the folder of a module")
        yield
    except PeftportError:
        raise
    except Exception as error:  # torch, transformers and json each have types of their own
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"'{folder}' is damaged ({type(error).__name__}: {reason}); get the folder again"
        ) from None


def _load(folder: Path, spec: HostSpec | None) -> Module:
    known = facts.read(folder)
    if known is not None and spec is not None:
        _check_host(folder, known, spec)
    for name in _CONFIGS:
        check_regular(folder / name)
    for name in _WEIGHTS:
        check_numbers(folder / name, _most_numbers(spec))
    if known is not None and known.library == "peftport":
        raw = read_json(folder / facts.FILE)
        config, state, head = native.read(folder, raw)
        shape, base = spec or known.spec, ""
    else:
        given = spec if spec is not None or known is None else known.spec
        shape, config, state, head, base = _read_library(folder, given)
    own = Module(config, state, head, "", base)
    if known is not None:
        facts.agree(known.config, config, shape)
        own = replace(
            own,
            config=known.config,
            fingerprint=known.fingerprint,
            host=known.host or base,
            notes=known.notes,
        )
    check_shapes(own, shape)
    check_head(own.head, shape, guessed=spec is None and known is None)
    method = method_of(own.config)
    state = {  # a file's order is its library's; ours is the method's
        site: {name: own.state[site][name] for name in names}
        for site, names in method.shapes(shape, own.config).items()
    }
    config, state = method.finish(shape, own.config, state)
    head = {name: own.head[name] for name in sorted(own.head, reverse=True)}  # weight, bias
    return replace(own, config=config, state=state, head=head)


def _check_host(folder: Path, known: facts.Facts, spec: HostSpec) -> None:
    if known.fingerprint and spec.fingerprint and known.fingerprint != spec.fingerprint:
        raise HostMismatch(
            f"the {known.config.method} module in '{folder}' belongs to host "
            f"'{known.host or 'unnamed'}' ({known.fingerprint[:12]}), the given host is "
            f"{spec.fingerprint[:12]} ({spec.family}, d_model {spec.d_model}); "
            f"port it: peftport port {folder} --target HOST -o OUT"
        )


def _most_numbers(spec: HostSpec | None) -> int:
    """More numbers than any module of this host has; a module is a small part of its host."""
    if spec is None:
        return MOST_NUMBERS
    linear = sum(s.d_in * s.d_out for s in spec.sites if s.role not in ("kv", "out"))
    return max(4 * (linear + spec.vocab_size * spec.d_model), 1 << 26)


def _library(folder: Path, raw: Mapping[str, Any]) -> str:
    """The library that an adapter_config.json belongs to."""
    if "peft_type" in raw:
        return "peft"
    if "config" in raw:
        return "adapterhub"
    raise InputError(
        f"'{folder / peft.CONFIG}' is neither PEFT's (it lacks 'peft_type') nor AdapterHub's (it "
        "lacks 'config')"
    )


def _read_library(
    folder: Path, spec: HostSpec | None
) -> tuple[HostSpec, MethodConfig, State, dict[str, Tensor], str]:
    """Read with the format that adapter_config.json belongs to."""
    library = _library(folder, read_json(folder / peft.CONFIG))
    return (peft if library == "peft" else adapterhub).read(folder, spec)
