"""Modules on disk: PEFT's folders, AdapterHub's folders, and ours where no library will do.

Nothing else in peftport knows a format. A module is written in the format whose own loader gives
equal logits: lora and a prefix that is a past -> PEFT; bottleneck, compacter and AdapterHub's
prefixes -> AdapterHub; what no library runs -> ``module.safetensors`` for ``peftport.attach``.
What the libraries have no place for (fingerprint, host, notes) goes into peftport.json beside.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from peftport.errors import InputError
from peftport.formats import adapterhub, facts, native, peft
from peftport.formats.files import convert_pickle, new_folder, read_json
from peftport.hosts.spec import HostSpec
from peftport.methods.attach import check_shapes
from peftport.methods.base import MethodConfig, Module, State, method_of

__all__ = ["convert_pickle", "library_for", "load_module", "save_module"]


def library_for(module: Module, spec: HostSpec) -> tuple[str, list[str]]:
    """The library whose loader runs this module with equal logits.

    Returns:
        (``peft``, ``adapterhub`` or ``peftport``; why the libraries before it do not do).
    """
    if module.head and module.notes.get("head") == "mean":
        return "peftport", ["a head on mean-pooled states is not the architecture's own"]
    reasons: list[str] = []
    for library, why_not in (("peft", peft.why_not), ("adapterhub", adapterhub.why_not)):
        reason = why_not(module, spec)
        if reason is None:
            return library, reasons
        reasons.append(reason)
    return "peftport", reasons


def save_module(
    module: Module,
    folder: Path | str,
    *,
    spec: HostSpec,
    base_model: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a module as a folder that its library's own loader reads.

    Args:
        module: what a trainer or a port made; a reparameterised prefix is written as the pairs
            that it makes.
        folder: where; it must not exist or be empty.
        spec: the module's host.
        base_model: how the libraries should name the host; ``module.host`` if None.
        overwrite: replace a folder that peftport wrote.

    Returns:
        The folder.

    Raises:
        InputError: the module does not fit the host, holds NaN or infinity, or the place is taken
            or cannot be written to. Nothing is written then.
    """
    folder = Path(folder).absolute()
    check_shapes(module, spec)
    config, state = method_of(module.config).finish(spec, module.config, module.state)
    module = replace(module, config=config, state=state)
    library, reasons = library_for(module, spec)
    with new_folder(folder, overwrite) as made:
        name = base_model if base_model is not None else (module.host or None)
        if library == "peft":
            peft.write(made, module, spec, name)
        elif library == "adapterhub":
            adapterhub.write(made, module, spec, name)
        else:
            native.write(made, module)
        facts.write(made, module, spec, library, reasons if library == "peftport" else [])
    return folder


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
    if not folder.is_dir():
        raise InputError(f"no folder '{folder}'; give the folder of a module")
    known = facts.read(folder)
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
            host=known.host,
            notes=known.notes,
        )
    check_shapes(own, shape)
    method = method_of(own.config)
    state = {  # a file's order is its library's; ours is the method's
        site: {name: own.state[site][name] for name in names}
        for site, names in method.shapes(shape, own.config).items()
    }
    config, state = method.finish(shape, own.config, state)
    head = {name: own.head[name] for name in sorted(own.head, reverse=True)}  # weight, bias
    return replace(own, config=config, state=state, head=head)


def _read_library(
    folder: Path, spec: HostSpec | None
) -> tuple[HostSpec, MethodConfig, State, dict[str, Tensor], str]:
    """Read with the format that adapter_config.json belongs to."""
    raw = read_json(folder / peft.CONFIG)
    try:
        if "peft_type" in raw:
            return peft.read(folder, spec)
        if "config" in raw:
            return adapterhub.read(folder, spec)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"'{folder}' is damaged ({type(error).__name__}: {error}); get the folder again"
        ) from None
    raise InputError(
        f"'{folder / peft.CONFIG}' is neither PEFT's (it lacks 'peft_type') nor AdapterHub's (it "
        "lacks 'config')"
    )
