"""Heads: attention heads are matched by what they compute, and carried one by one."""

from __future__ import annotations

from types import MappingProxyType

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import MethodConfig
from peftport.porting.carriers.base import sibling
from peftport.porting.maps import Moments
from peftport.porting.spaces import Pair
from peftport.porting.strategies.base import Job, MapStrategy, need_files, only_for, strategies
from peftport.porting.tokens import TokenMaps, least_squares, per_query_head
from peftport.porting.weights import HostFiles

#: (source head, target head)
Couples = list[tuple[int, int]]
_ROLES = {"q", "k", "v", "o"}


class HeadMaps(TokenMaps):
    """As for ``embedding``, but block by block in spaces that are made of heads."""

    def __init__(self, source: HostFiles, target: HostFiles, *, tokens: int) -> None:
        super().__init__(source, target, tokens=tokens)
        self._couples: dict[tuple[str, str], tuple[Couples, Couples, float]] = {}

    def fit(self, pair: Pair, moments: Moments, direction: str) -> Tensor:
        ours, theirs = self.source.spec, self.target.spec
        site_s, site_t = ours.site(pair.source.site), theirs.site(pair.target.site)
        queries, pairs, _ = self._matched(site_s, site_t)
        couples = queries if site_s.role in ("q", "o") else pairs
        d_x, d_y = ours.d_kv, theirs.d_kv
        if direction == "read":
            couples, (d_x, d_y) = [(j, i) for i, j in couples], (d_y, d_x)
        made = torch.zeros_like(moments.xy)
        for i, j in couples:
            rows, columns = slice(i * d_x, (i + 1) * d_x), slice(j * d_y, (j + 1) * d_y)
            one = Moments(d_x, d_y)
            one.n, one.x, one.y = moments.n, moments.x[rows], moments.y[columns]
            one.xx, one.yy = moments.xx[rows, rows], moments.yy[columns, columns]
            one.xy = moments.xy[rows, columns]
            made[rows, columns] = least_squares(one).weight
        return made

    def facts(self) -> dict[str, object]:
        told = {
            f"{t} <- {s}": {"heads": [list(c) for c in queries], "cosine": cosine}
            for (s, t), (queries, _, cosine) in self._couples.items()
        }
        return {**super().facts(), "heads": told}

    def _matched(self, source: Site, target: Site) -> tuple[Couples, Couples, float]:
        """Couples of query heads and of key/value heads of two attentions."""
        key = (source.name.rpartition(".")[0], target.name.rpartition(".")[0])
        if key not in self._couples:
            read, write = self.stream("read").weight, self.stream("write").weight
            ours = _Attention(self.source, source, read.T, write)
            theirs = _Attention(self.target, target, None, None)
            cosines = similarity(ours, theirs)
            groups = (self.source.spec.kv_heads, self.target.spec.kv_heads)
            queries, pairs = match_heads(cosines, *groups)
            mean = float(torch.stack([cosines[c] for c in queries]).mean())
            self._couples[key] = (queries, pairs, mean)
        return self._couples[key]


class _Attention:
    """What the heads of an attention read and write, in the target's residual stream.

    Attributes:
        q, k, v, o: [heads, d_kv, d_model of the target]; o is transposed.
    """

    def __init__(
        self, files: HostFiles, site: Site, read: Tensor | None, write: Tensor | None
    ) -> None:
        spec = files.spec

        def rows(role: str) -> Tensor:
            w = files.linear(sibling(spec, site, role)).to(torch.float64)
            if role == "o":
                w = w.T if write is None else w.T @ write
            else:
                w = w if read is None else w @ read
            w = per_query_head(spec, w) if role in ("k", "v") else w
            return w.reshape(spec.heads, spec.d_kv, -1)

        self.q, self.k, self.v, self.o = (rows(role) for role in ("q", "k", "v", "o"))


def similarity(ours: _Attention, theirs: _Attention) -> Tensor:
    """Cosine of vec[Q^T K ; V^T O^T] for every two heads, [H_s, H_t]; no d_model x d_model matrix
    is formed, since <A^T B, C^T D> = sum((A C^T) * (B D^T))."""

    def inner(x: _Attention, y: _Attention) -> Tensor:
        def products(a: Tensor, b: Tensor) -> Tensor:  # [H_x, d_x, d], [H_y, d_y, d]
            flat = a.flatten(0, 1) @ b.flatten(0, 1).T
            return flat.reshape(len(a), a.shape[1], len(b), b.shape[1])

        scores = (products(x.q, y.q) * products(x.k, y.k)).sum((1, 3))
        return scores + (products(x.v, y.v) * products(x.o, y.o)).sum((1, 3))

    sizes = [inner(a, a).diagonal().clamp(min=1e-300).sqrt() for a in (ours, theirs)]
    return inner(ours, theirs) / (sizes[0][:, None] * sizes[1][None, :])


def match_heads(cosines: Tensor, groups_s: int, groups_t: int) -> tuple[Couples, Couples]:
    """One-to-one couples with the largest sum of cosines.

    Query heads that share keys and values stay together: groups are coupled by the best coupling
    of their query heads. Heads without a partner are in no couple.

    Args:
        cosines: [H_s, H_t].
        groups_s, groups_t: key/value heads.

    Returns:
        Couples of query heads, and of key/value heads.
    """
    size_s, size_t = cosines.shape[0] // groups_s, cosines.shape[1] // groups_t
    blocks = cosines.reshape(groups_s, size_s, groups_t, size_t).permute(0, 2, 1, 3)
    inside = [[_assigned(blocks[g, h]) for h in range(groups_t)] for g in range(groups_s)]
    scores = torch.tensor(
        [
            [sum(float(blocks[g, h][c]) for c in inside[g][h]) for h in range(groups_t)]
            for g in range(groups_s)
        ]
    )
    pairs = _assigned(scores)
    queries = [(g * size_s + i, h * size_t + j) for g, h in pairs for i, j in inside[g][h]]
    return queries, pairs


def _assigned(scores: Tensor) -> Couples:
    rows, columns = linear_sum_assignment(scores.numpy(), maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


@strategies.register("heads")
class Heads(MapStrategy):
    """Lora on q, k, v, o and prefixes: heads are coupled one to one by the cosine between
    vec[Q^T K ; V^T O^T] of both, the source's in the target's residual stream by the shared tokens'
    embeddings (Hungarian); what a head has goes to its partner, with the least-squares map between
    the two heads' own projections. Heads of the target without a partner get nothing; with grouped
    queries whole groups are coupled.

    LoRASuite moves a head by a product T = W_old W W_new^T, which does not preserve the size of an
    update; least squares stands here instead. Rotary positions are not looked at.

    Source: LoRASuite, arXiv 2505.13515.
    """

    name = "heads"
    reference_url = "https://arxiv.org/abs/2505.13515"
    needs_texts = False
    needs_weights = True
    options = MappingProxyType({"tokens": 40_000})

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        only_for(self.name, ("lora", "prefix"), config)
        others = sorted(set(getattr(config, "roles", ())) - _ROLES)
        if others:
            raise InputError(
                f"strategy 'heads' carries lora on q, k, v, o only, the module also has "
                f"{', '.join(others)}; use --strategy embedding"
            )

    def maps(self, job: Job) -> HeadMaps:
        return HeadMaps(*need_files(job), tokens=job.options["tokens"])
