"""Does one bank of a study: start every module, train them together, measure."""

from __future__ import annotations

import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch

from peftport.data.tasks import Encoded, encode
from peftport.errors import InputError, RunError
from peftport.hosts.load import Host, load_host
from peftport.hosts.packed.device import dtype_named, use_deterministic, use_device
from peftport.hosts.packed.kernels import use_kernel
from peftport.methods.base import MethodConfig, Module
from peftport.porting.apply import apply_port
from peftport.porting.controls import body_only, head_only, sampled
from peftport.porting.layers import cka_layers
from peftport.porting.plan import plan_port
from peftport.porting.spaces import Correspondence
from peftport.study.checkpoint import Checkpoint, read_checkpoint
from peftport.study.checkpoints import CHECKPOINT_S
from peftport.study.executors.base import BankJob, Job, Worker, last
from peftport.study.materials import Materials
from peftport.study.modules import from_bytes, named, to_bytes
from peftport.study.plan import PROBE, Training, strategy_of
from peftport.study.planned import Measure, Outcome
from peftport.train.evaluate import bank_scores, class_scores
from peftport.train.fused import BankState, BankTraining, Slot, StateError, trains_in_banks
from peftport.train.reference import TrainSpec, fresh_module, train

T = TypeVar("T")
log = logging.getLogger(__name__)
#: a job's module at a budget (None for the host alone), or what ended it
Found = Module | None | Exception


