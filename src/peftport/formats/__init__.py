"""Modules on disk: PEFT's folders, AdapterHub's folders, and ours where no library will do.

Nothing else in peftport knows a format. A module is written in the format whose own loader gives
equal logits: lora and a prefix that is a past -> PEFT; bottleneck, compacter and AdapterHub's
prefixes -> AdapterHub; what no library runs -> ``module.safetensors`` for ``peftport.attach``.
What the libraries have no place for (fingerprint, host, notes) goes into peftport.json beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from peftport.formats import adapterhub, facts, native, peft
from peftport.formats.files import convert_pickle, new_folder
from peftport.formats.load import FILES, Recorded, load_module, recorded
from peftport.hosts.spec import HostSpec
from peftport.methods.attach import check_shapes
from peftport.methods.base import Module, method_of

__all__ = [
    "FILES",
    "Recorded",
    "convert_pickle",
    "library_for",
    "load_module",
    "recorded",
    "save_module",
]


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
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Write a module as a folder that its library's own loader reads.

    Args:
        module: what a trainer or a port made; a reparameterised prefix is written as the pairs
            that it makes.
        folder: where; it must not exist or be empty.
        spec: the module's host.
        base_model: how the libraries should name the host; ``module.host`` if None.
        overwrite: replace a folder that peftport wrote.
        extra: more text files by name, e.g. a README.md; they appear together with the module.

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
        for file, text in (extra or {}).items():
            (made / file).write_text(text, encoding="utf-8")
    return folder
