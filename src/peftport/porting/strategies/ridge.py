"""Ridge: linear maps between the hosts' activations on unlabelled texts, site by site."""

from __future__ import annotations

from typing import Any

from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig
from peftport.porting.carriers.base import Maps, Points
from peftport.porting.maps import Affine, fit
from peftport.porting.spaces import Correspondence, Pair, check_tokenizers
from peftport.porting.strategies.base import Job, MapStrategy, head_pairs, need_hosts, strategies


class RidgeMaps(Maps):
    """Maps fitted when first asked for, and kept with the correspondence for the next module.

    Attributes:
        used: what was fitted for this module: strength and held-out residual by map.
    """

    def __init__(self, hosts: Correspondence) -> None:
        self._hosts = hosts
        self.used: dict[str, dict[str, float]] = {}

    def read(self, pair: Pair, *, intercept: bool = True) -> Affine:
        return self._map(pair, "read", intercept)

    def write(self, pair: Pair) -> Affine:
        return self._map(pair, "write", True)

    def points(self, pair: Pair) -> Points:
        paired = self._hosts.paired(pair)
        ours = paired.moments.swapped()  # x: target
        return Points(ours.x / ours.n, ours.covariance, paired.sample_source, paired.sample_target)

    def facts(self) -> dict[str, Any]:
        return {"maps": self.used}

    def _map(self, pair: Pair, direction: str, intercept: bool) -> Affine:
        key = ("ridge", pair, direction, intercept)
        if key not in self._hosts.memo:
            paired = self._hosts.paired(pair)
            train, held = paired.train, paired.held  # x: source, y: target
            if direction == "read":
                train, held = train.swapped(), held.swapped()
            self._hosts.memo[key] = fit(train, held, intercept=intercept)
        affine, strength, error = self._hosts.memo[key]
        self.used[f"{direction} {pair.target}"] = {"strength": strength, "held_out": error}
        return affine


@strategies.register("ridge")
class Ridge(MapStrategy):
    """Linear maps between both hosts' activations at every site, fitted on unlabelled texts.

    M = argmin |H_t M - H_s|^2 + lambda |M|^2 from target to source where parameters read, and
    from source to target where they write; lambda by held-out texts, never by labels.

    Source: stitching of residual streams, arXiv 2506.06609; here at every site of the module, with
    inputs, projections and the head's features each in their own space.
    """

    name = "ridge"
    reference_url = "https://arxiv.org/abs/2506.06609"
    needs_texts = True

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        check_tokenizers(source, target)

    def maps(self, job: Job) -> RidgeMaps:
        hosts = need_hosts(job)
        pairs = [pair for _, uses in job.links for pair in uses.values()]
        hosts.collect([*pairs, *head_pairs(job.module.head)])
        return RidgeMaps(hosts)