class Recent:
    """The values used last; what was used longest ago goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, object] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._values:
            while len(self._values) >= self._size:
                self._values.popitem(last=False)
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]  # type: ignore[return-value]


@dataclass
class _Progress:
    """How far a job of the bank is. An error is kept as text: its frames hold the whole bank."""

    job: Job
    measures: list[Measure] = field(default_factory=list)
    last: Module | None = None
    error: str | None = None
    trace: str | None = None

    def fail(self, error: Exception) -> None:
        """The first error counts."""
        if self.error is None:
            self.error = " ".join(str(error).split()) or type(error).__name__
            self.trace = "".join(traceback.format_exception(error))

    def measure(self, budget: int, module: Module | None, scores: np.ndarray) -> None:
        self.last = module
        if np.isfinite(scores).all():
            self.measures.append(Measure(budget, scores, module.digest if module else ""))
        else:
            self.fail(RunError(f"scores are not finite after {budget} steps; lower the rate"))

    def outcome(self, seconds: float, split: bool) -> Outcome:
        key = self.job.key
        if self.error is not None:
            return Outcome(key, seconds, error=self.error, traceback=self.trace, split=split)
        return Outcome(
            key,
            seconds,
            tuple(self.measures),
            parameters=_trained(self.last, self.job.training.init),
            module=to_bytes(self.last) if self.last else None,
            split=split,
        )


class _Unlike(InputError):
    """Modules that were planned for one bank do not fit into one."""


class Runner(Worker):
    """A worker that trains banks; where a host or method cannot, its modules one after another.

    Args:
        materials: what the study works on.
        threads: torch threads; fixed for a study, since sums depend on how they are cut.
        kernel: which matrix product frozen weights use; fixed likewise.
        device: where modules are trained and measured; ports are computed on the CPU.
        checkpoint_s: seconds of work on a bank after which its next budget is a checkpoint.
    """

    def __init__(
        self,
        materials: Materials,
        threads: int,
        kernel: str,
        device: str = "cpu",
        checkpoint_s: float = CHECKPOINT_S,
    ) -> None:
        torch.set_num_threads(threads)
        use_kernel(kernel)
        self._m, self._checkpoint_s = materials, checkpoint_s
        self._device = use_device(device)
        use_deterministic(self._device)
        self._hosts = Recent(2)  # a source and a target
        self._plain_hosts = Recent(2)
        self._encoded = Recent(8)
        self._pairs = Recent(2)  # a bank may begin with one source and end with the next
        self._ported = Recent(1)  # ported, sampled and the ablations begin with the same module

    def work(self, bank: BankJob) -> Iterator[bytes | list[Outcome]]:
        """Train and measure; whatever goes wrong becomes a failed outcome."""
        yield from self._work(bank, split=False)

    def _work(self, bank: BankJob, split: bool) -> Iterator[bytes | list[Outcome]]:
        """What does not fit into memory or one bank is done in halves, and flagged."""
        jobs, begin = bank.jobs, time.perf_counter()
        there = _checkpoint_of(bank)
        progress = [_Progress(job) for job in jobs] if there is None else _so_far(jobs, there)
        before, kept = there.seconds if there else 0.0, begin
        halves = False
        try:
            for budget, found, training in self._trajectory(bank, there.state if there else None):
                self._measure_all(budget, progress, found)
                now = time.perf_counter()
                if training is not None and now - kept >= self._checkpoint_s:
                    yield _checkpoint(progress, before + now - begin, training.state()).to_bytes()
                    kept = now
        except StateError as error:
            log.warning("%s", error)
            yield from self._work(replace(bank, checkpoint=None), split)
            return
        except Exception as error:
            halves = len(jobs) > 1 and _asks_for_less(error)
            for one in progress:
                one.fail(error)
        if halves:
            del progress
            middle = len(jobs) // 2
            halved = (BankJob(jobs[:middle]), BankJob(jobs[middle:]))
            yield [outcome for half in halved for outcome in last(self._work(half, True))]
            return
        seconds = (before + time.perf_counter() - begin) / len(jobs)
        yield [one.outcome(seconds, split) for one in progress]

    def _measure_all(
        self, budget: int, progress: Sequence[_Progress], found: Sequence[Found]
    ) -> None:
        """Measure whoever is still there."""
        living: list[tuple[_Progress, Module | None]] = []
        for one, module in zip(progress, found, strict=True):
            if isinstance(module, Exception):
                one.fail(module)
            elif one.error is None:
                living.append((one, module))
        if not living:
            return
        scores = self._scores(living[0][0].job.training.host, [module for _, module in living])
        for (one, module), own in zip(living, scores, strict=True):
            one.measure(budget, module, own)

    def modules(self, bank: BankJob) -> Iterator[tuple[int, list[Found]]]:
        """For every job its module, at each of the bank's budgets; None for the host alone, the
        error where it failed to start or diverged."""
        for budget, found, _ in self._trajectory(bank, None):
            yield budget, found

    def _trajectory(
        self, bank: BankJob, begin: BankState | None
    ) -> Iterator[tuple[int, list[Found], BankTraining | None]]:
        """And with them the training, where it has steps to come and can be gone on with."""
        first: Training = bank.jobs[0].training
        host = self.host(first.host)
        if first.init == "host":
            yield 0, [None], None
            return
        starts = [self._try_start(job) for job in bank.jobs]
        slots = [
            Slot(start, *self._texts(job.training), _spec(job.training))
            for job, start in zip(bank.jobs, starts, strict=True)
            if isinstance(start, Module)
        ]
        if not slots:
            yield first.steps, list(starts), None
            return
        if len({_form(slot.module) for slot in slots}) > 1:
            raise _Unlike(f"modules of the bank of {bank.id} have different configs or shapes")
        fits = all(trains_in_banks(host, slot.module.config) for slot in slots)
        left = [budget for budget in first.budgets if begin is None or budget > begin.done]
        training = BankTraining(host, slots, left, begin) if fits else None
        for budget, made in training or _one_by_one(host, slots, first.budgets):
            trained = iter(made)
            yield (
                budget,
                [_named(next(trained), first.host) if isinstance(s, Module) else s for s in starts],
                training if budget < first.steps else None,
            )

    def host(self, name: str) -> Host:
        """A frozen host, loaded once while it is in use."""
        return self._hosts.get(name, lambda: load(self._m, name, self._device))

    def _plain_host(self, name: str) -> Host:
        """A host in float32 on the CPU: a port is the same wherever its module goes on."""
        if self._device.type == "cpu" and self._m.dtype == "float32":
            return self.host(name)
        plain = replace(self._m, dtype="float32")
        return self._plain_hosts.get(name, lambda: load(plain, name))

    def _try_start(self, job: Job) -> Module | Exception:
        """Where training starts, or why it cannot: that concerns nobody else."""
        try:
            return self._start(job)
        except Exception as error:
            if _asks_for_less(error):
                raise
            return error

    def _start(self, job: Job) -> Module:
        """Where training starts."""
        t: Training = job.training
        host = self.host(t.host)
        if t.init == "probe":
            return fresh_module(host, PROBE, t.seed)
        if job.source is None:
            return fresh_module(host, self._m.configs[(t.method, t.host)], t.seed)
        ported = self._port(t, job.source)
        if t.init == "ported":
            return ported
        if t.init == "sampled":
            generator = torch.Generator().manual_seed(t.seed)
            return sampled(ported, self._m.study.sampled, generator)
        fresh = fresh_module(host, ported.config, t.seed)
        return head_only(ported, fresh) if t.init == "head-only" else body_only(ported, fresh)

    def _port(self, t: Training, content: bytes) -> Module:
        """The source's module carried over to the target; made once for all that begin with it."""
        return self._ported.get((t.host, content), lambda: self._carry(t, from_bytes(content)))

    def _carry(self, t: Training, module: Module) -> Module:
        m, strategy = self._m, self._m.study.strategy
        layer_map = None
        if strategy.layers == "cka":
            layer_map = cka_layers(self._correspondence(t.source_host, t.host))
        plan = plan_port(
            m.specs[t.source_host],
            m.specs[t.host],
            module,
            strategy=strategy_of(m, t.source_host, t.host),
            layers=strategy.layers,
            layer_map=layer_map,
            norm_match=strategy.norm_match,
        )
        if not plan.needs_texts and not plan.needs_weights:
            return apply_port(plan, module)
        return apply_port(plan, module, hosts=self._correspondence(t.source_host, t.host))

    def _correspondence(self, source: str, target: str) -> Correspondence:
        """Both hosts on the unlabelled texts; made once for all that is ported between them."""
        return self._pairs.get(
            (source, target),
            lambda: Correspondence(
                self._plain_host(source),
                self._plain_host(target),
                self._m.unlabelled,
                self._m.task,
            ),
        )

    def _scores(self, name: str, modules: Sequence[Module | None]) -> Sequence[np.ndarray]:
        """Class logits  [K, N, C] of modules on the measured sentences."""
        host, encoded = self.host(name), self._encode(name, self._m.measured.texts)
        there = [module for module in modules if module is not None]
        if len(there) == len(modules) and all(trains_in_banks(host, m.config) for m in there):
            return list(bank_scores(host, there, encoded))
        return [class_scores(host, module, encoded) for module in modules]

    def _texts(self, t: Training) -> tuple[Encoded, tuple[int, ...]]:
        part = self._m.parts[t.part]
        return self._encode(t.host, part.texts), part.labels

    def _encode(self, host: str, texts: tuple[str, ...]) -> Encoded:
        """Texts in a host's tokens; hosts with one tokenizer share them."""
        key = (self._m.specs[host].tokenizer, id(texts))
        return self._encoded.get(
            key, lambda: encode(self.host(host).tokenizer, texts, self._m.task)
        )


