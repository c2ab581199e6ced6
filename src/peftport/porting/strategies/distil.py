"""Distil: some label-free steps towards the source's own predictions."""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, Module
from peftport.porting.carriers.base import Carried
from peftport.porting.distilling import Steps, distil, divergence
from peftport.porting.recorded import predictions
from peftport.porting.spaces import Correspondence, is_held
from peftport.porting.strategies.base import Job, Strategy, need_hosts, same_width, strategies
from peftport.porting.strategies.copy import Copy
from peftport.porting.strategies.effect import (
    Effect,
    silent,
    source_module,
    target_module,
)


@strategies.register("distil")
class Distil(Strategy):
    """From several closed forms, N steps each on unlabelled texts towards the predictions of the
    source host + module; the nearest of them is the result.

    The starts are ``effect``, which already carries the module's hidden states over through the
    maps; the same without effect under a head fitted to that; and ``copy`` where the widths are
    equal. Then AdamW on T^2 KL between the class distributions of source and target, T = 2, over
    body and head. Nearest is what diverges least on the texts that the closed forms' strengths are
    chosen on. Labels are never seen.

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
        rate = float(job.options["rate"]) or job.carrier.rate
        how = Steps(int(job.options["steps"]), int(job.options["batch"]), rate)
        starts = _starts(job)
        begun = {name: target_module(job, carried) for name, carried in starts.items()}
        goals = [wanted] * len(begun)
        made = distil(hosts.target, list(begun.values()), hosts.aligned.target, goals, how)
        ended = dict(zip(begun, made, strict=True))
        tried = {
            name: {
                "before": _distance(hosts, begun[name], wanted),
                "after": _distance(hosts, ended[name], wanted),
            }
            for name in starts
        }
        best = min(tried, key=lambda name: tried[name]["after"])
        told = {"start": best, "starts": tried, "steps": how.steps, "batch": how.batch}
        facts = {**starts[best].facts, **told, "rate": rate}
        return Carried(ended[best].state, ended[best].head, facts)


def _starts(job: Job) -> dict[str, Carried]:
    """Closed forms to start from, by name."""
    fitted = Effect().carry(job)
    found = {"effect": fitted, "silent": silent(job, fitted)}
    if not same_width(job.plan.source, job.plan.target):
        found["copy"] = Copy().carry(job)
    return found


def _distance(hosts: Correspondence, module: Module, wanted: Tensor) -> float:
    """Divergence from the source's predictions on held-out texts."""
    texts = [text for text in range(len(wanted)) if is_held(text)]
    own = predictions(hosts, "target", module, texts)
    return float(divergence(own, wanted[texts]).mean())
