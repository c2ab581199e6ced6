"""What is recorded: each case adds one randomised adapter to one tiny host by its library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import adapters
import peft
import torch
from hosts import KINDS, build, randomise
from torch import nn

NAME = "golden"


@dataclass(frozen=True)
class Case:
    """One adapter of one library on one host.

    Attributes:
        host: ``bert`` or ``t5``.
        name: short name, unique with the host.
        library: ``adapterhub`` or ``peft``.
        config: the library's config class and its arguments.
    """

    host: str
    name: str
    library: str
    config: tuple[str, dict[str, Any]] = field(hash=False)

    @property
    def key(self) -> str:
        return f"{self.host}-{self.name}"


_PREFIX = {"prefix_length": 3, "encoder_prefix": True, "cross_prefix": True}
_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "bottleneck-double": ("DoubleSeqBnConfig", {"reduction_factor": 4}),
    "bottleneck-ff": ("SeqBnConfig", {"reduction_factor": 8}),
    "compacter": ("CompacterConfig", {"reduction_factor": 4, "phm_dim": 4}),
    "prefix-flat": ("PrefixTuningConfig", {**_PREFIX, "flat": True}),
    "prefix-mlp": ("PrefixTuningConfig", {**_PREFIX, "flat": False, "bottleneck_size": 16}),
}
CASES = [
    *(Case(host, name, "adapterhub", how) for host in KINDS for name, how in _METHODS.items()),
    Case("t5", "bottleneck-cross", "adapterhub",
         ("DoubleSeqBnConfig", {"reduction_factor": 8, "cross_adapter": True})),
    Case("bert", "prefix-peft", "peft",
         ("PrefixTuningConfig", {"num_virtual_tokens": 3, "task_type": "SEQ_CLS"})),
]  # fmt: skip


def make(case: Case) -> nn.Module:
    """The host with its adapter attached, every adapter parameter drawn again."""
    model: Any = build(case.host)
    name, arguments = case.config
    if case.library == "peft":
        model = peft.get_peft_model(model, getattr(peft, name)(**arguments))
    else:
        adapters.init(model)
        model.add_adapter(NAME, config=getattr(adapters, name)(**arguments))
        model.set_active_adapters(NAME)
    parameters = trained(case, model)
    body = nn.ParameterDict({k.replace(".", "/"): p for k, p in parameters.items()})
    randomise(body, sum(map(ord, case.key)))
    with torch.no_grad():
        for key, parameter in parameters.items():
            if "control_trans.2.weight" in key:  # pairs of the size that a direct prefix has
                parameter.mul_(2.0)
            elif ".W_" in key:  # an adapter that does not drown the host's own states
                parameter.mul_(0.5)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return model.eval()


def trained(case: Case, model: nn.Module) -> dict[str, nn.Parameter]:
    """Adapter and head parameters by their name in the library's own files, each once."""
    found: dict[str, nn.Parameter] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if case.library == "peft":
            name = key.replace(".modules_to_save.default", "").replace(".default", "")
            if name == "prompt_encoder.embedding.weight":
                found["prompt_embeddings"] = parameter
            elif ".modules_to_save.default" in key:
                found[name] = parameter
        elif key.startswith("classifier.") or (f".{NAME}." in key and ".pool." not in key):
            found[key] = parameter
    return found
