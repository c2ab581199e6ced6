"""Prefix tuning: learned key/value pairs before each attention's own.

``positions`` says what a prefix is to the host's position encoding. ``none``: pairs without a
position (Li & Liang; AdapterHub). ``past``: pairs of a past that the tokens come after, as in a
cache (PEFT): T5 gives them relative position bias, all others count their tokens' positions from l
(the pairs themselves are not rotated).
``shifted``: AdapterHub on T5, where keys count from the first pair but queries from the first
token, so that every relative distance is off by l; kept to run its files with equal logits.
Source: Li & Liang 2021, arXiv 2101.00190, section 4; reparameterisation section 4.3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from peftport.errors import InputError
from peftport.hosts.families.base import Family
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.bank import BankLayer
from peftport.methods.base import SHARED, Method, MethodConfig, State, methods

_ATTENTION = "peftport_prefix"


@dataclass(frozen=True)
class PrefixConfig(MethodConfig):
    """
    Attributes:
        length: number l of key/value pairs.
        positions: ``none``, ``past`` or ``shifted``.
        stacks, blocks: attentions that get a prefix.
        hidden: width of the reparameterising network, or None to train the pairs directly.
        init_std: standard deviation of fresh pairs.
    """

    method = "prefix"
    length: int = 16
    positions: str = "none"
    stacks: tuple[str, ...] = ("encoder", "decoder")
    blocks: tuple[str, ...] = ("self_attn", "cross_attn")
    hidden: int | None = None
    init_std: float = 0.1

    def check(self) -> None:
        self.require(self.length >= 1, "length", ">= 1")
        known = ("none", "past", "shifted")
        self.require(self.positions in known, "positions", f"one of {known}")
        self.require(self.hidden is None or self.hidden >= 1, "hidden", ">= 1 or null")
        self.require(self.init_std > 0, "init_std", "> 0")
        self.require_some("stacks", ("encoder", "decoder"))
        self.require_some("blocks", ("self_attn", "cross_attn"))

    @property
    def shift(self) -> int:
        return self.length if self.positions == "past" else 0


@methods.register("prefix")
class Prefix(Method):
    name = "prefix"
    reference_url = "https://arxiv.org/abs/2101.00190"
    config_class = PrefixConfig

    def default_config(self, spec: HostSpec) -> PrefixConfig:
        from peftport.hosts.families.base import families

        return PrefixConfig(positions=families.get(spec.family).prefix_positions)

    def sites(self, spec: HostSpec, config: PrefixConfig) -> list[Site]:
        return [
            s
            for s in spec.sites
            if s.role == "kv" and s.stack in config.stacks and s.block in config.blocks
        ]

    def init(self, spec: HostSpec, config: PrefixConfig, generator: torch.Generator) -> State:
        """Pairs from N(0, init_std); a reparameterisation as nn.Embedding and nn.Linear start."""
        state: State = {}
        for group, sites in self._groups(self.sites(spec, config)).items():
            length, inner = config.length, sites[0].d_out
            if config.hidden is None:
                for site in sites:
                    state[site.name] = {
                        name: torch.empty(length, inner).normal_(
                            0, config.init_std, generator=generator
                        )
                        for name in ("key", "value")
                    }
                continue
            state[group] = {
                "embedding": torch.empty(length, spec.d_model).normal_(0, 1, generator=generator)
            }
            widths = (spec.d_model, config.hidden, len(sites) * 2 * inner)
            for i in (1, 2):
                bound = 1 / math.sqrt(widths[i - 1])
                for name, shape in ((f"w{i}", (widths[i], widths[i - 1])), (f"b{i}", (widths[i],))):
                    state[group][name] = torch.empty(shape).uniform_(
                        -bound, bound, generator=generator
                    )
        return state

    @staticmethod
    def _groups(sites: list[Site]) -> dict[str, list[Site]]:
        """Sites by the network that makes their pairs: one for each (stack, block)."""
        groups: dict[str, list[Site]] = {}
        for site in sites:
            groups.setdefault(f"{SHARED}.{site.stack}.{site.block}", []).append(site)
        return groups

    def pairs(self, spec: HostSpec, config: PrefixConfig, state: State) -> State:
        """key and value  [..., l, kv_heads * d_kv] of every site, through the network if there is
        one; a bank's have a leading axis K."""
        if config.hidden is None:
            return state
        made: State = {}
        for group, sites in self._groups(self.sites(spec, config)).items():
            net = state[group]
            hidden = torch.tanh(_linear(net["embedding"], net["w1"], net["b1"]))  # [..., l, hidden]
            out = _linear(hidden, net["w2"], net["b2"])  # [..., l, sites * 2 * inner]
            chunks = out.unflatten(-1, (len(sites), 2, -1))
            for i, site in enumerate(sites):
                made[site.name] = {"key": chunks[..., i, 0, :], "value": chunks[..., i, 1, :]}
        return made

    def finish(self, spec: HostSpec, config: Any, state: State) -> tuple[PrefixConfig, State]:
        pairs = self.pairs(spec, config, state)
        kept = {s: {n: t.contiguous() for n, t in ts.items()} for s, ts in pairs.items()}
        return replace(config, hidden=None), kept

    def attach(
        self, family: Family, model: nn.Module, spec: HostSpec, config: PrefixConfig, state: State
    ) -> list[Callable[[], None]]:
        live: State = {}

        def prepare(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            live.clear()
            live.update(self.pairs(spec, config, state))
            if config.shift:
                return family.shift_positions(model, args, kwargs, config.shift)
            return args, kwargs

        base = family.body(model)
        undo = [base.register_forward_pre_hook(prepare, with_kwargs=True).remove]
        for site in self.sites(spec, config):
            attention = family.submodule(model, spec, site)
            bias: Callable[[int], Tensor | None] | None = None
            if config.positions != "none":
                shifted = config.positions == "shifted"

                def bias(queries: int, site: Site = site, shifted: bool = shifted) -> Tensor | None:
                    return family.relative_bias(
                        model, spec, site, queries, config.length, shifted=shifted
                    )

            undo.append(_patch(attention, live, site.name, spec, bias))
        return undo

    def bank(
        self, spec: HostSpec, config: Any, state: State, head: Mapping[str, Tensor]
    ) -> BankLayer:
        return PrefixBank(self, spec, config, state, head)


class PrefixBank(BankLayer):
    """Each slot's own pairs before its texts' keys and values."""

    def __init__(
        self,
        method: Prefix,
        spec: HostSpec,
        config: Any,
        state: State,
        head: Mapping[str, Tensor],
    ) -> None:
        super().__init__(config, state, head)
        self._make = lambda: method.pairs(spec, config, state)
        self._live: State = {}
        self._sites = {site.name for site in method.sites(spec, config)}
        self.shift = config.shift

    def acts_on(self, *sites: str) -> bool:
        return any(site in self._sites for site in sites)

    def refresh(self) -> None:
        self._live = self._make()

    def pairs(self, site: str) -> tuple[Tensor, Tensor] | None:
        own = self._live.get(site)
        return None if own is None else (own["key"], own["value"])

    def prefix_bias(self) -> str:
        return str(self.config.positions)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [..., l, d_in], weight [..., d_out, d_in], bias [..., d_out] -> [..., l, d_out]"""
    return x @ weight.mT + bias.unsqueeze(-2)


def _patch(
    attention: Any,
    live: State,
    name: str,
    spec: HostSpec,
    bias: Callable[[int], Tensor | None] | None,
) -> Callable[[], None]:
    """Send one attention module through :func:`_prefix_attention`; the config it shares with the
    rest of the model stays as it is, since masks are made from that one."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kind = attention.config._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise InputError(
            f"a prefix runs with attn_implementation 'sdpa' or 'eager', this model has '{kind}'"
        )
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _prefix_attention)
    own_config, own = attention.config, copy.copy(attention.config)
    own._attn_implementation_internal = _ATTENTION
    eager = __import__(type(attention).__module__, fromlist=["x"]).eager_attention_forward
    inner = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager)
    attention.config = own
    attention._peftport_prefix = (live, name, spec.kv_heads, bias, inner)

    def undo() -> None:
        attention.config = own_config
        del attention._peftport_prefix

    return undo


