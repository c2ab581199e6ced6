"""Effect: the target's module is fitted to do what the source's module does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from peftport.hosts.load import Host
from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig, Module, State
from peftport.porting.carriers.base import Answer, Carried, Wanted, cast_like
from peftport.porting.layers import LayerMap
from peftport.porting.maps import fit, split
from peftport.porting.recorded import Recorder, predictions
from peftport.porting.spaces import Pair, Space, is_held
from peftport.porting.strategies.base import HEAD, Job, Strategy, need_hosts, strategies
from peftport.porting.strategies.ridge import Ridge


@strategies.register("effect")
class Effect(Strategy):
    """What the module changes in the source host, mapped, is what it should change in the target.

    Let D be the difference that the whole module makes to the source's activations where a site
    writes, on unlabelled texts, and W the ridge map between the plain hosts there. Site by site, in
    the order in which the target computes them, parameters are fitted by ridge or reduced-rank
    regression so that the target's activations, with the sites before in place, become its plain
    ones + D W. Differences are total and not a site's own part, and a target layer is compared
    with the last source layer of its stretch, so that nothing is lost of layers that have no
    partner. At last the head is fitted by ridge to the logits of the source host + module.

    A bottleneck keeps the ridge port's down-projections; lora is fitted where it comes nearest to
    the residual stream, and its other sites start without effect. A prefix keeps the keys that
    ``match`` carries, and its values are fitted through the attention that they then get. Labels
    are never seen.

    Source: reduced-rank regression, Izenman 1975; the maps as in ``ridge``.
    """

    name = "effect"
    reference_url = "https://doi.org/10.1016/0047-259X(75)90042-1"
    needs_texts = True
    head = "fitted"
    fits_effect = True

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        """Any two hosts whose sites correspond, as for ``ridge``."""

    def carry(self, job: Job) -> Carried:
        """Kept with the hosts, since ``distil`` starts from it."""
        kept, plan = need_hosts(job).memo, job.plan
        key = (self.name, job.module.digest, str(plan.layer_map), str(plan.target_config))
        if key not in kept:
            kept[key] = self._carry(job)
        found: Carried = kept[key]
        return Carried(dict(found.state), dict(found.head), dict(found.facts))

    def _carry(self, job: Job) -> Carried:
        carried = strategies.get(job.carrier.fit_from)().carry(job)
        fits = _fit_sites(job, carried)
        carried.facts["fits"] = fits
        if job.module.head:
            head, facts = fit_head(job, carried)
            carried.head, carried.facts["head_fit"] = head, facts
        return carried


def stretch_ends(layer_map: LayerMap, source: HostSpec) -> dict[str, tuple[int, ...]]:
    """For every target layer the last source layer that it stands for: the one before the next
    target layer's, never before its own; the last layer for the last."""
    ends: dict[str, tuple[int, ...]] = {}
    for stack, chosen in layer_map.items():
        following = [*chosen[1:], source.layers[stack]]
        ends[stack] = tuple(max(i, j - 1) for i, j in zip(chosen, following, strict=True))
    return ends


def source_module(job: Job) -> Module:
    """The module to be ported, any reparameterisation resolved."""
    return replace(job.module, config=job.plan.config, state=job.state)


def target_module(job: Job, carried: Carried) -> Module:
    """A module of the target host with these parameters."""
    return replace(
        job.module,
        config=job.plan.target_config,
        state=carried.state,
        head=carried.head,
        fingerprint=job.plan.target.fingerprint,
    )


def silent(job: Job, carried: Carried) -> Carried:
    """The same module as long as it does nothing, under a head fitted to that."""
    plan, state = job.plan, {**carried.state}
    for site, tensors in carried.state.items():
        if "." in site:
            state[site] = job.carrier.probes(plan.target, plan.target_config, tensors)[0]
    facts = {name: fact for name, fact in carried.facts.items() if name != "fits"}
    made = Carried(state, dict(carried.head), facts)
    if job.module.head:
        made.head, made.facts["head_fit"] = fit_head(job, made)
    return made


