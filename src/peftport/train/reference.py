"""The reference trainer: one module, one host, slow and obvious.

AdamW at a constant rate, no dropout, no weight decay, gradients clipped by their global norm over
body and head, length-bucketed batches in an order that depends on the seed alone. Everything
faster is measured against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftport.data.batches import train_batches
from peftport.data.tasks import Encoded
from peftport.errors import InputError, RunError
from peftport.hosts.load import Host
from peftport.hosts.packed.device import wide
from peftport.methods.attach import attach, frozen, trainable
from peftport.methods.base import MethodConfig, Module, method_of


@dataclass(frozen=True)
class TrainSpec:
    """How one module is trained.

    Attributes:
        steps: optimiser steps.
        lr: constant learning rate of the body.
        head_lr: that of the head; None means ``lr``.
        batch_size: examples a step.
        clip: largest global gradient norm.
        seed: decides the order of the data and nothing else.
        only_head: leave the body as it is (the probe).
    """

    steps: int
    lr: float
    head_lr: float | None = None
    batch_size: int = 16
    clip: float = 1.0
    seed: int = 0
    only_head: bool = False

    def __post_init__(self) -> None:
        for name, low in (("steps", 0), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise InputError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be >= 0 and below 2^63, got {self.seed}")
        rates = [self.lr] if self.head_lr is None else [self.lr, self.head_lr]
        if not all(0 < rate < math.inf for rate in rates):
            raise InputError(
                f"learning rates must be finite and > 0, got {self.lr} and {self.head_lr}"
            )


def fresh_module(host: Host, config: MethodConfig, seed: int) -> Module:
    """A module by its method's own initialisation, with a fresh head where the host needs one.

    The head is drawn from N(0, 0.02) with zero bias, as transformers does.
    """
    generator = torch.Generator().manual_seed(seed)
    state = method_of(config).init(host.spec, config, generator)
    head = fresh_head(host, generator)
    notes = {"head": host.head} if head else {}
    return Module(config, state, head, host.spec.fingerprint, host.ref, notes)


def fresh_head(host: Host, generator: torch.Generator) -> dict[str, Tensor]:
    """Head tensors by PEFT name; empty where the host answers with a word."""
    return {
        name: torch.zeros(p.shape)
        if name.endswith("bias")
        else torch.empty(p.shape).normal_(0, 0.02, generator=generator)
        for name, p in host.family.head_parameters(host.model).items()
    }


def train(
    host: Host,
    module: Module,
    encoded: Encoded,
    labels: Sequence[int] | np.ndarray,
    spec: TrainSpec,
    budgets: Sequence[int] = (),
) -> Iterator[tuple[int, Module]]:
    """Train a module and yield it at every budget.

    Args:
        host: frozen host that the module belongs to.
        module: where training starts; it is not changed.
        encoded: encoded training texts.
        labels: class of every text.
        spec: steps, rates, batch size, seed.
        budgets: step counts at which a copy is yielded, ascending; ``spec.steps`` when empty.

    Yields:
        (budget, module after that many steps). One trajectory serves all budgets.

    Raises:
        InputError: the host's weights are narrower than what is trained.
        RunError: the loss or a gradient became NaN or infinite.
    """
    if wide(host.dtype) != host.dtype:
        raise InputError(
            f"on a host in {str(host.dtype).removeprefix('torch.')} modules are trained in banks "
            "only; load it in float32"
        )
    budgets = sorted(set(budgets or [spec.steps]))
    if budgets[-1] > spec.steps or budgets[0] < 0:
        raise InputError(f"budgets must lie in 0..{spec.steps}, got {list(budgets)}")
    live = trainable(module, host.dtype, host.device)
    groups = parameter_groups(live, spec)
    leaves = [p for group in groups for p in group["params"]]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    order = train_batches(encoded.lengths, spec.batch_size, spec.steps, spec.seed)
    targets = torch.as_tensor(np.asarray(labels), dtype=torch.long, device=host.device)
    done = 0
    for budget in budgets:
        with attach(host.model, live, spec=host.spec):
            for step in range(done, budget):
                batch = encoded.batch(order[step], host.pad_id, host.device)
                loss = host.family.loss(host.model, batch, targets[order[step]], host.words)
                for leaf, grad in zip(
                    leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True
                ):
                    leaf.grad = grad
                norm = torch.nn.utils.clip_grad_norm_(leaves, spec.clip)
                if not (torch.isfinite(norm) and torch.isfinite(loss)):
                    raise RunError(
                        f"{module.config.method} on '{host.ref}' diverged at step {step + 1} (loss "
                        f"{loss.item():.3g}, gradient norm {norm.item():.3g}); lower the rate"
                    )
                optimiser.step()
        done = budget
        yield budget, _result(host, live)


def parameter_groups(module: Module, spec: TrainSpec) -> list[dict[str, Any]]:
    """AdamW's groups: body at ``lr``, head at ``head_lr``."""
    body = [t for tensors in module.state.values() for t in tensors.values()]
    head = list(module.head.values())
    if spec.only_head:
        if not head:
            raise InputError("this host has no head: a probe needs one")
        return [{"params": head, "lr": spec.head_lr or spec.lr}]
    groups: list[dict[str, Any]] = [{"params": body, "lr": spec.lr}]
    if head:
        groups.append({"params": head, "lr": spec.head_lr or spec.lr})
    return groups


def _result(host: Host, live: Module) -> Module:
    """A detached copy, in the form that is kept (a reparameterised prefix becomes direct)."""
    copy = frozen(live)
    config, state = method_of(copy.config).finish(host.spec, copy.config, copy.state)
    return replace(copy, config=config, state=state)
