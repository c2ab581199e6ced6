"""What a ported module is compared with: noise of its own distribution, and halves of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from peftport.errors import HostMismatch, InputError, UnknownName
from peftport.methods.base import Module


def gaussian(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Independent draws from a normal with the tensor's mean and (population) standard deviation;
    a constant tensor stays what it is."""
    x = tensor.detach().to(torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return (x.mean() + x.std(correction=0) * noise).to(tensor.dtype)


def permuted(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The same entries in random places."""
    order = torch.randperm(tensor.numel(), generator=generator)
    return tensor.detach().flatten()[order].reshape(tensor.shape).clone()


def spectrum(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The same singular values with random (Haar) singular vectors, for each matrix of a stack;
    vectors are permuted."""
    if tensor.dim() < 2:
        return permuted(tensor, generator)
    s = torch.linalg.svdvals(tensor.to(torch.float64))  # [..., k]
    *stack, rows, cols = tensor.shape
    u = haar((*stack, rows, s.shape[-1]), generator)
    v = haar((*stack, cols, s.shape[-1]), generator)
    return ((u * s[..., None, :]) @ v.mT).to(tensor.dtype)


def haar(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Orthonormal columns [..., m, k], k <= m, uniform over all such frames.

    Source: Mezzadri 2007, arXiv math-ph/0609050: QR of a Gaussian, signs fixed by R's diagonal.
    """
    q, r = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(torch.float64)
    return q * signs[..., None, :]


KINDS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "gaussian": gaussian,
    "permuted": permuted,
    "spectrum": spectrum,
}


def sampled(module: Module, kind: str, generator: torch.Generator) -> Module:
    """A module whose every tensor, the head's too, is redrawn from the given one's distribution.

    Args:
        module: usually a ported one.
        kind: ``gaussian``, ``permuted`` or ``spectrum``.
        generator: advances; the same state gives the same module.

    Raises:
        UnknownName: another kind.
    """
    if kind not in KINDS:
        raise UnknownName("kind of sampled control", kind, KINDS)
    draw = KINDS[kind]
    seed = generator.initial_seed()
    state = {s: {n: draw(t, generator) for n, t in ts.items()} for s, ts in module.state.items()}
    head = {n: draw(t, generator) for n, t in module.head.items()}
    notes = {**module.notes, "sampled": {"kind": kind, "seed": seed, "from": module.digest}}
    return replace(module, state=state, head=head, notes=notes)


def mix(body: Module, head: Module) -> Module:
    """The body of one module with the head of another; both for the same host and configuration.

    Raises:
        HostMismatch: they belong to different hosts.
        InputError: no heads, heads of different shapes, or different configurations.
    """
    if body.fingerprint != head.fingerprint:
        raise HostMismatch(
            f"the body belongs to host {body.fingerprint[:12]} and the head to "
            f"{head.fingerprint[:12]}; give two modules of one host"
        )
    if body.config != head.config:
        raise InputError(
            f"the body is {body.config.to_json()} and the head's module {head.config.to_json()}; "
            "give two modules of one configuration"
        )
    if not head.head or not body.head:
        raise InputError(
            "a module without a classification head cannot be split into head and body; "
            "head-only and body-only are for hosts with a class head"
        )
    ours, theirs = ({n: tuple(t.shape) for n, t in m.head.items()} for m in (body, head))
    if ours != theirs:
        raise InputError(f"the heads differ: {ours} and {theirs}; give modules of one task")
    return replace(
        body,
        state={s: {n: t.detach().clone() for n, t in ts.items()} for s, ts in body.state.items()},
        head={n: t.detach().clone() for n, t in head.head.items()},
        notes={**body.notes, "mixed": {"body": body.digest, "head": head.digest}},
    )


def head_only(ported: Module, fresh: Module) -> Module:
    """The ported head on a fresh body: how much the travelling head explains."""
    return mix(body=fresh, head=ported)


def body_only(ported: Module, fresh: Module) -> Module:
    """The ported body under a fresh head."""
    return mix(body=ported, head=fresh)
