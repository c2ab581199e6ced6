"""Distil: some label-free steps towards the source's own predictions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, Module
from peftport.porting.carriers.base import Carried
from peftport.porting.distilling import Steps, distil, divergence
from peftport.porting.recorded import predictions
from peftport.porting.spaces import Correspondence, is_held
from peftport.porting.strategies.base import Job, Strategy, differing_widths, need_hosts, strategies
from peftport.porting.strategies.copy import Copy
from peftport.porting.strategies.effect import (
    Effect,
    silent,
    source_module,
    target_module,
)

#: option ``start``: train from every one and keep what ends nearest
NEAREST = "nearest"


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
    options = MappingProxyType({"steps": 100, "batch": 16, "rate": 0.0, "start": NEAREST})
    choices = MappingProxyType({"start": (NEAREST, "effect", "silent", "copy")})

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        """Any two hosts whose sites correspond, as for ``ridge``."""

    def check_options(self, source: HostSpec, target: HostSpec, options: Mapping[str, Any]) -> None:
        differing = differing_widths(source, target)
        if options["start"] == "copy" and differing:
            raise InputError(
                "strategy 'distil' cannot start from a copy between hosts of unlike widths "
                f"({', '.join(differing)}); use --set start=effect, or leave it out"
            )

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
        batch, texts = job.options["batch"], len(hosts.aligned.target)
        if batch > texts:
            raise InputError(
                f"strategy 'distil' was given batches of {batch} and {texts} texts; give more "
                "texts, or a smaller batch"
            )
        wanted = predictions(hosts, "source", source_module(job))  # [texts, C]
        rate = float(job.options["rate"]) or job.carrier.rate
        how = Steps(job.options["steps"], batch, rate)
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
    """Closed forms to start from, by name: all that there are, or the one that is asked for."""
    asked = job.options["start"]
    found: dict[str, Carried] = {}
    if asked != "copy":
        found["effect"] = fitted = Effect().carry(job)
        if asked != "effect":
            found["silent"] = silent(job, fitted)
    near = not differing_widths(job.plan.source, job.plan.target)
    if asked == "copy" or (asked == NEAREST and near):
        found["copy"] = Copy().carry(job)
    return found if asked == NEAREST else {asked: found[asked]}


def _distance(hosts: Correspondence, module: Module, wanted: Tensor) -> float:
    """Divergence from the source's predictions on held-out texts."""
    texts = [text for text in range(len(wanted)) if is_held(text)]
    own = predictions(hosts, "target", module, texts)
    return float(divergence(own, wanted[texts]).mean())
