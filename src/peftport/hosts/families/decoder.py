"""What pre-norm decoder-only language models share. No family is registered here.

The label is the word that the model says next: its logits are read at the last token of the
prompt, and the loss is on the word's tokens after it. Nothing is generated and no end marker is
learned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftport.errors import InputError
from peftport.hosts.families.base import Family, OutPoint, Words, later_positions
from peftport.hosts.spec import HostSpec, Site


class Decoder(Family):
    """A decoder-only language model whose layers are two blocks, each behind a norm."""

    decides_by = "word"
    prefix_positions = "past"
    stacks = ("decoder",)

    #: block -> (path of what computes its output h, path of the norm that reads the residual),
    #: both below a layer
    _out: ClassVar[dict[str, tuple[str, str]]]

    @abstractmethod
    def layer_path(self, layer: int) -> str:
        """Dotted path of a layer below the body."""

    def load(self, path: str, *, labels: int, head: str, dtype: torch.dtype) -> nn.Module:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
        return cast(nn.Module, model.eval())

    def adapter_path(self, spec: HostSpec, site: Site) -> str:
        name = "attention_adapters" if site.block == "self_attn" else "output_adapters"
        return f"{self.layer_path(site.layer)}.{name}"

    def out_point(self, model: nn.Module, spec: HostSpec, site: Site) -> OutPoint:
        layer = self.body(model).get_submodule(self.layer_path(site.layer))
        value, norm = self._out[site.block]
        return OutPoint(
            value=layer.get_submodule(value),
            parent=layer.get_submodule(norm),
            residual_arg=0,
            norm=None,
        )

    def head_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {}

    def head_input(self, model: nn.Module) -> nn.Module | None:
        return None

    def scores(self, model: nn.Module, batch: Mapping[str, Tensor], words: Words | None) -> Tensor:
        words = self._need(words)
        mask = batch["attention_mask"]  # [B, T]
        logits = self._logits(model, batch["input_ids"], mask, _last(mask)[:, None])  # [B, 1, V]
        return logits[:, 0, list(words.first)]  # [B, C]

    def loss(
        self, model: nn.Module, batch: Mapping[str, Tensor], labels: Tensor, words: Words | None
    ) -> Tensor:
        targets = self._need(words).padded(labels)  # [B, W]
        ids, mask = batch["input_ids"], batch["attention_mask"]  # [B, T]
        at = _last(mask)[:, None] + torch.arange(targets.shape[1], device=ids.device)  # [B, W]
        said = targets[:, :-1]  # what is read again; the last token is only predicted
        ids = F.pad(ids, (0, said.shape[1])).scatter(1, at[:, 1:], said.clamp(min=0))
        mask = F.pad(mask, (0, said.shape[1])).scatter(1, at[:, 1:], (said >= 0).to(mask.dtype))
        logits = self._logits(model, ids, mask, at)  # [B, W, V]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)

    def _logits(self, model: nn.Module, ids: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        """Next-token logits  [B, W, V] at positions ``at``  [B, W]; the vocabulary is wide, so they
        are computed nowhere else."""
        out = self.body(model)(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden = out.last_hidden_state  # [B, T, D]
        chosen = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))  # [B, W, D]
        return cast(Tensor, cast(Any, model).get_output_embeddings()(chosen))

    def shift_positions(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], by: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return later_positions(args, kwargs, by)

    def _need(self, words: Words | None) -> Words:
        if words is None:
            raise InputError(
                f"a {self.name} host decides by label words; give the task's verbalisers"
            )
        return words


def _last(mask: Tensor) -> Tensor:
    """Place  [B] of each row's last real token; mask  [B, T]."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