def _checkpoint_of(bank: BankJob) -> Checkpoint | None:
    """Where the bank goes on; None where it begins."""
    if bank.checkpoint is None:
        return None
    try:
        return read_checkpoint(bank.checkpoint, bank.keys)
    except InputError as error:
        log.warning("%s", error)
        return None


def _so_far(jobs: Sequence[Job], there: Checkpoint) -> list[_Progress]:
    return [
        _Progress(job, list(measures), None, *(error or (None, None)))
        for job, measures, error in zip(jobs, there.measures, there.errors, strict=True)
    ]


def _checkpoint(progress: Sequence[_Progress], seconds: float, state: BankState) -> Checkpoint:
    return Checkpoint(
        tuple(one.job.key for one in progress),
        seconds,
        tuple(tuple(one.measures) for one in progress),
        tuple(None if one.error is None else (one.error, one.trace or "") for one in progress),
        state,
    )


def load(materials: Materials, name: str, device: torch.device | None = None) -> Host:
    """A host as a study uses it."""
    return load_host(
        materials.ref(name),
        dtype=dtype_named(materials.dtype),
        device=device,
        labels=materials.classes,
        head=materials.study.head,
        verbalisers=materials.task.verbalisers if name in materials.words else None,
    )


def _spec(t: Training) -> TrainSpec:
    return TrainSpec(
        steps=t.steps,
        lr=t.lr or t.head_lr or 1.0,
        head_lr=t.head_lr,
        batch_size=t.batch,
        seed=t.seed,
        only_head=t.init == "probe",
    )


def _one_by_one(
    host: Host, slots: Sequence[Slot], budgets: Sequence[int]
) -> Iterator[tuple[int, list[Module | Exception]]]:
    """What :func:`train_bank` does, with the reference trainer."""
    runs = [train(host, s.module, s.encoded, s.labels, s.spec, budgets) for s in slots]
    ended: dict[int, Exception] = {}
    for budget in budgets:
        found: list[Module | Exception] = []
        for at, run in enumerate(runs):
            try:
                found.append(ended[at] if at in ended else next(run)[1])
            except Exception as error:
                if _asks_for_less(error):
                    raise
                ended[at] = error
                found.append(error)
        yield budget, found


def _named(found: Module | Exception, host: str) -> Found:
    return named(found, host) if isinstance(found, Module) else found


def _form(module: Module) -> tuple[MethodConfig, tuple[tuple[str, tuple[int, ...]], ...]]:
    return module.config, tuple((name, tuple(t.shape)) for name, t in module.tensors())


def _asks_for_less(error: Exception) -> bool:
    """Whether fewer modules could do; torch says so of memory in a RuntimeError's text."""
    return isinstance(error, MemoryError | _Unlike) or (
        isinstance(error, RuntimeError) and "allocate" in str(error)
    )


def _trained(module: Module | None, init: str) -> int:
    """Number of trained parameters: a probe trains the head alone."""
    if module is None:
        return 0
    return sum(t.numel() for t in module.head.values()) if init == "probe" else module.size
