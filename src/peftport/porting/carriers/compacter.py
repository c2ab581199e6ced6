"""Compacter: moved as the dense adapter that it is, then written as Kronecker sums again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec
from peftport.methods.base import SHARED, State
from peftport.methods.bottleneck import ACTIVATIONS
from peftport.methods.compacter import CompacterConfig
from peftport.porting.carriers.base import (
    Carried,
    Link,
    Maps,
    Wanted,
    carriers,
    cast_like,
    doubles,
)
from peftport.porting.carriers.bottleneck import BottleneckCarrier, moved
from peftport.porting.kronecker import Dense, factorise
from peftport.porting.maps import fit, split
from peftport.porting.spaces import Pair


@carriers.register("compacter")
class CompacterCarrier(BottleneckCarrier):
    """A moved weight is no Kronecker sum any more. All sites are fitted together by alternating
    least squares with one shared rule (:func:`peftport.porting.kronecker.factorise`), weighted by
    what the matrices meet where that is known: down by the target's activations, up by the
    source's hidden units. The mean of the error goes into the biases; the rest is reported.
    """

    name = "compacter"
    rate = 3e-3

    def fitted(
        self, config: Any, state: State, site: str, wanted: Wanted
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Of up = sum_i kron(rule_i, left_i right_i) the rule and left stay; right and the bias are
        a least-squares problem with n unknowns per coordinate."""
        rule = state[SHARED]["rule"].double()  # [n, n, n]
        own = state[site]
        left = own["up_left"].double()  # [n, b / n, 1]
        n = len(rule)
        hidden = self.hidden(config, state, site, wanted.x)  # [N, b]
        narrow = hidden.unflatten(1, (n, -1)) @ left[..., 0].T  # [N, n (rows of the rule), n (i)]
        g = torch.einsum("nai,iab->nbi", narrow, rule)  # [N, n (columns of the rule), i]
        y = wanted.y.unflatten(1, (n, -1))  # [N, n, d / n]
        mean_g, mean_y = g[~wanted.held].mean(0), y[~wanted.held].mean(0)
        g, y = g - mean_g, y - mean_y
        moments = split(g.flatten(0, 1), y.flatten(0, 1), wanted.held.repeat_interleave(n))
        affine, strength, held_out = fit(*moments, intercept=False)
        right = affine.weight  # [i, d / n]
        bias = (mean_y - mean_g @ right).flatten()  # [d]
        made = {**own, "up_right": right[:, None], "up_bias": bias}
        return cast_like(made, own), {"strength": strength, "held_out": held_out}

    def resize(self, config: Any, source: HostSpec, target: HostSpec) -> CompacterConfig:
        """The same bottleneck width. Raises InputError where n does not divide the new d_model."""
        if target.d_model % config.n:
            raise InputError(
                f"compacter.n = {config.n} does not divide the target's d_model = "
                f"{target.d_model}; choose a target whose width it divides"
            )
        resized = super().resize(config, source, target)
        assert isinstance(resized, CompacterConfig)
        return resized

    def carry(
        self,
        config: CompacterConfig,
        state: State,
        links: Sequence[tuple[Link, Mapping[str, Pair]]],
        maps: Maps,
    ) -> Carried:
        rule = doubles(state[SHARED])["rule"]  # [n, n, n]
        act = ACTIVATIONS[config.activation]
        dense: list[Dense] = []
        biases: list[dict[str, torch.Tensor]] = []
        for link, pairs in links:
            own = doubles(state[link.source.name])
            down, up = self._matrices(config, state, link.source.name)  # [b, d_s], [d_s, b]
            made = moved({**own, "down": down, "up": up}, pairs, maps)
            points = maps.points(pairs["read"])
            met_down = met_up = mean_down = mean_up = None
            if points is not None:
                hidden = act(points.sample_source @ down.T + own["down_bias"])  # [N, b]
                met_down, mean_down = points.covariance, points.mean
                met_up, mean_up = torch.cov(hidden.T, correction=0), hidden.mean(0)
                met_up = met_up.reshape(hidden.shape[1], -1)
            dense.append(Dense(made["down"].T, met_down, mean_down))  # [d_t, b]
            dense.append(Dense(made["up"].T, met_up, mean_up))  # [b, d_t]
            biases.append({name: made[name] for name in ("down_bias", "up_bias")})
        fitted, factors, errors = factorise(dense, rule)
        result: State = {SHARED: cast_like({"rule": fitted}, state[SHARED])}
        report: dict[str, dict[str, float]] = {}
        for i, (link, _) in enumerate(links):
            site: dict[str, torch.Tensor] = {}
            for side, at in (("down", 2 * i), ("up", 2 * i + 1)):
                site[f"{side}_left"], site[f"{side}_right"] = factors[at].left, factors[at].right
                site[f"{side}_bias"] = biases[i][f"{side}_bias"] + factors[at].shift
            result[link.target.name] = cast_like(site, state[link.source.name])
            report[link.target.name] = {"down": errors[2 * i], "up": errors[2 * i + 1]}
        return Carried(result, facts={"kronecker_error": report})
