"""A cut on disk, so that an interrupted healing goes on from the very same cut."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from transformers import BertConfig, BertModel

from peftport.atomic import write_bytes
from peftport.hosts.forge.cut import Cut


def save_cut(path: Path, cut: Cut, identity: str) -> None:
    """Write a cut whole or not at all; ``identity`` says what it was made from."""
    tensors = {f"student/{n}": t.contiguous() for n, t in cut.student.state_dict().items()}
    tensors |= {"basis": cut.basis.contiguous(), "pooled_units": cut.pooled_units}
    facts = {
        "identity": identity,
        "config": cut.student.config.to_json_string(),
        "pooled_variance": repr(cut.pooled_variance),
        "kept_variance": repr(cut.kept_variance),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, facts))


def load_cut(path: Path, identity: str) -> Cut | None:
    """The cut in a file, or None when there is none of that identity."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        if facts.get("identity") != identity:
            return None
        tensors: dict[str, torch.Tensor] = {n: file.get_tensor(n) for n in list(file.keys())}
    student = BertModel(BertConfig(**json.loads(facts["config"]))).eval()
    prefix = "student/"
    student.load_state_dict(
        {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    )
    return Cut(
        student,
        tensors["basis"],
        tensors["pooled_units"],
        float(facts["pooled_variance"]),
        float(facts["kept_variance"]),
    )
