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
from interop import HOSTS, Report, inputs, record, recorded  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)


def host(kind: str) -> Any:
    auto = AutoModelForSequenceClassification if kind == "bert" else AutoModelForSeq2SeqLM
    return auto.from_pretrained(HOSTS / kind, attn_implementation="eager").eval()


def logits(model: nn.Module, kind: str) -> Tensor:
    with torch.no_grad():
        return model(**inputs(kind)).logits


def by_peft(kind: str, folder: Path) -> Tensor:
    return logits(peft.PeftModel.from_pretrained(host(kind), str(folder)).eval(), kind)


def by_adapterhub(kind: str, folder: Path) -> Tensor:
    """The task model with adapters.init, head loaded into its classifier."""
    model = host(kind)
    adapters.init(model)
    model.load_adapter(str(folder), use_safetensors=True, set_active=True)
    return logits(model.eval(), kind)


def by_auto_adapter_model(kind: str, folder: Path) -> Tensor:
    """AdapterHub's own model class, which turns the classifier into one of its flexible heads."""
    model = adapters.AutoAdapterModel.from_pretrained(HOSTS / kind, attn_implementation="eager")
    model.load_adapter(str(folder), use_safetensors=True, set_active=True)
    return logits(model.eval(), kind)


def read(folder: Path, report: Report) -> None:
    for name, kind, library, place, expected in recorded(folder):
        if library == "peft":
            report.compare(name, "PEFT", by_peft(kind, place), expected)
            continue
        report.compare(name, "AdapterHub", by_adapterhub(kind, place), expected)
        if kind == "bert":
            got = by_auto_adapter_model(kind, place)
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
    model = adapters.AutoAdapterModel.from_pretrained(HOSTS / "bert", attn_implementation="eager")
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