def _fit_sites(job: Job, carried: Carried) -> dict[str, dict[str, float]]:
    """Fit all sites in order; ``carried.state`` becomes the result."""
    plan, carrier, hosts = job.plan, job.carrier, need_hosts(job)
    theirs = carrier.answers(plan.target, plan.target_config)
    if not theirs:
        return {}
    known = carrier.answers(plan.source, plan.config)
    ends = stretch_ends(plan.layer_map, plan.source)
    pairs = {site: Pair(_partner(site, known, ends).write, a.write) for site, a in theirs.items()}
    hosts.collect(pairs.values())
    maps = Ridge().maps(job)
    writes = {pair.source for pair in pairs.values()}
    width = 2 * sum(_width(plan.source, space) for space in writes)
    width += sum(_width(plan.target, pair.target) for pair in pairs.values())
    recorder = Recorder(hosts, width)
    plain = recorder.rows("source", None, writes)
    changed = recorder.rows("source", source_module(job), writes)
    ours = recorder.rows("target", None, {pair.target for pair in pairs.values()})
    fixed: State = {**carried.state}
    probes = {
        site: carrier.probes(plan.target, plan.target_config, tensors)
        for site, tensors in carried.state.items()
        if "." in site
    }
    state: State = {
        site: probes[site][0] if site in probes else tensors
        for site, tensors in carried.state.items()
    }
    facts: dict[str, dict[str, float]] = {}
    current = target_module(job, Carried(state, carried.head))
    for _, group in groupby(theirs, key=lambda site: site.rpartition(".")[0]):
        sites = list(group)
        spaces = {space for s in sites for space in (theirs[s].read, theirs[s].write)}
        now = recorder.rows("target", current, spaces)
        for site in sites:
            pair, answer = pairs[site], theirs[site]
            moved = (changed[pair.source] - plain[pair.source]).double()
            moved = moved @ maps.write(pair).weight  # D W
            y = ours[pair.target].double() + moved - now[pair.target].double()
            probed = []
            for tensors in probes[site][1:]:
                state[site] = tensors
                rows = recorder.rows("target", current, [answer.read])[answer.read]
                probed.append(rows - now[answer.read])
            weight = _weight(hosts.target, answer.read.site) if answer.through else None
            held = recorder.held(pair.source)
            wanted = Wanted(now[answer.read], y, held, probed, plan.target, weight)
            state[site], facts[site] = carrier.fitted(plan.target_config, fixed, site, wanted)
    carried.state = {site: state[site] for site in carried.state}
    return facts


def _width(spec: HostSpec, space: Space) -> int:
    return spec.site(space.site).d_out


def _weight(host: Host, site: str) -> Tensor:
    """Of a linear layer, [d_in, d_out], float64."""
    weight = host.family.submodule(host.model, host.spec, host.spec.site(site)).weight
    weight = weight.detach().double()
    return weight if host.family.transposed else weight.T


def _partner(site: str, known: Mapping[str, Answer], ends: Mapping[str, Sequence[int]]) -> Answer:
    stack, layer, rest = site.split(".", 2)
    return known[f"{stack}.{ends[stack][int(layer)]}.{rest}"]


def fit_head(job: Job, carried: Carried) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One linear layer, fitted to the source's logits on what the target's head reads; a head of
    several layers stays as it was carried."""
    weights = [name for name in carried.head if name.endswith("weight")]
    if len(weights) != 1:
        return carried.head, {}
    hosts = need_hosts(job)
    recorder = Recorder(hosts, 1)
    x = recorder.rows("target", target_module(job, carried), [HEAD.target])[HEAD.target]
    y = predictions(hosts, "source", source_module(job))[torch.tensor(recorder.texts)]
    moments = split(x, y, is_held(torch.tensor(recorder.texts)))
    bias = weights[0].removesuffix("weight") + "bias"
    affine, strength, held_out = fit(*moments, intercept=bias in carried.head)
    made = {weights[0]: affine.weight.T, bias: affine.bias}
    kept = {name: made[name] for name in carried.head}
    return cast_like(kept, carried.head), {"strength": strength, "held_out": held_out}
