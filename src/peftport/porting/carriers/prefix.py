"""Prefix tuning: keys and values are points among the attention's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import State
from peftport.methods.prefix import Prefix, PrefixConfig
from peftport.porting.carriers.base import (
    Answer,
    Carried,
    Carrier,
    Link,
    Maps,
    Wanted,
    carriers,
    cast_like,
    doubles,
    ratio,
    rms,
    sibling,
)
from peftport.porting.spaces import Pair, Space
from peftport.porting.values import fit_values


@carriers.register("prefix")
class PrefixCarrier(Carrier):
    """key' = key W + c with the affine map from the source's to the target's projected keys (all
    heads together, so that another number of heads is no obstacle); values likewise."""

    name = "prefix"
    rate = 1e-2
    fit_from = "match"

    def answers(self, spec: HostSpec, config: PrefixConfig) -> dict[str, Answer]:
        """Every attention: what its pairs add goes through its output projection to the stream."""
        return {
            site.name: Answer(
                Space("in", sibling(spec, site, "o").name),
                Space("stream", sibling(spec, site, "out").name),
                through=True,
            )
            for site in Prefix().sites(spec, config)
        }

    def probes(
        self, spec: HostSpec, config: PrefixConfig, tensors: Mapping[str, Tensor]
    ) -> list[dict[str, Tensor]]:
        """Values of zero, which still draw attention from the text; then values of which each is
        one in a coordinate of its own, as many a probe as a head has coordinates: what changes
        there is the attention that a pair gets."""
        key, value = tensors["key"], tensors["value"]
        found = [{"key": key, "value": torch.zeros_like(value)}]
        for start in range(0, len(value), spec.d_kv):
            ones = value.new_zeros(len(value), spec.kv_heads, spec.d_kv)
            count = min(spec.d_kv, len(value) - start)
            ones[start + torch.arange(count), :, torch.arange(count)] = 1.0
            found.append({"key": key, "value": ones.flatten(1)})
        return found

    def fitted(
        self, config: PrefixConfig, state: State, site: str, wanted: Wanted
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The keys stay as they were carried; values by :func:`peftport.porting.values.fit_values`
        on the attention that they get."""
        own, spec, weight = state[site], wanted.spec, wanted.weight
        assert spec is not None and weight is not None
        parts = [change.unflatten(1, (spec.heads, spec.d_kv)) for change in wanted.probed]
        attention = torch.cat(parts, dim=2)[:, :, : len(own["value"])]  # [N, heads, l]
        values, strength, held_out = fit_values(
            *wanted.moments(attention.flatten(1)),
            weight.unflatten(0, (spec.heads, spec.d_kv)),
            spec.kv_heads,
        )
        made = cast_like({"key": own["key"], "value": values}, own)
        return made, {"strength": strength, "held_out": held_out}

    def spaces(self, spec: HostSpec, site: Site, config: PrefixConfig) -> dict[str, Space]:
        return {
            "key": Space("out", sibling(spec, site, "k").name),
            "value": Space("out", sibling(spec, site, "v").name),
        }

    def carry(
        self,
        config: PrefixConfig,
        state: State,
        links: Sequence[tuple[Link, Mapping[str, Pair]]],
        maps: Maps,
    ) -> Carried:
        made: State = {}
        for link, pairs in links:
            own = state[link.source.name]
            points = {use: maps.write(pairs[use])(own[use]) for use in ("key", "value")}
            made[link.target.name] = cast_like(points, own)  # [l, heads * d_kv] each
        return Carried(made)

    def size(self, config: PrefixConfig, state: State, site: str) -> float:
        own = doubles(state[site])
        return float((own["key"].square().sum() + own["value"].square().sum()).sqrt())

    def effects(
        self, config: PrefixConfig, state: State, site: str, points: Mapping[str, Tensor]
    ) -> dict[str, float]:
        own = state[site]
        return {use: ratio(rms(own[use]), rms(points[use])) for use in ("key", "value")}

    def scaled(
        self, tensors: Mapping[str, Tensor], factors: Mapping[str, float]
    ) -> dict[str, Tensor]:
        return {use: tensor * factors[use] for use, tensor in tensors.items()}
