"""The README.md of a trained module: what it is, what it was trained on, what it is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from peftport.escape import inline_code

_ROWS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "auc": "AUC",
    "constant": "accuracy of the most frequent class",
}
#: library -> its name on the Hub, and who else reads the folder
_LIBRARIES = {
    "peft": ("peft", "It is also read by `PeftModel.from_pretrained(model, FOLDER)`."),
    "adapterhub": (
        "adapter-transformers",
        "It is also read by AdapterHub's `model.load_adapter(FOLDER, use_safetensors=True)`.",
    ),
    "peftport": ("peftport", "No other library runs it with the same numbers."),
}


def module_card(facts: Mapping[str, Any], library: str) -> str:
    """A model card in Markdown with the Hub's front matter.

    Args:
        facts: what :func:`peftport.cli.training.run_training` collects.
        library: whose format the module is in: ``peft``, ``adapterhub`` or ``peftport``.
    """
    host, data, training = facts["host"], facts["data"], facts["training"]
    method = dict(facts["method"])
    name = method.pop("method")
    hub_name, readers = _LIBRARIES[library]
    head = {
        "library_name": hub_name,
        "tags": ["peftport", name, "text-classification"],
    }
    scores = "\n".join(
        f"| {label} | {facts['scores'][key]:.3f} | {facts['host_alone'][key]:.3f} |"
        for key, label in _ROWS.items()
    )
    head_rate = training["head_lr"] or training["lr"]
    head_words = f", its head at {head_rate:g} ({host['head']})" if host["head"] else ""
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---
# {name} for {inline_code(host["name"])}

A {name} module with {facts["parameters"]:,} trained parameters. It belongs to one host:
{inline_code(host["name"])} ({host["family"]}, weight fingerprint `{host["fingerprint"][:16]}`).
On any other host it is refused by peftport.

| on {data["test"]:,} test texts of {inline_code(data["name"])} | with the module | host alone |
|---|---|---|
{scores}

## Training

{training["steps"]} steps of {training["batch_size"]} examples from {data["train"]:,} training
texts of {inline_code(data["name"])} (digest `{data["digest"][:16]}`); AdamW at a constant
{training["lr"]:g}{head_words}, gradients clipped at {training["clip"]:g}, seed {training["seed"]}.
The host's weights were in {host["dtype"]} on {host["device"]}, the module and its optimiser in
float32.

- classes: {", ".join(inline_code(c) for c in data["classes"])}
- task: {inline_code(json.dumps(facts["task"], ensure_ascii=False))}
- method: {inline_code(json.dumps(method))}

## Use

```python
import peftport

with peftport.attach(model, peftport.load_module("FOLDER")):  # model: a transformers model
    ...
```

{readers} Written by peftport {facts["peftport"]}.
"""
