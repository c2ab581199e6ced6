"""AdapterHub's and PEFT's side of interop.py, in their own environment (transformers 4.57)."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import adapters  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
from cases import CASES, NAME, make  # noqa: E402
from hosts import randomise  # noqa: E402
from interop import (  # noqa: E402
    ENCODERS,
    MADE,
    Report,
    host_folder,
    inputs,
    record,
    recorded,
)
from torch import Tensor, nn  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)


def host(step: Path, kind: str) -> Any:
    auto = AutoModelForSequenceClassification if kind in ENCODERS else AutoModelForCausalLM
    auto = AutoModelForSeq2SeqLM if kind == "t5" else auto
    return auto.from_pretrained(host_folder(step, kind), attn_implementation="eager").eval()


def logits(model: nn.Module, kind: str) -> Tensor:
    with torch.no_grad():
        return model(**inputs(kind)).logits


def by_peft(model: Any, kind: str, folder: Path) -> Tensor:
    return logits(peft.PeftModel.from_pretrained(model, str(folder)).eval(), kind)


def by_adapterhub(model: Any, kind: str, folder: Path) -> Tensor:
    """The task model with adapters.init, head loaded into its classifier."""
    adapters.init(model)
    model.load_adapter(str(folder), use_safetensors=True, set_active=True)
    return logits(model.eval(), kind)


def by_auto_adapter_model(model: Any, kind: str, folder: Path) -> Tensor:
    """AdapterHub's own model class, which turns the classifier into one of its flexible heads."""
    model.load_adapter(str(folder), use_safetensors=True, set_active=True)
    return logits(model.eval(), kind)


def auto_adapter_model(step: Path, kind: str) -> Any:
    place = host_folder(step, kind)
    return adapters.AutoAdapterModel.from_pretrained(place, attn_implementation="eager")


def read(folder: Path, report: Report) -> None:
    for name, kind, library, place, expected in recorded(folder):
        if library == "peft":
            report.compare(name, "PEFT", by_peft(host(folder, kind), kind, place), expected)
            continue
        got = by_adapterhub(host(folder, kind), kind, place)
        report.compare(name, "AdapterHub", got, expected)
        if kind in ENCODERS:
            got = by_auto_adapter_model(auto_adapter_model(folder, kind), kind, place)
            report.compare(name, "AdapterHub's AutoAdapterModel", got, expected)


def write(folder: Path) -> None:
    """Every golden case as its library saves it, pickles where safetensors fail, and one module of
    an AutoAdapterModel."""
    for case in CASES:
        if case.key == "t5-compacter":  # saved without its shared rule: nothing can read that
            continue
        model: Any = make(case)
        place = folder / case.key
        record(place, case.host, case.library, logits(model, case.host))
        if case.library == "peft":
            model.save_pretrained(place / "module")
        else:
            safe = "prefix" not in case.name
            model.save_adapter(str(place / "module"), NAME, use_safetensors=safe)
        print(f"written  {case.key} by {case.library}")
    model = auto_adapter_model(folder, "bert")
    model.add_adapter("mine", config=adapters.DoubleSeqBnConfig(reduction_factor=8))
    model.add_classification_head(
        "mine", num_labels=2, layers=1, activation_function=None, use_pooler=True
    )
    model.set_active_adapters("mine")
    own = {k.replace(".", "/"): p for k, p in model.named_parameters() if ".mine." in k}
    randomise(nn.ParameterDict(own), 9)
    place = folder / "bert-auto-adapter-model"
    record(place, "bert", "AutoAdapterModel", logits(model.eval(), "bert"))
    model.save_adapter(str(place / "module"), "mine", use_safetensors=True)
    print("written  bert-auto-adapter-model")
    for kind in MADE:
        for name, config in FAMILY_CASES.items():
            if "prefix" in name and kind not in ENCODERS:
                continue
            write_one(folder, kind, name, config)


FAMILY_CASES = {
    "bottleneck": adapters.DoubleSeqBnConfig(reduction_factor=4),
    "bottleneck-ff": adapters.SeqBnConfig(reduction_factor=8),
    "compacter": adapters.CompacterConfig(reduction_factor=4, phm_dim=4),
    "prefix-flat": adapters.PrefixTuningConfig(prefix_length=3, flat=True),
    "prefix-mlp": adapters.PrefixTuningConfig(prefix_length=3, flat=False, bottleneck_size=16),
}


def write_one(folder: Path, kind: str, name: str, config: Any) -> None:
    """A drawn adapter on a host of one of the newer families."""
    model = host(folder, kind)
    adapters.init(model)
    model.add_adapter(NAME, config=config)
    model.set_active_adapters(NAME)
    own = {
        key.replace(".", "/"): parameter
        for key, parameter in model.named_parameters()
        if f".{NAME}." in key or "classifier" in key
    }
    randomise(nn.ParameterDict(own), sum(map(ord, name)))
    place = folder / f"{kind}-{name}"
    record(place, kind, "adapterhub", logits(model.eval(), kind))
    model.save_adapter(str(place / "module"), NAME, use_safetensors="prefix" not in name)
    print(f"written  {kind}-{name} by adapterhub")
