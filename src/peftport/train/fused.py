"""The fast trainer: K modules of one method in one pass through the host.

Every slot is trained as :func:`peftport.train.reference.train` would train it: its own batches,
rates, gradient clip and AdamW state. Texts are packed without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peftport.data.batches import train_batches
from peftport.data.tasks import Encoded
from peftport.errors import InputError, RunError
from peftport.hosts.load import Host
from peftport.hosts.packed.base import Acts, Program
from peftport.hosts.packed.layout import pack
from peftport.hosts.packed.memory import release
from peftport.methods.attach import check_host, check_shapes
from peftport.methods.bank import Bank, has_bank
from peftport.methods.base import MethodConfig, Module
from peftport.train.reference import TrainSpec

#: AdamW's (torch.optim.AdamW's defaults, which the reference trainer uses)
_BETAS, _EPS = (0.9, 0.999), 1e-8

#: steps after which freed memory is given back
RELEASE = 50


@dataclass(frozen=True)
class Slot:
    """One training of a bank.

    Attributes:
        module: where it starts; it is not changed.
        encoded, labels: its own training texts.
        spec: its own seed, rates and clip; steps, batch size and only_head are the bank's.
    """

    module: Module
    encoded: Encoded
    labels: Sequence[int] | np.ndarray
    spec: TrainSpec


def trains_in_banks(host: Host, config: MethodConfig | None = None) -> bool:
    """Whether modules (of this method) are trained in banks on this host."""
    return host.program is not None and (config is None or has_bank(config))


def train_bank(
    host: Host, slots: Sequence[Slot], budgets: Sequence[int] = ()
) -> Iterator[tuple[int, list[Module | RunError]]]:
    """Train K modules of one config and yield them at every budget.

    Args:
        host: frozen host of a family with a packed program.
        slots: what to train.
        budgets: step counts at which copies are yielded; the last step when empty.

    Yields:
        (budget, for every slot its module or the error that ended it). A slot whose loss or
        gradient became NaN or infinite gives that error from then on and touches no other.

    Raises:
        InputError: the slots do not fit each other or the host.
    """
    first = slots[0].spec
    budgets = sorted(set(budgets or [first.steps]))
    if budgets[-1] > first.steps or budgets[0] < 0:
        raise InputError(f"budgets must lie in 0..{first.steps}, got {list(budgets)}")
    for slot in slots:
        check_host(slot.module, host.spec, host.ref)
        check_shapes(slot.module, host.spec)
        for name in ("steps", "batch_size", "only_head"):
            if getattr(slot.spec, name) != getattr(first, name):
                raise InputError(
                    f"trainings of a bank must have the same {name}, got "
                    f"{getattr(first, name)} and {getattr(slot.spec, name)}"
                )
    program = program_of(host)
    bank = Bank(host.spec, [s.module for s in slots], dtype=dtype_of(host), grad=True)
    acts: Acts = bank.layer
    if first.only_head:
        if not bank.layer.head:
            raise InputError("this host has no head: a probe needs one")
        acts = Acts(bank.layer.head)  # bodies change nothing and are not trained
    adam = _AdamW(bank, [s.spec for s in slots])
    orders = [
        train_batches(s.encoded.lengths, s.spec.batch_size, s.spec.steps, s.spec.seed)
        for s in slots
    ]
    targets = [np.asarray(s.labels) for s in slots]
    errors: list[RunError | None] = [None] * len(slots)
    done = 0
    for budget in budgets:
        for step in range(done, budget):
            rows = [order[step] for order in orders]
            packed = pack([[s.encoded.ids[i] for i in r] for s, r in zip(slots, rows, strict=True)])
            labels = np.concatenate([t[r] for t, r in zip(targets, rows, strict=True)])
            own = torch.as_tensor(labels, dtype=torch.long)[packed.order]
            bank.layer.refresh()
            losses = program.losses(packed, acts, own)  # [K]
            grads = torch.autograd.grad(losses.sum(), bank.leaves, allow_unused=True)
            norms = adam.step(losses.detach(), bank.gradients(grads))
            if step % RELEASE == RELEASE - 1:
                release()
            for k in torch.nonzero(~torch.isfinite(norms)).flatten().tolist():
                errors[k] = errors[k] or RunError(
                    f"{slots[k].module.config.method} on '{host.ref}' diverged at step {step + 1} "
                    f"(loss {losses[k].item():.3g}); lower the rate"
                )
        done = budget
        release()
        yield budget, [e or bank.module(k, host.spec) for k, e in enumerate(errors)]


def program_of(host: Host) -> Program:
    """The host's packed program. Raises InputError where its family has none."""
    if host.program is None:
        raise InputError(
            f"hosts of family '{host.spec.family}' have no packed program; "
            "train their modules one by one"
        )
    return host.program


def dtype_of(host: Host) -> torch.dtype:
    return next(host.model.parameters()).dtype


class _AdamW:
    """AdamW without weight decay on all slots at once, each with its own rates and clip.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, in torch.optim's arithmetic.
    """

    def __init__(self, bank: Bank, specs: Sequence[TrainSpec]) -> None:
        self._flat = bank.flat
        self._mean = torch.zeros_like(bank.flat)
        self._square = torch.zeros_like(bank.flat)
        self._steps = 0
        self._clip = bank.flat.new_tensor([[s.clip] for s in specs])  # [K, 1]
        rates = bank.flat.new_empty(bank.flat.shape)
        for row, spec in zip(rates, specs, strict=True):
            row[: bank.body] = 0.0 if spec.only_head else spec.lr
            row[bank.body :] = spec.head_lr or spec.lr
        self._rates = rates  # [K, P]

    @torch.no_grad()
    def step(self, losses: Tensor, grads: Tensor) -> Tensor:
        """Clip and update. losses [K], grads [K, P] -> norms [K], not finite for a slot that has
        diverged; what it holds from then on is of no use to anybody."""
        norms = torch.linalg.vector_norm(grads, dim=1) + 0 * losses
        scale = (self._clip / (norms[:, None] + 1e-6)).clamp(max=1.0)
        grads = grads * scale
        self._steps += 1
        first, second = _BETAS
        self._mean.lerp_(grads, 1 - first)
        self._square.mul_(second).addcmul_(grads, grads, value=1 - second)
        root = (self._square.sqrt() / (1 - second**self._steps) ** 0.5).add_(_EPS)
        self._flat -= self._mean / root * (self._rates / (1 - first**self._steps))
        return norms
