"""The fast trainer: K modules of one method in one pass through the host.

Every slot is trained as :func:`peftport.train.reference.train` would train it: its own batches,
rates, gradient clip and AdamW state. Texts are packed without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftport.data.batches import train_batches
from peftport.data.tasks import Encoded
from peftport.errors import InputError, RunError
from peftport.hosts.load import Host
from peftport.hosts.packed.base import Acts, Program
from peftport.hosts.packed.device import send
from peftport.hosts.packed.layout import Packed, lay, pack
from peftport.hosts.packed.memory import release
from peftport.methods.attach import check_host, check_shapes
from peftport.methods.bank import Bank, has_bank
from peftport.methods.base import MethodConfig, Module
from peftport.train.reference import TrainSpec

#: AdamW's (torch.optim.AdamW's defaults, which the reference trainer uses)
_BETAS, _EPS = (0.9, 0.999), 1e-8

#: whether CUDA plays a step as a recorded graph; benchmarks measure what that is worth
GRAPHS = True

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


class StateError(InputError):
    """A state that is no place for a bank to go on from."""


@dataclass(frozen=True)
class BankState:
    """Where a bank is: with its slots, all that its next steps depend on.

    Attributes:
        flat: parameters  [K, P], as :class:`peftport.methods.bank.Bank` lays them side by side.
        mean, square: AdamW's moments of them  [K, P].
        ended: the step at which a slot diverged, counted from 1; 0 for one that has not  [K].
        loss: its loss there  [K].
        done: steps done.
    """

    flat: Tensor
    mean: Tensor
    square: Tensor
    ended: Tensor
    loss: Tensor
    done: int

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "done"}


def trains_in_banks(host: Host, config: MethodConfig | None = None) -> bool:
    """Whether modules (of this method) are trained in banks on this host."""
    return host.program is not None and (config is None or has_bank(config))


def train_bank(
    host: Host, slots: Sequence[Slot], budgets: Sequence[int] = ()
) -> Iterator[tuple[int, list[Module | RunError]]]:
    """Train K modules of one config and yield them at every budget; see :class:`BankTraining`."""
    return iter(BankTraining(host, slots, budgets))


class BankTraining:
    """The training of K modules of one config. Iterate over it once.

    Args:
        host: frozen host of a family with a packed program.
        slots: what to train.
        budgets: step counts at which copies are yielded; the last step when empty.
        begin: go on from here, with budgets that come after it; what follows is what would have
            followed there.

    Yields:
        (budget, for every slot its module or the error that ended it). A slot whose loss or
        gradient became NaN or infinite gives that error from then on and touches no other.

    Raises:
        InputError: the slots do not fit each other or the host; StateError: ``begin`` does not
            fit them.
    """

    def __init__(
        self,
        host: Host,
        slots: Sequence[Slot],
        budgets: Sequence[int] = (),
        begin: BankState | None = None,
    ) -> None:
        first = slots[0].spec
        self._budgets = sorted(set(budgets or [first.steps]))
        if self._budgets[-1] > first.steps or self._budgets[0] < 0:
            raise InputError(f"budgets must lie in 0..{first.steps}, got {self._budgets}")
        for slot in slots:
            check_host(slot.module, host.spec, host.ref)
            check_shapes(slot.module, host.spec)
            for name in ("steps", "batch_size", "only_head"):
                if getattr(slot.spec, name) != getattr(first, name):
                    raise InputError(
                        f"trainings of a bank must have the same {name}, got "
                        f"{getattr(first, name)} and {getattr(slot.spec, name)}"
                    )
        self._host, self._slots = host, slots
        self._bank = bank = Bank(
            host.spec,
            [s.module for s in slots],
            dtype=host.dtype,
            grad=True,
            device=host.device,
        )
        acts: Acts = bank.layer
        if first.only_head:
            if not bank.layer.head:
                raise InputError("this host has no head: a probe needs one")
            acts = Acts(bank.layer.head)  # bodies change nothing and are not trained
        self._steps = _Steps(program_of(host), bank, acts, [s.spec for s in slots])
        if begin is not None:
            if begin.done > self._budgets[0]:
                raise StateError(
                    f"after {begin.done} steps nothing is left to be seen at {self._budgets[0]}"
                )
            self._steps.go_on_from(begin)

    def __iter__(self) -> Iterator[tuple[int, list[Module | RunError]]]:
        slots, steps = self._slots, self._steps
        orders = [
            train_batches(s.encoded.lengths, s.spec.batch_size, s.spec.steps, s.spec.seed)
            for s in slots
        ]
        targets = [np.asarray(s.labels) for s in slots]
        for budget in self._budgets:
            for step in range(steps.done, budget):
                rows = [order[step] for order in orders]
                texts = [[s.encoded.ids[i] for i in r] for s, r in zip(slots, rows, strict=True)]
                packed = pack(texts, self._host.device)
                labels = np.concatenate([t[r] for t, r in zip(targets, rows, strict=True)])
                steps.do(packed, torch.as_tensor(labels, dtype=torch.long)[packed.order])
                if step % RELEASE == RELEASE - 1:
                    release()
            release()
            yield budget, self._modules()

    def _modules(self) -> list[Module | RunError]:
        ended = self._steps.ended
        return [
            RunError(
                f"{slot.module.config.method} on '{self._host.ref}' diverged at step {ended[k][0]} "
                f"(loss {ended[k][1]:.3g}); lower the rate"
            )
            if k in ended
            else self._bank.module(k, self._host.spec)
            for k, slot in enumerate(self._slots)
        ]

    def state(self) -> BankState:
        """A copy of where it is, on the CPU."""
        return self._steps.state()


def program_of(host: Host) -> Program:
    """The host's packed program. Raises InputError where its family has none."""
    if host.program is None:
        raise InputError(
            f"hosts of family '{host.spec.family}' have no packed program; "
            "train their modules one by one"
        )
    return host.program


