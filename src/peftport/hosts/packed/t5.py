"""T5 over packed texts: no padding in the encoder, and a vocabulary only where a label word is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftport.hosts.families.base import Words
from peftport.hosts.packed.attention import cross_attention, self_attention
from peftport.hosts.packed.base import Acts, Program
from peftport.hosts.packed.device import batched, wide
from peftport.hosts.packed.fused import activation_of, norm_of
from peftport.hosts.packed.kernels import Frozen
from peftport.hosts.packed.layout import Group, Packed, PositionBias, Spans
from peftport.hosts.spec import HostSpec

#: marks positions behind a label word
IGNORE = -100


class _Attention:
    """One attention block's frozen products; ``cross`` reads keys and values elsewhere."""

    def __init__(self, block: Any, attention: Any, *, cross: bool) -> None:
        parts = [attention.k, attention.v] if cross else [attention.q, attention.k, attention.v]
        self.q = Frozen(attention.q.weight, None) if cross else None
        self.qkv = Frozen(torch.cat([p.weight for p in parts]), None)
        self.o = Frozen(attention.o.weight, None)
        self.norm = norm_of(block.layer_norm)
        self.scale = float(attention.scaling)


class _FeedForward:
    def __init__(self, block: Any) -> None:
        dense = block.DenseReluDense
        gated = hasattr(dense, "wi_0")
        self.gate = Frozen(dense.wi_0.weight, None) if gated else None
        self.up = Frozen((dense.wi_1 if gated else dense.wi).weight, None)
        self.down = Frozen(dense.wo.weight, None)
        self.activation = activation_of(dense.act, dense.wo.weight.device)
        self.norm = norm_of(block.layer_norm)


class _Layer:
    def __init__(self, block: Any, decoder: bool) -> None:
        own = block.layer
        self.attention = _Attention(own[0], own[0].SelfAttention, cross=False)
        self.cross = _Attention(own[1], own[1].EncDecAttention, cross=True) if decoder else None
        self.feed_forward = _FeedForward(own[-1])


