"""Does one unit of a study: start, train, measure."""

from __future__ import annotations

import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

import numpy as np
import torch

from peftport.data.tasks import Encoded, encode
from peftport.errors import RunError
from peftport.hosts.load import Host, load_host
from peftport.methods.base import Module
from peftport.methods.lora import LoraConfig
from peftport.port.apply import apply_port
from peftport.port.controls import body_only, head_only, sampled
from peftport.port.plan import plan_port
from peftport.port.spaces import Correspondence
from peftport.study.executors.base import Job
from peftport.study.materials import Materials
from peftport.study.modules import from_bytes, named, to_bytes
from peftport.study.plan import Training, strategy_of
from peftport.study.planned import Measure, Outcome
from peftport.train.evaluate import class_scores
from peftport.train.reference import TrainSpec, fresh_module, train

T = TypeVar("T")


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


class Runner:
    """A worker that trains with the reference trainer.

    Args:
        materials: what the study works on.
        threads: torch threads; fixed for a study, since sums depend on how they are cut.
    """

    def __init__(self, materials: Materials, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        self._m = materials
        self._hosts = Recent(2)  # a source and a target
        self._encoded = Recent(8)
        self._pairs = Recent(1)
        self._ported = Recent(1)  # ported, sampled and the ablations begin with the same module

    def do(self, job: Job) -> Outcome:
        """Train and measure; whatever goes wrong becomes a failed outcome."""
        begin = time.perf_counter()
        try:
            measures: list[Measure] = []
            last: Module | None = None
            for budget, last in self.modules(job):
                scores = self._measure(job.training.host, last)
                if not np.isfinite(scores).all():
                    raise RunError(f"scores are not finite after {budget} steps; lower the rate")
                measures.append(Measure(budget, scores, last.digest if last else ""))
            return Outcome(
                job.key,
                time.perf_counter() - begin,
                tuple(measures),
                parameters=_trained(last, job.training.init),
                module=to_bytes(last) if last else None,
            )
        except Exception as error:
            return Outcome(
                job.key,
                time.perf_counter() - begin,
                error=" ".join(str(error).split()) or type(error).__name__,
                traceback=traceback.format_exc(),
            )

    def modules(self, job: Job) -> Iterator[tuple[int, Module | None]]:
        """The module of a job at each of its budgets; None for the host alone."""
        t: Training = job.training
        host = self.host(t.host)
        start = self._start(job)
        if start is None:
            yield 0, None
            return
        spec = TrainSpec(
            steps=t.steps,
            lr=t.lr or t.head_lr or 1.0,
            head_lr=t.head_lr,
            batch_size=t.batch,
            seed=t.seed,
            only_head=t.init == "probe",
        )
        part = self._m.parts[t.part]
        encoded = self._encode(t.host, part.texts)
        for budget, module in train(host, start, encoded, part.labels, spec, t.budgets):
            yield budget, named(module, t.host)

    def host(self, name: str) -> Host:
        """A frozen host, loaded once while it is in use."""
        m = self._m
        return self._hosts.get(
            name,
            lambda: load_host(
                m.ref(name),
                labels=m.classes,
                head=m.study.head,
                verbalisers=m.task.verbalisers if name in m.words else None,
            ),
        )

    def _start(self, job: Job) -> Module | None:
        """Where training starts."""
        t: Training = job.training
        host = self.host(t.host)
        if t.init == "host":
            return None
        if t.init == "probe":  # a fresh lora changes nothing, so its head reads frozen features
            return fresh_module(host, LoraConfig(), t.seed)
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
        plan = plan_port(
            m.specs[t.source_host],
            m.specs[t.host],
            module,
            strategy=strategy_of(m, t.source_host, t.host),
            layers=strategy.layers,
            norm_match=strategy.norm_match,
        )
        if not plan.needs_texts:
            return apply_port(plan, module)
        return apply_port(plan, module, hosts=self._correspondence(t.source_host, t.host))

    def _correspondence(self, source: str, target: str) -> Correspondence:
        """Both hosts on the unlabelled texts; made once for all that is ported between them."""
        return self._pairs.get(
            (source, target),
            lambda: Correspondence(
                self.host(source), self.host(target), self._m.unlabelled, self._m.task
            ),
        )

    def _measure(self, host: str, module: Module | None) -> np.ndarray:
        """Class logits  [N, C] on the measured sentences."""
        encoded = self._encode(host, self._m.measured.texts)
        return class_scores(self.host(host), module, encoded)

    def _encode(self, host: str, texts: tuple[str, ...]) -> Encoded:
        """Texts in a host's tokens; hosts with one tokenizer share them."""
        key = (self._m.specs[host].tokenizer, id(texts))
        return self._encoded.get(
            key, lambda: encode(self.host(host).tokenizer, texts, self._m.task)
        )


def _trained(module: Module | None, init: str) -> int:
    """Number of trained parameters: a probe trains the head alone."""
    if module is None:
        return 0
    return sum(t.numel() for t in module.head.values()) if init == "probe" else module.size
