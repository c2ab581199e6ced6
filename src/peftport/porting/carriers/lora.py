"""LoRA: A reads the linear's input, B writes to its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import State
from peftport.methods.lora import Lora, LoraConfig
from peftport.porting.carriers.base import (
    Carried,
    Carrier,
    Link,
    Maps,
    carriers,
    cast_like,
    doubles,
    input_site,
    ratio,
    rms,
)
from peftport.porting.spaces import Pair, Space


@carriers.register("lora")
class LoraCarrier(Carrier):
    """A' = A R^T, B' = W^T B with R [d_t, d_s] from target to source inputs and W [d_s, d_t] from
    source to target outputs. A has no bias to take up an intercept, so R goes through the origin.
    """

    name = "lora"

    def spaces(self, spec: HostSpec, site: Site, config: LoraConfig) -> dict[str, Space]:
        return {"read": Space("in", input_site(spec, site).name), "write": Space("out", site.name)}

    def carry(
        self,
        config: LoraConfig,
        state: State,
        links: Sequence[tuple[Link, Mapping[str, Pair]]],
        maps: Maps,
    ) -> Carried:
        made: State = {}
        for link, pairs in links:
            own = state[link.source.name]
            a, b = doubles(own)["A"], doubles(own)["B"]  # [r, d_in], [d_out, r]
            read = maps.read(pairs["read"], intercept=False).weight  # [d_in', d_in]
            write = maps.write(pairs["write"]).weight  # [d_out, d_out']
            made[link.target.name] = cast_like({"A": a @ read.T, "B": write.T @ b}, own)
        return Carried(made)

    def size(self, config: LoraConfig, state: State, site: str) -> float:
        own = doubles(state[site])
        return float((own["B"] @ own["A"]).norm()) * config.scale

    def effects(
        self, config: LoraConfig, state: State, site: str, points: Mapping[str, Tensor]
    ) -> dict[str, float]:
        own = doubles(state[site])
        delta = Lora.delta(points["read"].double(), own["A"], own["B"], config.scale)
        return {"update": ratio(rms(delta), rms(points["write"]))}

    def scaled(
        self, tensors: Mapping[str, Tensor], factors: Mapping[str, float]
    ) -> dict[str, Tensor]:
        return {**tensors, "B": tensors["B"] * factors["update"]}
