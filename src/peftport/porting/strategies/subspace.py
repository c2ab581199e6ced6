"""Subspace: a LoRA update re-expressed in the singular directions of the target's own weights."""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor

from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import MethodConfig, State
from peftport.porting.carriers.base import Carried, cast_like, doubles
from peftport.porting.lowrank import leading
from peftport.porting.strategies.base import (
    Job,
    Strategy,
    mapped_head,
    need_files,
    only_for,
    strategies,
)
from peftport.porting.tokens import TokenMaps
from peftport.porting.weights import HostFiles

Bases = tuple[Tensor, Tensor]


@strategies.register("subspace")
class Subspace(Strategy):
    """Without any data: W = U S V^T, cut to ``directions``, of the host's linear at each site.

    Equal shapes: dW_t = U_t U_t^T dW_s V_t V_t^T, the part of the update that lies in the target's
    subspaces. Other shapes: dW_t = U_t (U_s^T dW_s V_s) V_t^T, the i-th direction of one host for
    the i-th of the other, signs made canonical. Both act on B and A alone, so the rank stays r and
    no update is ever formed. One site of each host is in memory at a time.

    A head stays as it is at equal width and is mapped through the shared tokens' embeddings
    (strategy ``embedding``) otherwise.

    Source: LoRA-X, arXiv 2501.16559; Cross-LoRA, arXiv 2508.05232. Directions of equal rank need
    not mean the same on unrelated hosts: expect little there.
    """

    name = "subspace"
    reference_url = "https://arxiv.org/abs/2501.16559"
    needs_texts = False
    needs_weights = True
    head = "mapped"
    options = MappingProxyType({"directions": 256})

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        only_for(self.name, ("lora",), config)

    def carry(self, job: Job) -> Carried:
        source, target = need_files(job)
        bases = _Bases(source, job.options["directions"])
        made: State = {}
        kept: dict[str, int] = {}
        for link, _ in job.links:
            own = job.state[link.source.name]
            a, b = doubles(own)["A"], doubles(own)["B"]  # [r, d_in], [d_out, r]
            count = job.options["directions"]
            u_t, v_t = _directions(target, link.target, count)
            if (link.source.d_in, link.source.d_out) == (link.target.d_in, link.target.d_out):
                u_s, v_s = u_t, v_t
            else:
                u_s, v_s = bases.of(link.source)
            k = min(u_s.shape[1], u_t.shape[1])
            moved_b = u_t[:, :k] @ (u_s[:, :k].T @ b)  # [d_out', r]
            moved_a = (a @ v_s[:, :k]) @ v_t[:, :k].T  # [r, d_in']
            made[link.target.name] = cast_like({"A": moved_a, "B": moved_b}, own)
            kept[link.target.name] = k
        head = dict(job.module.head)
        if head and source.spec.d_model != target.spec.d_model:
            tokens = TokenMaps(source, target, tokens=40_000)
            head = mapped_head(head, tokens)
        return Carried(made, {n: t.clone() for n, t in head.items()}, {"directions": kept})


class _Bases:
    """The last source site's directions, since a deeper target asks for a layer more than once."""

    def __init__(self, files: HostFiles, count: int) -> None:
        self._files, self._count = files, count
        self._kept: dict[str, Bases] = {}

    def of(self, site: Site) -> Bases:
        if site.name not in self._kept:
            block = site.name.rpartition(".")[0]
            self._kept = {n: b for n, b in self._kept.items() if n.startswith(f"{block}.")}
            self._kept[site.name] = _directions(self._files, site, self._count)
        return self._kept[site.name]


def _directions(files: HostFiles, site: Site, count: int) -> Bases:
    """u [d_out, k], v [d_in, k] of a site's weight, in float64."""
    u, _, v = leading(files.linear(site), count)
    return u.double(), v.double()
