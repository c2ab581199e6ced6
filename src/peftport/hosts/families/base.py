"""The contract of a host family. One file per architecture registers one subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftport.hosts.packed.base import Program
from peftport.hosts.spec import HostSpec, Site
from peftport.registry import Registry


@dataclass(frozen=True)
class OutPoint:
    """Where a bottleneck reads and writes: the output of a block before the residual addition.

    Attributes:
        value: module whose forward output is the block's output h  [B, T, d_model].
        parent: module whose forward receives the residual x  [B, T, d_model].
        residual_arg: position of x among the positional arguments of ``parent``.
        norm: the layer norm applied to h + x, or None in a pre-norm architecture.
    """

    value: nn.Module
    parent: nn.Module
    residual_arg: int
    norm: nn.Module | None


class Family(ABC):
    """How one architecture names, loads and runs its hosts.

    A model of the family is an ordinary transformers model; nothing here changes its classes.
    """

    #: registered name
    name: ClassVar[str]
    #: values of ``config.model_type`` that belong here
    model_types: ClassVar[frozenset[str]]
    #: transformers' base_model_prefix, which weights of a task model carry
    weight_prefix: ClassVar[str]
    #: where the architecture is described
    reference_url: ClassVar[str]
    #: ``class``: a classification head belongs to the module; ``word``: the label is a word that
    #: the host itself predicts, and there is no head
    decides_by: ClassVar[str]
    #: path of the input embedding below ``model.base_model``; its weight is [vocab, d_model]
    embedding_path: ClassVar[str]
    #: whether linear weights are stored [d_in, d_out] (GPT-2's Conv1D) instead of [d_out, d_in]
    transposed: ClassVar[bool] = False
    #: how a prefix's positions count by default: ``past`` or ``none`` (see methods/prefix.py)
    prefix_positions: ClassVar[str]
    #: whether PEFT runs prefixes on it, in any release of transformers
    peft_prefix: ClassVar[bool] = True
    #: its stacks in order, the keys of ``HostSpec.layers``
    stacks: ClassVar[tuple[str, ...]]
    #: beginnings of body weights that checkpoints may carry and the task model does not read
    unread_weights: ClassVar[tuple[str, ...]] = ()
    #: whether a label word ends with the tokenizer's end marker (``word`` hosts)
    ends_words: ClassVar[bool] = False

    @abstractmethod
    def describe(self, config: Any) -> HostSpec:
        """Shape and sites from the transformers config alone (no digests)."""

    @abstractmethod
    def load(self, path: str, *, labels: int, head: str, dtype: torch.dtype) -> nn.Module:
        """The frozen model in eval mode, able to decide between ``labels`` classes.

        Args:
            path: local folder with config.json and safetensors.
            labels: number of classes.
            head: ``pooler`` (the architecture's own classification head) or ``mean`` (a linear
                layer over mean-pooled hidden states); ignored where ``decides_by`` is ``word``.
            dtype: dtype of the weights.
        """

    @abstractmethod
    def module_path(self, spec: HostSpec, site: Site) -> str:
        """Dotted path of the site's module below ``model.base_model``: the linear of q, k, v, o,
        up, gate, down; the attention of kv (it must call transformers' AttentionInterface); the
        block that adds to the residual stream of out."""

    def adapter_path(self, spec: HostSpec, site: Site) -> str:
        """Where AdapterHub keeps the adapter of an ``out`` site below ``model.base_model``."""
        return self.module_path(spec, site)

    def columns(self, spec: HostSpec, site: Site) -> slice | None:
        """Output columns of the module at :meth:`module_path` that are the site's, where several
        sites share one fused module (GPT-2's q, k, v); None: all of them."""
        return None

    def submodule(self, model: nn.Module, spec: HostSpec, site: Site) -> Any:
        """The module at :meth:`module_path`."""
        return self.body(model).get_submodule(self.module_path(spec, site))

    @staticmethod
    def body(model: nn.Module) -> Any:
        """The body of a transformers model, without its task head."""
        return getattr(model, "base_model", model)

    @abstractmethod
    def out_point(self, model: nn.Module, spec: HostSpec, site: Site) -> OutPoint:
        """Where a bottleneck acts for an ``out`` site."""

    @abstractmethod
    def head_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Live parameters of the task head by their PEFT names (``classifier.weight``); empty
        where ``decides_by`` is ``word``."""

    @abstractmethod
    def head_input(self, model: nn.Module) -> nn.Module | None:
        """The module whose input is what the head reads  [B, d_model]; None without a head."""

    @abstractmethod
    def scores(self, model: nn.Module, batch: Mapping[str, Tensor], words: Words | None) -> Tensor:
        """Class logits  [B, C] of a batch of encoded texts."""

    @abstractmethod
    def loss(
        self, model: nn.Module, batch: Mapping[str, Tensor], labels: Tensor, words: Words | None
    ) -> Tensor:
        """Mean training loss (scalar) of a batch; labels  [B] in 0..C-1."""

    def program(
        self, model: nn.Module, spec: HostSpec, *, head: str, words: Words | None
    ) -> Program | None:
        """The host's forward pass over packed texts, for banks; None where the architecture has
        none, and modules are then trained one by one.

        Args:
            model: a frozen model as :meth:`load` gives it.
            spec: its spec.
            head: ``pooler`` or ``mean``, empty for ``word`` hosts.
            words: label words of a ``word`` host.
        """
        return None

    def longest(self, config: Any) -> int | None:
        """Tokens of the longest text that a host of this config can read; None: any length."""
        return getattr(config, "max_position_embeddings", None)

    def shift_positions(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], by: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the body's forward with every token ``by`` positions later, where positions
        are absolute or rotary; unchanged elsewhere."""
        return args, kwargs

    def relative_bias(
        self,
        model: nn.Module,
        spec: HostSpec,
        site: Site,
        queries: int,
        prefix: int,
        *,
        shifted: bool = False,
    ) -> Tensor | None:
        """Position bias  [1, heads, queries, prefix] of ``prefix`` past positions, where the
        architecture has one (T5); None elsewhere. ``shifted``: of all keys
        [1, heads, queries, prefix + queries], counted as AdapterHub does (methods/prefix.py)."""
        return None


@dataclass(frozen=True)
class Words:
    """Verbalisers of a ``word`` family: token ids of each class's label word.

    Attributes:
        ids: for every class the token ids of its word, with an end marker where the family's words
            end with one.
        first: for every class the id that decides; all distinct.
    """

    ids: tuple[tuple[int, ...], ...]

    @property
    def first(self) -> tuple[int, ...]:
        return tuple(ids[0] for ids in self.ids)

    def padded(self, labels: Tensor, ignore: int = -100) -> Tensor:
        """Target ids  [B, W] of the label words, padded with ``ignore``, on the labels' device."""
        width = max(len(ids) for ids in self.ids)
        table = torch.full((len(self.ids), width), ignore, dtype=torch.long)
        for row, ids in enumerate(self.ids):
            table[row, : len(ids)] = torch.tensor(ids)
        return table.to(labels.device)[labels]


families: Registry[type[Family]] = Registry("host family", "peftport.hosts.families")


def family_of(model_type: str) -> Family:
    """The family that handles ``config.model_type``. Raises UnknownName listing the known ones."""
    from peftport.errors import UnknownName

    known: list[str] = []
    for _, cls in families:
        if model_type in cls.model_types:
            return cls()
        known += cls.model_types
    raise UnknownName("model_type", model_type, known)


def sites_of(
    stack: str, layer: int, block: str, roles: Sequence[tuple[str, int, int]]
) -> list[Site]:
    """Sites of one block from (role, d_in, d_out) rows."""
    return [Site(stack, layer, block, role, d_in, d_out) for role, d_in, d_out in roles]  # type: ignore[arg-type]


def later_positions(
    args: tuple[Any, ...], kwargs: dict[str, Any], by: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a body's forward with explicit positions by, by + 1, ... unless it has some."""
    ids = args[0] if args else kwargs.get("input_ids")
    if ids is None:
        ids = kwargs["inputs_embeds"][..., 0]
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = torch.arange(by, by + ids.shape[1], device=ids.device)[None]
    return args, kwargs
