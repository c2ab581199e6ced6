"""Maps fitted on both hosts' activations: what ridge, procrustes and match have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig
from peftport.porting.carriers.base import Maps, Points
from peftport.porting.maps import Affine, Moments
from peftport.porting.spaces import Correspondence, Pair
from peftport.porting.strategies.base import Job, MapStrategy, head_pairs, need_hosts

Fitted = tuple[Affine, dict[str, float]]


class FittedMaps(Maps):
    """Maps fitted when first asked for, and kept with the correspondence for the next module.

    Attributes:
        name: under which they are kept.
        used: what was fitted for this module: facts by map.
    """

    name: ClassVar[str]

    def __init__(self, hosts: Correspondence) -> None:
        self._hosts = hosts
        self.used: dict[str, dict[str, float]] = {}

    @abstractmethod
    def fit(self, train: Moments, held: Moments, *, intercept: bool) -> Fitted:
        """The map x -> y and what is worth telling of it.

        Args:
            train, held: moments over four fifths of the texts, and over the others.
            intercept: whether the map may move the origin.
        """

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
        key = (self.name, pair, direction, intercept)
        if key not in self._hosts.memo:
            paired = self._hosts.paired(pair)
            train, held = paired.train, paired.held  # x: source, y: target
            if direction == "read":
                train, held = train.swapped(), held.swapped()
            self._hosts.memo[key] = self.fit(train, held, intercept=intercept)
        affine, facts = self._hosts.memo[key]
        self.used[f"{direction} {pair.target}"] = facts
        return affine


class FittedStrategy(MapStrategy):
    """One pass of both hosts over the unlabelled texts, then a map for each pair of spaces."""

    needs_texts = True
    maps_class: ClassVar[type[FittedMaps]]

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        """Any two hosts whose sites correspond; positions of different tokenizers are aligned by
        :mod:`peftport.porting.alignment`, which refuses what it cannot align."""

    def maps(self, job: Job) -> FittedMaps:
        hosts = need_hosts(job)
        pairs = [pair for _, uses in job.links for pair in uses.values()]
        hosts.collect([*pairs, *head_pairs(job.module.head)])
        return self.maps_class(hosts)
