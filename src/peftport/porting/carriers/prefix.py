"""Prefix tuning: keys and values are points among the attention's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import State
from peftport.methods.prefix import PrefixConfig
from peftport.porting.carriers.base import (
    Carried,
    Carrier,
    Link,
    Maps,
    carriers,
    cast_like,
    doubles,
    ratio,
    rms,
    sibling,
)
from peftport.porting.spaces import Pair, Space


@carriers.register("prefix")
class PrefixCarrier(Carrier):
    """key' = key W + c with the affine map from the source's to the target's projected keys (all
    heads together, so that another number of heads is no obstacle); values likewise."""

    name = "prefix"
    rate = 1e-2

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
