"""DistilBERT: BERT's blocks under other names, half as deep, without token types or pooler."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftport.hosts.families.base import Family, OutPoint, families
from peftport.hosts.families.bert import Bert
from peftport.hosts.heads import MeanHead, load_classifier
from peftport.hosts.spec import HostSpec, Site


@families.register("distilbert")
class DistilBert(Bert):
    """DistilBERT (Sanh et al. 2019).

    ``pooler`` stands for its own head, ``pre_classifier`` and ``classifier`` over [CLS]: the module
    carries both, and they fit hosts of the same width only. ``mean`` is one linear layer, which
    also goes to other widths.
    """

    name = "distilbert"
    model_types = frozenset({"distilbert"})
    weight_prefix = "distilbert"
    reference_url = "https://arxiv.org/abs/1910.01108"
    # the model takes no past, so PEFT cannot run a prefix on it; AdapterHub can
    prefix_positions = "none"
    peft_prefix = False
    program = Family.program  # Bert's reads modules by Bert's names

    _d_ff = "hidden_dim"
    _LINEAR = {  # noqa: RUF012
        "self_attn.q": "attention.q_lin",
        "self_attn.k": "attention.k_lin",
        "self_attn.v": "attention.v_lin",
        "self_attn.o": "attention.out_lin",
        "ff.up": "ffn.lin1",
        "ff.down": "ffn.lin2",
    }

    def load(self, path: str, *, labels: int, head: str, dtype: torch.dtype) -> nn.Module:
        return load_classifier(path, labels=labels, head=head, dtype=dtype)

    def module_path(self, spec: HostSpec, site: Site) -> str:
        layer = f"transformer.layer.{site.layer}"
        if site.role in ("kv", "out"):
            return f"{layer}.attention" if site.block == "self_attn" else f"{layer}.ffn"
        return f"{layer}.{self._LINEAR[f'{site.block}.{site.role}']}"

    def adapter_path(self, spec: HostSpec, site: Site) -> str:
        name = "attention_adapters" if site.block == "self_attn" else "output_adapters"
        return f"transformer.layer.{site.layer}.{name}"

    def out_point(self, model: nn.Module, spec: HostSpec, site: Site) -> OutPoint:
        layer = self.body(model).transformer.layer[site.layer]
        if site.block == "self_attn":
            return OutPoint(
                value=layer.attention.out_lin,
                parent=layer,
                residual_arg=0,
                norm=layer.sa_layer_norm,
            )
        return OutPoint(
            value=layer.ffn, parent=layer.ffn, residual_arg=0, norm=layer.output_layer_norm
        )

    def head_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        found = super().head_parameters(model)
        before: Any = getattr(model, "pre_classifier", None)
        if found and before is not None:
            own = {f"pre_classifier.{name}": p for name, p in before.named_parameters()}
            return own | found
        return found

    def head_input(self, model: nn.Module) -> nn.Module | None:
        head: Any = getattr(model, "classifier", None)
        return head.reads if isinstance(head, MeanHead) else getattr(model, "pre_classifier", None)