class PackedT5(Program):
    """
    Args:
        model: T5ForConditionalGeneration, frozen, in eval mode.
        spec: its spec.
        words: label words.
    """

    def __init__(self, model: Any, spec: HostSpec, words: Words) -> None:
        self._stacks = {"encoder": model.encoder, "decoder": model.decoder}
        self._layers = {
            name: [_Layer(block, name == "decoder") for block in stack.block]
            for name, stack in self._stacks.items()
        }
        self._heads = spec.heads
        self._final = {name: norm_of(s.final_layer_norm) for name, s in self._stacks.items()}
        self._head = Frozen(model.lm_head.weight, None)
        config = model.config
        self._start, self._pad = config.decoder_start_token_id, config.pad_token_id
        self._out = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self._device = model.lm_head.weight.device
        targets = words.padded(torch.arange(len(words.ids)), IGNORE)
        self._targets = targets.to(self._device)  # [C, W]
        self._first = model.lm_head.weight.detach()[list(words.first)]  # [C, D]
        self._tables: dict[tuple[str, str, int, int], Tensor] = {}

    def scores(self, texts: Packed, acts: Acts) -> Tensor:
        start = torch.full((texts.n_texts, 1), self._start, device=self._device)
        return F.linear(self._decode(texts, acts, start), self._first)

    def losses(self, texts: Packed, acts: Acts, labels: Tensor) -> Tensor:
        targets = self._targets[labels]  # [S, W]
        given = torch.cat([torch.full_like(targets[:, :1], self._start), targets[:, :-1]], dim=1)
        given = given.masked_fill(given == IGNORE, self._pad)
        read = (targets != IGNORE).flatten()  # [S W]
        slots = len(texts.tokens)
        counts = read.view(slots, -1).sum(1)
        done = self._decode(texts, acts, given)  # [S W, D]
        if batched(self._device):  # which tokens are read is not known without waiting: all are
            logits = self._head(done)
            losses = F.cross_entropy(
                logits.to(wide(logits.dtype)),
                targets.flatten(),
                reduction="none",
                ignore_index=IGNORE,
            )
            return losses.view(slots, -1).sum(1) / counts
        logits = self._head(done[read])  # [n, V]
        losses = F.cross_entropy(
            logits.to(wide(logits.dtype)), targets.flatten()[read], reduction="none"
        )
        slot = torch.arange(slots).repeat_interleave(counts)
        return losses.new_zeros(slots).index_add(0, slot, losses) / counts

    def _decode(self, texts: Packed, acts: Acts, given: Tensor) -> Tensor:
        """Decoder outputs  [S W, D] for decoder inputs ``given``  [S, W]."""
        memory = self._encode(texts, acts)  # [N, D]
        count, width = given.shape
        slots = len(texts.tokens)
        each = count // slots
        groups = [Group(k * each * width, each, width, k * each, k) for k in range(slots)]
        spans = tuple((k * each * width, (k + 1) * each * width) for k in range(slots))
        stack = self._stacks["decoder"]
        x = stack.embed_tokens(given.flatten())  # [S W, D]
        for i, layer in enumerate(self._layers["decoder"]):
            name = f"decoder.{i}"
            own = layer.attention
            normed = own.norm(x)
            qkv = self._act_qkv(acts, f"{name}.self_attn", normed, own.qkv(normed), spans)
            mixed = self_attention(
                qkv, groups, self._heads, own.scale,
                prefix=acts.pairs(f"{name}.self_attn.kv"),
                bias=self._bias("decoder", acts, f"{name}.self_attn.kv"),
            )  # fmt: skip
            x = x + self._out_of(acts, f"{name}.self_attn", own.o(mixed), mixed, x, spans)
            x = x + self._cross(acts, f"{name}.cross_attn", layer.cross, x, memory, texts, spans)
            x = x + self._feed_forward(acts, f"{name}.ff", layer.feed_forward, x, spans)
        return self._final["decoder"](x) * self._out

    def _cross(
        self,
        acts: Acts,
        name: str,
        own: _Attention | None,
        x: Tensor,
        memory: Tensor,
        texts: Packed,
        spans: Spans,
    ) -> Tensor:
        assert own is not None and own.q is not None
        normed = own.norm(x)
        q = acts.linear(f"{name}.q", normed, own.q(normed), 0, spans)
        kv = own.qkv(memory)
        half = kv.shape[1] // 2
        for at, role in enumerate(("k", "v")):
            kv = acts.linear(f"{name}.{role}", memory, kv, at * half, texts.tokens)
        width = len(x) // texts.n_texts
        mixed = cross_attention(
            q, kv, texts.groups, width, self._heads, own.scale,
            prefix=acts.pairs(f"{name}.kv"), mask=texts.mask,
        )  # fmt: skip
        return self._out_of(acts, name, own.o(mixed), mixed, x, spans)

    def _encode(self, texts: Packed, acts: Acts) -> Tensor:
        """Encoder outputs  [N, D]."""
        here = texts.once or texts  # narrow as long as no module has acted
        stack = self._stacks["encoder"]
        x = stack.embed_tokens(here.ids)  # [N, D]
        for i, layer in enumerate(self._layers["encoder"]):
            name, own = f"encoder.{i}.self_attn", layer.attention
            normed = own.norm(x)
            qkv = own.qkv(normed)
            if here is not texts and acts.acts_on(*(f"{name}.{r}" for r in ("q", "k", "v", "kv"))):
                x, normed, qkv = (t.repeat(texts.copies, 1) for t in (x, normed, qkv))
                here = texts
            qkv = self._act_qkv(acts, name, normed, qkv, here.tokens)
            mixed = self_attention(
                qkv, here.groups, self._heads, own.scale,
                prefix=acts.pairs(f"{name}.kv"), mask=here.mask,
                bias=self._bias("encoder", acts, f"{name}.kv"),
            )  # fmt: skip
            h = own.o(mixed)
            if here is not texts and acts.acts_on(f"{name}.o", f"{name}.out"):
                x, mixed, h = (t.repeat(texts.copies, 1) for t in (x, mixed, h))
                here = texts
            x = x + self._out_of(acts, name, h, mixed, x, here.tokens)
            name = f"encoder.{i}.ff"
            roles = ("gate", "up", "down", "out")
            if here is not texts and acts.acts_on(*(f"{name}.{role}" for role in roles)):
                x, here = x.repeat(texts.copies, 1), texts
            x = x + self._feed_forward(acts, name, layer.feed_forward, x, here.tokens)
        if here is not texts:
            x = x.repeat(texts.copies, 1)
        return self._final["encoder"](x)

    @staticmethod
    def _act_qkv(acts: Acts, name: str, x: Tensor, qkv: Tensor, spans: Spans) -> Tensor:
        third = qkv.shape[1] // 3
        for at, role in enumerate(("q", "k", "v")):
            qkv = acts.linear(f"{name}.{role}", x, qkv, at * third, spans)
        return qkv

    @staticmethod
    def _out_of(
        acts: Acts, name: str, h: Tensor, mixed: Tensor, residual: Tensor, spans: Spans
    ) -> Tensor:
        """What an attention block adds to the residual."""
        h = acts.linear(f"{name}.o", mixed, h, 0, spans)
        if acts.acts_on(f"{name}.out"):
            h = acts.out(f"{name}.out", h, residual, None, spans)
        return h

    @staticmethod
    def _feed_forward(
        acts: Acts, name: str, own: _FeedForward, residual: Tensor, spans: Spans
    ) -> Tensor:
        """What a feed-forward block adds to the residual."""
        x = own.norm(residual)
        up = acts.linear(f"{name}.up", x, own.up(x), 0, spans)
        if own.gate is None:
            inner = own.activation(up)
        else:
            gate = acts.linear(f"{name}.gate", x, own.gate(x), 0, spans)
            inner = own.activation(gate) * up
        h = acts.linear(f"{name}.down", inner, own.down(inner), 0, spans)
        if acts.acts_on(f"{name}.out"):
            h = acts.out(f"{name}.out", h, residual, None, spans)
        return h

    def _bias(self, stack: str, acts: Acts, site: str) -> PositionBias:
        """The relative position bias, causal in the decoder, of a prefix and of own tokens."""
        pairs = acts.pairs(site)
        length = 0 if pairs is None else pairs[0].shape[1]
        kind = (stack, acts.prefix_bias() if length else "none", length)

        def bias(queries: int, keys: int) -> Tensor:
            # a table is never replaced: a recorded graph may read it
            key = (*kind, max(64, 1 << (queries - 1).bit_length()))
            if key not in self._tables:
                self._tables[key] = self._table(*key)
            return self._tables[key][:, :queries, :keys]

        return PositionBias(kind, bias)

    @torch.no_grad()
    def _table(self, stack: str, kind: str, length: int, size: int) -> Tensor:
        """Bias  [H, size, length + size]; a smaller one is its upper left corner."""
        attention: Any = self._stacks[stack].block[0].layer[0].SelfAttention
        past = 0 if kind == "shifted" else length
        bias: Tensor = attention.compute_bias(size, length + size, past_seen_tokens=past)[0].clone()
        if kind == "none":
            bias[:, :, :length] = 0
        if stack == "decoder":
            later = torch.ones(size, size, dtype=torch.bool, device=bias.device).triu(1)
            bias[:, :, length:].masked_fill_(later, -torch.inf)
        return bias