def _prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """query [B, heads, Q, d], key and value [B, kv_heads, T, d] -> the host's attention over
    l + T; its own code repeats the heads of keys and values where queries share them."""
    live, name, heads, bias, inner = module._peftport_prefix
    rows, queries, own = key.shape[0], query.shape[2], key.shape[2]

    def heads_first(pairs: Tensor) -> Tensor:  # [l, kv_heads * d] -> [B, kv_heads, l, d]
        split = pairs.view(pairs.shape[0], heads, -1).transpose(0, 1)
        return split.to(key.dtype).expand(rows, -1, -1, -1)

    key = torch.cat([heads_first(live[name]["key"]), key], dim=2)
    value = torch.cat([heads_first(live[name]["value"]), value], dim=2)
    length = key.shape[2] - own
    if attention_mask is None and queries > 1 and getattr(module, "is_causal", False):
        ones = torch.ones(queries, own, dtype=torch.bool, device=key.device)
        attention_mask = ones.tril(own - queries)[None, None]  # [1, 1, Q, T]
    if attention_mask is not None:
        seen = attention_mask.new_zeros(1)
        if attention_mask.dtype == torch.bool:
            seen = attention_mask.new_ones(1)
        prefix = seen.expand(*attention_mask.shape[:-1], length)
        attention_mask = torch.cat([prefix, attention_mask], dim=-1)
    if position_bias is not None:
        past = bias(queries) if bias is not None else None
        if past is None:
            past = position_bias.new_zeros(1, 1, 1, 1)
        past = past.to(position_bias.dtype)
        if past.shape[-1] == length + own:  # of all keys
            kwargs["position_bias"] = past
        else:
            past = past.expand(*position_bias.shape[:-1], length)
            kwargs["position_bias"] = torch.cat([past, position_bias], dim=-1)
    result: tuple[Tensor, Tensor | None] = inner(
        module, query, key, value, attention_mask, **kwargs
    )
    return result
