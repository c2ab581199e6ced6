"""Embedding: maps from the embeddings of the tokens that both vocabularies share."""

from __future__ import annotations

from types import MappingProxyType

from peftport.hosts.spec import HostSpec
from peftport.methods.base import MethodConfig
from peftport.porting.strategies.base import Job, MapStrategy, need_files, strategies
from peftport.porting.tokens import TokenMaps


@strategies.register("embedding")
class Embedding(MapStrategy):
    """One map for the whole residual stream, W = pinv(E_s[S]) E_t[S] over the shared tokens S from
    source to target (what is written) and pinv(E_t[S]) E_s[S] back (what is read); behind a linear
    layer the same fit on E W^T (:class:`peftport.porting.tokens.TokenMaps`). Reads weights and
    vocabularies; no text and no model.

    LoRASuite takes W and its transpose, and products of weights with W for projections; those do
    not preserve the size of an update, so least squares in both directions stands here instead.
    A head is taken to read the residual stream, which a pooler is not.

    Source: LoRASuite, arXiv 2505.13515.
    """

    name = "embedding"
    reference_url = "https://arxiv.org/abs/2505.13515"
    needs_texts = False
    needs_weights = True
    options = MappingProxyType({"tokens": 40_000})

    def check(self, source: HostSpec, target: HostSpec, config: MethodConfig) -> None:
        """Any two hosts whose sites correspond; too few shared tokens are refused when the
        vocabularies are read."""

    def maps(self, job: Job) -> TokenMaps:
        return TokenMaps(*need_files(job), tokens=job.options["tokens"])
