"""Bottleneck adapters: down reads the block's output, up writes to the residual stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import State, method_of
from peftport.methods.bottleneck import ACTIVATIONS, Bottleneck, BottleneckConfig
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
)
from peftport.porting.maps import fit
from peftport.porting.spaces import Pair, Space


@carriers.register("bottleneck")
class BottleneckCarrier(Carrier):
    """down' = down R^T, down_bias' = down_bias + down c, up' = W^T up, up_bias' = up_bias W.

    R and c map what the adapter reads (the block's output, or its norm with ``norm_first``) from
    target to source. W maps the residual stream after the block from source to target: what the
    adapter adds ends up there, and the stream varies in more directions than one block's output.
    """

    name = "bottleneck"

    def resize(
        self, config: BottleneckConfig, source: HostSpec, target: HostSpec
    ) -> BottleneckConfig:
        """The same bottleneck width; the formats store it as d_model / reduction."""
        width = config.width(source.d_model)
        if config.width(target.d_model) == width:
            return config
        reduction = target.d_model / width
        while int(target.d_model // reduction) < width:  # the quotient was rounded up
            reduction = math.nextafter(reduction, 0)
        return replace(config, reduction=reduction)

    def spaces(self, spec: HostSpec, site: Site, config: BottleneckConfig) -> dict[str, Space]:
        read = Space("normed" if config.norm_first else "block", site.name)
        return {"read": read, "write": Space("stream", site.name)}

    def answers(self, spec: HostSpec, config: BottleneckConfig) -> dict[str, Answer]:
        """Every site: what it adds ends up in the residual stream."""
        found: dict[str, Answer] = {}
        for site in method_of(config).sites(spec, config):
            spaces = self.spaces(spec, site, config)
            found[site.name] = Answer(spaces["read"], spaces["write"])
        return found

    def fitted(
        self, config: Any, state: State, site: str, wanted: Wanted
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The down-projection stays as it was carried; up and its bias by ridge regression of what
        is wanted on the hidden units that it gives."""
        own = state[site]
        hidden = self.hidden(config, state, site, wanted.x)  # [N, b]
        affine, strength, held_out = fit(*wanted.moments(hidden))
        made = {**own, "up": affine.weight.T, "up_bias": affine.bias}
        return cast_like(made, own), {"strength": strength, "held_out": held_out}

    def hidden(self, config: Any, state: State, site: str, x: Tensor) -> Tensor:
        """x [N, d] -> f(down(x)) [N, b], float64"""
        down, _ = self._matrices(config, state, site)
        bias = state[site]["down_bias"].double()
        return ACTIVATIONS[config.activation](x.double() @ down.T + bias)

    def carry(
        self,
        config: Any,
        state: State,
        links: Sequence[tuple[Link, Mapping[str, Pair]]],
        maps: Maps,
    ) -> Carried:
        made: State = {}
        for link, pairs in links:
            own = state[link.source.name]
            made[link.target.name] = cast_like(moved(doubles(own), pairs, maps), own)
        return Carried(made)

    def size(self, config: Any, state: State, site: str) -> float:
        down, up = self._matrices(config, state, site)
        return float((up @ down).norm())

    def effects(
        self, config: Any, state: State, site: str, points: Mapping[str, Tensor]
    ) -> dict[str, float]:
        down, up = self._matrices(config, state, site)
        own = doubles(state[site])
        added = Bottleneck.effect(
            points["read"].double(), down, own["down_bias"], up, own["up_bias"], config.activation
        )
        return {"added": ratio(rms(added), rms(points["write"]))}

    def scaled(
        self, tensors: Mapping[str, Tensor], factors: Mapping[str, float]
    ) -> dict[str, Tensor]:
        parts = {"up", "up_left", "up_bias"}
        return {n: t * factors["added"] if n in parts else t for n, t in tensors.items()}

    @staticmethod
    def _matrices(config: Any, state: State, site: str) -> tuple[Tensor, Tensor]:
        """(down [b, d], up [d, b]) of the method or of one derived from it, in float64."""
        method = method_of(config)
        assert isinstance(method, Bottleneck)
        return method.matrices({name: doubles(tensors) for name, tensors in state.items()}, site)


def moved(own: Mapping[str, Tensor], pairs: Mapping[str, Pair], maps: Maps) -> dict[str, Tensor]:
    """A dense adapter in the target's coordinates: down [b, d_s] -> [b, d_t], up [d_s, b] ->
    [d_t, b]; all in float64."""
    read = maps.read(pairs["read"])  # [d_t, d_s], [d_s]
    write = maps.write(pairs["write"]).weight  # [d_s, d_t]
    return {
        "down": own["down"] @ read.weight.T,
        "down_bias": own["down_bias"] + own["down"] @ read.bias,
        "up": write.T @ own["up"],
        "up_bias": own["up_bias"] @ write,
    }
