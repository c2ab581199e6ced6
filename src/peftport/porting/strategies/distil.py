"""Distil: some label-free steps towards the source's own predictions."""

from __future__ import annotations

from types import MappingProxyType

import torch

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig
from peftport.porting.carriers.base import Carried
from peftport.porting.distilling import Steps, distil, divergence
from peftport.porting.recorded import predictions
from peftport.porting.spaces import is_held
from peftport.porting.strategies.base import Job, Strategy, need_hosts, same_width, strategies
from peftport.porting.strategies.copy import Copy
from peftport.porting.strategies.effect import Effect, source_module, target_module


@strategies.register("distil")
class Distil(Strategy):
    """From the best closed form, N steps on unlabelled texts towards the predictions of the source
    host + module.

    The start is ``effect``, which already carries the module's hidden states over through the maps,
    or ``copy`` where the widths are equal: whichever predicts more like the source on the texts
    that are held out of the fits. Then AdamW on T^2 KL between the class distributions of source
    and target, T = 2, over body and head. Labels are never seen.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2; for modules, Trans-LoRA, arXiv
    2405.17258.
    """

    name = "distil"
    reference_url = "https://arxiv.org/abs/1503.02531"
    needs_texts = True
    head = "fitted"
    fits_effect = True
    #: rate 0: the method's usual one
    options = MappingProxyType({"steps": 100, "batch": 16, "rate": 0.0})

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        """Any two hosts whose sites correspond, as for ``ridge``."""

    def carry(self, job: Job) -> Carried:
        hosts = need_hosts(job)
        for host in (hosts.source, hosts.target):
            if host.family.decides_by == "word" and host.words is None:
                raise InputError(
                    f"strategy 'distil' compares what the hosts predict, and '{host.ref}' predicts "
                    "label words; give them (verbalisers), or use --strategy effect"
                )
            if host.family.decides_by == "class" and not job.module.head:
                raise InputError(
                    "strategy 'distil' compares class predictions, and this module has no "
                    "classification head; use --strategy effect"
                )
        wanted = predictions(hosts, "source", source_module(job))  # [texts, C]
        start, tried = self._start(job, wanted)
        rate = float(job.options["rate"]) or job.carrier.rate
        how = Steps(int(job.options["steps"]), int(job.options["batch"]), rate)
        (made,) = distil(
            hosts.target, [target_module(job, start)], hosts.aligned.target, [wanted], how
        )
        facts = {**start.facts, "start": tried, "steps": how.steps, "batch": how.batch}
        return Carried(made.state, made.head, {**facts, "rate": rate})

    @staticmethod
    def _start(job: Job, wanted: torch.Tensor) -> tuple[Carried, dict[str, float]]:
        """The closed form with the smallest divergence on held-out texts, and that of each."""
        candidates = {"effect": Effect().carry(job)}
        if not same_width(job.plan.source, job.plan.target):
            candidates["copy"] = Copy().carry(job)
        hosts = need_hosts(job)
        held = is_held(torch.arange(len(wanted)))
        tried: dict[str, float] = {}
        for name, carried in candidates.items():
            own = predictions(hosts, "target", target_module(job, carried))
            tried[name] = float(divergence(own[held], wanted[held]).mean())
        return candidates[min(tried, key=tried.__getitem__)], tried
