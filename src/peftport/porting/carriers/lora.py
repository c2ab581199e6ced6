"""LoRA: A reads the linear's input, B writes to its output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import State
from peftport.methods.lora import Lora, LoraConfig
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
    input_site,
    ratio,
    rms,
)
from peftport.porting.regression import reduced_rank
from peftport.porting.spaces import Pair, Space


@carriers.register("lora")
class LoraCarrier(Carrier):
    """A' = A R^T, B' = W^T B with R [d_t, d_s] from target to source inputs and W [d_s, d_t] from
    source to target outputs. A has no bias to take up an intercept, so R goes through the origin.
    """

    name = "lora"

    def answers(self, spec: HostSpec, config: LoraConfig) -> dict[str, Answer]:
        """In every block the linear layers that write to the residual stream, where the module has
        them; else the values, whose update reaches the stream most directly; else whatever there
        is. The others stay without effect, with A as it was carried."""
        blocks: dict[tuple[str, int, str], list[Site]] = {}
        for site in Lora().sites(spec, config):
            blocks.setdefault((site.stack, site.layer, site.block), []).append(site)
        found: dict[str, Answer] = {}
        for (stack, layer, block), sites in blocks.items():
            roles = {site.role for site in sites}
            best = next((r for r in ("o", "down", "v") if r in roles), None)
            for site in sites:
                if best is None or site.role == best:
                    read = Space("in", input_site(spec, site).name)
                    write = Space("out", site.name)
                    if best in ("o", "down"):
                        write = Space("stream", f"{stack}.{layer}.{block}.out")
                    found[site.name] = Answer(read, write)
        return found

    def fitted(
        self, config: LoraConfig, state: State, site: str, wanted: Wanted
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Reduced-rank regression of what is wanted on the input, through the origin. A is scaled
        so that what it reads varies as much as at the start of a training."""
        low = reduced_rank(*wanted.moments(wanted.x), config.r, intercept=False)
        x = wanted.x.double()
        fresh = rms(x) / math.sqrt(3)  # of A x, with A uniform in +-1 / sqrt(d_in)
        own = state[site]
        a, b = torch.zeros_like(own["A"]), torch.zeros_like(own["B"])
        norms = (x @ low.read).square().mean(0).sqrt().clamp(min=1e-12) / max(fresh, 1e-12)  # [r]
        r = len(norms)
        a[:r] = (low.read / norms).T
        b[:, :r] = (low.write.T * norms) / config.scale
        return {"A": a, "B": b}, {"strength": low.strength, "held_out": low.held_out}

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
        # |B A|^2 = tr(B^T B A A^T), without the d_out x d_in product
        square = ((own["B"].T @ own["B"]) * (own["A"] @ own["A"].T)).sum()
        return float(square.clamp(min=0).sqrt()) * config.scale

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
