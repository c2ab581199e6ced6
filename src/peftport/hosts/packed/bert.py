"""BERT over packed texts. With a pooler only the first token leaves the last layer, so there only
keys and values are computed for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftport.hosts.packed.attention import cross_attention, self_attention
from peftport.hosts.packed.base import Acts, Program, class_losses, classify
from peftport.hosts.packed.kernels import Frozen
from peftport.hosts.packed.layout import Packed, Spans
from peftport.hosts.spec import HostSpec


class _Layer:
    """One layer's frozen products and norms."""

    def __init__(self, layer: Any, first_only: bool) -> None:
        own = layer.attention.self
        parts = [own.query, own.key, own.value]
        self.q: Frozen | None = None
        if first_only:
            self.q = Frozen(own.query.weight, own.query.bias)
            parts = parts[1:]
        self.qkv = Frozen(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))
        self.o = _frozen(layer.attention.output.dense)
        self.up = _frozen(layer.intermediate.dense)
        self.down = _frozen(layer.output.dense)
        self.activation: Callable[[Tensor], Tensor] = layer.intermediate.intermediate_act_fn
        self.attention_norm: nn.LayerNorm = layer.attention.output.LayerNorm
        self.output_norm: nn.LayerNorm = layer.output.LayerNorm


class PackedBert(Program):
    """
    Args:
        model: BertForSequenceClassification, frozen, in eval mode.
        spec: its spec.
        pooled: the head reads the first token; else the mean over a text's tokens.
        offset: position of the first token.
    """

    def __init__(self, model: Any, spec: HostSpec, *, pooled: bool, offset: int = 0) -> None:
        base = model.base_model
        self._embeddings = base.embeddings
        self._pooled, self._offset = pooled, offset
        self._pooler: Any = getattr(base, "pooler", None) if pooled else None
        count = len(base.encoder.layer)
        self._layers = [
            _Layer(layer, first_only=pooled and i == count - 1)
            for i, layer in enumerate(base.encoder.layer)
        ]
        self._heads = spec.heads
        self._scale = spec.d_kv**-0.5

    def scores(self, texts: Packed, acts: Acts) -> Tensor:
        return classify(self.features(texts, acts), acts, len(texts.tokens))

    def losses(self, texts: Packed, acts: Acts, labels: Tensor) -> Tensor:
        return class_losses(self.scores(texts, acts), labels, len(texts.tokens))

    def features(self, texts: Packed, acts: Acts) -> Tensor:
        """What the head reads  [S, D], in packed order."""
        here = texts.once or texts  # narrow as long as no module has acted
        x = self._embed(here, acts.shift)  # [N, D]
        for i, layer in enumerate(self._layers):
            name = f"encoder.{i}.self_attn"
            roles = ("q", "k", "v")
            qkv = layer.qkv(x)
            if here is not texts and acts.acts_on(f"{name}.kv", *(f"{name}.{r}" for r in roles)):
                x, qkv, here = _copies(x, texts), _copies(qkv, texts), texts
            if layer.q is None:
                d = qkv.shape[1] // 3
                for at, role in enumerate(roles):
                    qkv = acts.linear(f"{name}.{role}", x, qkv, at * d, here.tokens)
                mixed = self_attention(
                    qkv, here.groups, self._heads, self._scale,
                    prefix=acts.pairs(f"{name}.kv"), mask=here.mask,
                )  # fmt: skip
                spans = here.tokens
            else:
                d = qkv.shape[1] // 2
                for at, role in enumerate(roles[1:]):
                    qkv = acts.linear(f"{name}.{role}", x, qkv, at * d, here.tokens)
                x, spans = _first(x, here), here.texts  # [S, D]
                q = acts.linear(f"{name}.q", x, layer.q(x), 0, spans)
                mixed = cross_attention(
                    q, qkv, here.groups, 1, self._heads, self._scale,
                    prefix=acts.pairs(f"{name}.kv"), mask=here.mask,
                )  # fmt: skip
            h = layer.o(mixed)
            if here is not texts and acts.acts_on(f"{name}.o", f"{name}.out"):
                x, mixed, h = (_copies(t, texts) for t in (x, mixed, h))
                here = texts
                spans = here.tokens if layer.q is None else here.texts
            h = acts.linear(f"{name}.o", mixed, h, 0, spans)
            x = self._add(acts, f"{name}.out", h, x, layer.attention_norm, spans)
            x, here = self._feed_forward(layer, f"encoder.{i}.ff", x, acts, here, texts)
        if here is not texts:
            x = _copies(x, texts)
        if self._pooled:
            dense = self._pooler and self._pooler.dense  # RoBERTa has none: its head pools
            return torch.tanh(F.linear(x, dense.weight, dense.bias)) if dense is not None else x
        if texts.mask is not None:
            own = (texts.mask.added == 0).to(x.dtype)[..., None]  # [S, T, 1]
            total: Tensor = (x.view(*own.shape[:2], -1) * own).sum(1)
            return total / own.sum(1)
        means = [
            x[g.start : g.start + g.size * g.length].view(g.size, g.length, -1).mean(1)
            for g in texts.groups
        ]
        return torch.cat(means)

    def _feed_forward(
        self, layer: _Layer, name: str, x: Tensor, acts: Acts, here: Packed, texts: Packed
    ) -> tuple[Tensor, Packed]:
        roles = ("up", "down", "out")
        if here is not texts and acts.acts_on(*(f"{name}.{role}" for role in roles)):
            x, here = _copies(x, texts), texts
        spans = here.tokens if layer.q is None else here.texts
        inner = layer.activation(acts.linear(f"{name}.up", x, layer.up(x), 0, spans))
        h = acts.linear(f"{name}.down", inner, layer.down(inner), 0, spans)
        return self._add(acts, f"{name}.out", h, x, layer.output_norm, spans), here

    @staticmethod
    def _add(
        acts: Acts, site: str, h: Tensor, residual: Tensor, norm: nn.LayerNorm, spans: Spans
    ) -> Tensor:
        if acts.acts_on(site):
            h = acts.out(site, h, residual, norm, spans)
        added: Tensor = norm(h + residual)
        return added

    def _embed(self, texts: Packed, shift: int) -> Tensor:
        own = self._embeddings
        x = own.word_embeddings(texts.ids)
        x = (
            x
            + own.token_type_embeddings.weight[0]
            + own.position_embeddings(texts.positions + self._offset + shift)
        )
        made: Tensor = own.LayerNorm(x)
        return made


def _frozen(linear: Any) -> Frozen:
    return Frozen(linear.weight, linear.bias)


def _first(x: Tensor, texts: Packed) -> Tensor:
    """The first token of every text  [S, D]"""
    if texts.mask is not None:  # padded: a view, whose gradient needs no sum over indices
        return x.view(len(texts.first), -1, x.shape[1])[:, 0].contiguous()
    return x[texts.first]


def _copies(x: Tensor, texts: Packed) -> Tensor:
    """The same rows for every slot."""
    return x.repeat(texts.copies, 1)
