"""What peftport knows of a host without running it: its shape, its sites, its identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

Block = Literal["self_attn", "cross_attn", "ff"]


@dataclass(frozen=True, order=True)
class Site:
    """A place in a host where a module acts.

    Attributes:
        stack: ``encoder`` or ``decoder``.
        layer: 0-based index in its stack.
        block: ``self_attn``, ``cross_attn`` or ``ff``.
        role: in attention ``q``, ``k``, ``v``, ``o`` (linears), ``kv`` (key/value pairs before the
            attention's own); in a feed-forward ``up``, ``gate``, ``down`` (linears); in both
            ``out`` (the block's output before it is added to the residual stream).
        d_in, d_out: widths. For ``kv`` both are kv_heads x d_kv, for ``out`` both are d_model.
    """

    stack: str
    layer: int
    block: Block
    role: str
    d_in: int = field(compare=False)
    d_out: int = field(compare=False)

    @property
    def name(self) -> str:
        """``encoder.3.self_attn.q``"""
        return f"{self.stack}.{self.layer}.{self.block}.{self.role}"


@dataclass(frozen=True)
class HostSpec:
    """Shape and identity of a host.

    Attributes:
        family: registered family name, e.g. ``bert``.
        d_model: width of the residual stream.
        layers: layers per stack, e.g. ``{"encoder": 6}``.
        heads, d_kv: attention heads and width of one head (T5: d_kv != d_model / heads).
        kv_heads: heads of keys and values; fewer than ``heads`` with grouped-query attention.
        d_ff: inner width of the feed-forward block.
        vocab_size: rows of the embedding.
        sites: every place where some method may act, in the host's own order.
        tokenizer: digest of the tokenizer's vocabulary and settings.
        fingerprint: digest of the weights (names, shapes, dtype-independent values) and shape.
    """

    family: str
    d_model: int
    layers: Mapping[str, int]
    heads: int
    d_kv: int
    d_ff: int
    vocab_size: int
    sites: tuple[Site, ...]
    tokenizer: str = ""
    fingerprint: str = ""
    kv_heads: int = 0

    def __post_init__(self) -> None:
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)

    def site(self, name: str) -> Site:
        return self.by_name[name]

    @property
    def by_name(self) -> dict[str, Site]:
        return {site.name: site for site in self.sites}

    @property
    def shape_digest(self) -> str:
        """Equal for two hosts exactly when a module can be copied between them unchanged."""
        facts = [self.family, self.d_model, dict(self.layers), self.heads, self.d_kv, self.d_ff]
        if self.kv_heads != self.heads:
            facts.append(self.kv_heads)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, object]:
        """Everything but the sites, which follow from the family and the shape."""
        facts = asdict(self)
        facts.pop("sites")
        facts["layers"] = dict(self.layers)
        return facts