class _Steps:
    """One training step after another, and where each slot first diverged.

    An accelerator is never waited for. On CUDA the first step on texts of a length is done as on a
    CPU, the second is recorded as a graph, and from then on the graph is played: the few thousand
    kernels of a step take the host program longer to start than the device to run.
    """

    def __init__(
        self, program: Program, bank: Bank, acts: Acts, specs: Sequence[TrainSpec]
    ) -> None:
        self._program, self._bank, self._acts = program, bank, acts
        self._adam = _AdamW(bank, specs)
        self.done = 0
        device = bank.flat.device
        self._step = torch.zeros(len(specs), dtype=torch.long, device=device)  # 0: not yet
        self._loss = torch.zeros(len(specs), dtype=torch.float64, device=device)
        # what changes from step to step, where a recorded graph reads it
        self._now = torch.zeros((), dtype=torch.long, device=device)
        self._fixes = torch.zeros(2, dtype=bank.flat.dtype, device=device)
        self._seen: set[torch.Size] = set()
        self._recorded: dict[torch.Size, _Recorded] = {}

    def do(self, packed: Packed, labels: Tensor) -> None:
        """A step on these texts; labels [S] in packed order, on the CPU."""
        self.done += 1
        fixes = self._adam.fixes(self.done)
        device = self._now.device
        if device.type != "cuda":
            self._now.fill_(self.done)
            self._run(packed, labels, fixes)
            return
        assert packed.mask is not None
        labels = send(labels, device)
        self._now.copy_(send(torch.tensor(self.done), device))
        self._fixes.copy_(send(torch.tensor(fixes, dtype=self._fixes.dtype), device))
        shape = packed.mask.added.shape
        if shape not in self._seen or not GRAPHS:
            self._seen.add(shape)
            self._run(packed, labels, self._fixes.unbind())
            return
        reads = (packed.ids.view(shape), packed.mask.added, labels)
        if shape not in self._recorded:
            self._recorded[shape] = self._record(*reads)
        self._recorded[shape].play(*reads)

    def _record(self, *given: Tensor) -> _Recorded:
        """A graph of a step that reads copies of ids [S, T], mask [S, T] and labels [S]."""
        ids, mask, labels = (tensor.clone() for tensor in given)
        graph = torch.cuda.CUDAGraph()
        # graphs share their memory: one is played after the other, and nothing of it is kept
        pool = next((other.graph.pool() for other in self._recorded.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            self._run(lay(ids, mask, len(self._step)), labels, self._fixes.unbind())
        return _Recorded(graph, (ids, mask, labels))

    def _run(self, packed: Packed, labels: Tensor, fixes: Sequence[Any]) -> None:
        bank = self._bank
        bank.refresh()
        losses = self._program.losses(packed, self._acts, labels)  # [K]
        grads = torch.autograd.grad(losses.sum(), bank.leaves, allow_unused=True)
        losses = losses.detach()
        norms = self._adam.step(losses, bank.gradients(grads), fixes)
        now = ~torch.isfinite(norms) & (self._step == 0)
        self._step.copy_(torch.where(now, self._now, self._step))
        self._loss.copy_(torch.where(now, losses.to(self._loss.dtype), self._loss))

    def state(self) -> BankState:
        kept = self._kept()
        return BankState(**{n: t.detach().cpu().clone() for n, t in kept.items()}, done=self.done)

    def go_on_from(self, state: BankState) -> None:
        """Raises InputError where the state is another bank's."""
        given = state.tensors()
        for name, tensor in self._kept().items():
            if given[name].shape != tensor.shape or given[name].dtype != tensor.dtype:
                raise StateError(
                    f"the state to go on from is another bank's: its '{name}' is "
                    f"{given[name].dtype} {list(given[name].shape)}, this bank's is "
                    f"{tensor.dtype} {list(tensor.shape)}; begin again"
                )
            tensor.copy_(given[name])
        self.done = state.done

    def _kept(self) -> dict[str, Tensor]:
        adam = self._adam
        return {
            "flat": self._bank.flat, "mean": adam.mean, "square": adam.square,
            "ended": self._step, "loss": self._loss,
        }  # fmt: skip

    @property
    def ended(self) -> dict[int, tuple[int, float]]:
        """Slots that diverged, with the step, counted from 1, and its loss."""
        pairs = zip(self._step.tolist(), self._loss.tolist(), strict=True)
        return {k: (step, loss) for k, (step, loss) in enumerate(pairs) if step}


class _Recorded:
    """A step as a CUDA graph, with the tensors that it reads."""

    def __init__(self, graph: torch.cuda.CUDAGraph, reads: Sequence[Tensor]) -> None:
        self.graph, self._reads = graph, reads

    def play(self, *given: Tensor) -> None:
        for own, new in zip(self._reads, given, strict=True):
            own.copy_(new)
        self.graph.replay()


class _AdamW:
    """AdamW without weight decay on all slots at once, each with its own rates and clip.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, in torch.optim's arithmetic.
    """

    def __init__(self, bank: Bank, specs: Sequence[TrainSpec]) -> None:
        self._flat = bank.flat
        self.mean = torch.zeros_like(bank.flat)
        self.square = torch.zeros_like(bank.flat)
        self._clip = bank.flat.new_tensor([[s.clip] for s in specs])  # [K, 1]
        rates = bank.flat.new_empty(bank.flat.shape)
        for row, spec in zip(rates, specs, strict=True):
            row[: bank.body] = 0.0 if spec.only_head else spec.lr
            row[bank.body :] = spec.head_lr or spec.lr
        self._rates = rates  # [K, P]

    @staticmethod
    def fixes(step: int) -> tuple[float, float]:
        """What makes up for means that begin at zero, at a step counted from 1."""
        first, second = _BETAS
        return 1 - first**step, (1 - second**step) ** 0.5

    @torch.no_grad()
    def step(self, losses: Tensor, grads: Tensor, fixes: Sequence[Any]) -> Tensor:
        """Clip and update. losses [K], grads [K, P], :meth:`fixes` as numbers or as tensors ->
        norms [K], not finite for a slot that has diverged; what it holds from then on is of no use
        to anybody."""
        norms = torch.linalg.vector_norm(grads, dim=1) + 0 * losses
        scale = (self._clip / (norms[:, None] + 1e-6)).clamp(max=1.0)
        grads = grads * scale
        first, second = _BETAS
        self.mean.lerp_(grads, 1 - first)
        self.square.mul_(second).addcmul_(grads, grads, value=1 - second)
        root = (self.square.sqrt() / fixes[1]).add_(_EPS)
        self._flat -= self.mean / root * (self._rates / fixes[0])
        return norms
