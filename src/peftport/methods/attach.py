"""Run any module of any method on an ordinary transformers model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from peftport.errors import HostMismatch, InputError
from peftport.hosts.families.base import Family, family_of
from peftport.hosts.fingerprint import model_fingerprint
from peftport.hosts.spec import HostSpec
from peftport.methods.base import Module, State, method_of

_MARK = "_peftport_attached"


class Attached:
    """A module at work on a model; a context manager that detaches at its end."""

    def __init__(self, undo: list[Callable[[], None]]) -> None:
        self._undo = undo

    def detach(self) -> None:
        """Restore the model exactly; calling it again does nothing."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()


def attach(
    model: nn.Module, module: Module, *, spec: HostSpec | None = None, check: bool = True
) -> Attached:
    """Make a transformers model compute with a module; the model's weights are not touched.

    Tensors are used as they are given, so a trainer may pass leaves that require grad; they are
    cast where the model has another dtype or device.

    Args:
        model: a transformers model of a known family, with a head where the module carries one.
        module: what :func:`peftport.load_module` returns, for this very host.
        spec: the model's spec, if known; else it is read from the model and its weights are
            fingerprinted (a second per few GB).
        check: refuse a module of another host.

    Returns:
        :class:`Attached`; use it in a ``with`` statement or call ``detach()``.

    Raises:
        HostMismatch: the module belongs to another host; port it first.
        InputError: its shapes do not fit, or the model has no head for it.
    """
    if getattr(model, _MARK, False):
        raise InputError("a module is attached to this model already; detach it first")
    config: Any = model.config
    family = family_of(config.model_type)
    if spec is None:
        spec = family.describe(config)
        if check and module.fingerprint:
            own = model_fingerprint(model, family.weight_prefix, family.unread_weights)
            spec = replace(spec, fingerprint=own)
    if check:
        check_host(module, spec, str(config._name_or_path or type(model).__name__))
    check_shapes(module, spec)
    like = next(model.parameters())
    state: State = {
        site: {name: tensor.to(like) for name, tensor in tensors.items()}
        for site, tensors in module.state.items()
    }
    undo = _attach_head(family, model, module.head, like)
    try:
        undo += method_of(module.config).attach(family, model, spec, module.config, state)
    except BaseException:
        Attached(undo).detach()
        raise
    setattr(model, _MARK, True)
    undo.append(lambda: delattr(model, _MARK))
    return Attached(undo)


def check_host(module: Module, spec: HostSpec, name: str, folder: str = "ADAPTER") -> None:
    """Raises HostMismatch unless the module was trained on this host (or does not say).

    Args:
        module: what is to run.
        spec: the host it is to run on.
        name: how that host is called.
        folder: where the module lies, for the command that would port it.
    """
    if module.fingerprint and spec.fingerprint and module.fingerprint != spec.fingerprint:
        raise HostMismatch(
            f"this {module.config.method} module belongs to host '{module.host or 'unnamed'}' "
            f"({module.fingerprint[:12]}), not to '{name}' ({spec.fingerprint[:12]}); "
            f"port it: peftport port {folder} --target {name or 'HOST'} -o OUT"
        )


def check_shapes(module: Module, spec: HostSpec) -> None:
    """Raises InputError naming the first site or tensor that does not fit the host."""
    expected = method_of(module.config).shapes(spec, module.config)
    what = f"{module.config.method} module"
    for site, tensors in expected.items():
        if site not in module.state:
            raise InputError(f"{what} lacks site '{site}' that its config asks for on this host")
        _compare(f"{what}, site '{site}'", tensors, module.state[site])
    extra = sorted(set(module.state) - set(expected))
    if extra:
        raise InputError(f"{what} has site '{extra[0]}', which this host does not have")


def _compare(
    where: str, expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]
) -> None:
    if set(expected) != set(given):
        raise InputError(f"{where}: expected tensors {sorted(expected)}, got {sorted(given)}")
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape:
            raise InputError(
                f"{where}: '{name}' has shape {tuple(given[name].shape)}, this host needs {shape}"
            )


def _attach_head(
    family: Family, model: nn.Module, head: Mapping[str, Tensor], like: Tensor
) -> list[Callable[[], None]]:
    """Put the module's head in the place of the model's; returns what puts it back."""
    if not head:
        return []
    live = family.head_parameters(model)
    if set(live) != set(head):
        raise InputError(
            f"the module carries the head {sorted(head)}, the model has {sorted(live) or 'none'}; "
            "load the model as ...ForSequenceClassification"
        )
    undo: list[Callable[[], None]] = []
    for name, tensor in head.items():
        old = live[name]
        if old.shape != tensor.shape:
            raise InputError(
                f"head '{name}' has shape {tuple(tensor.shape)}, the model's has "
                f"{tuple(old.shape)}; load it with num_labels={tensor.shape[0]}"
            )
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if isinstance(tensor, nn.Parameter):
            new = tensor
        else:
            new = nn.Parameter(tensor.to(like), requires_grad=False)
        setattr(owner, leaf, new)
        undo.append(lambda owner=owner, leaf=leaf, old=old: setattr(owner, leaf, old))  # type: ignore[misc]
    return undo


def trainable(
    module: Module, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Module:
    """The same module with every tensor a fresh leaf that requires grad."""

    def leaf(tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.detach().to(device, dtype).clone())

    return replace(
        module,
        state={s: {n: leaf(t) for n, t in ts.items()} for s, ts in module.state.items()},
        head={n: leaf(t) for n, t in module.head.items()},
    )


def frozen(module: Module) -> Module:
    """The same module with detached copies of its tensors, on the CPU."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu().clone()

    return replace(
        module,
        state={s: {n: copy(t) for n, t in ts.items()} for s, ts in module.state.items()},
        head={n: copy(t) for n, t in module.head.items()},
    )
