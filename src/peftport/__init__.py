"""Move PEFT modules between pretrained hosts, and measure what they are worth there.

The names below are imported on first use, so that ``import peftport`` and ``peftport --help``
stay fast: nothing here imports torch until it is needed.

>>> import peftport
>>> peftport.__version__
'0.1.0'
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftport.assessing import assess as assess
    from peftport.data.datasets import load_dataset as load_dataset
    from peftport.formats import load_module as load_module
    from peftport.formats import save_module as save_module
    from peftport.hosts.load import inspect_host as inspect_host
    from peftport.hosts.load import load_host as load_host
    from peftport.methods.attach import attach as attach
    from peftport.methods.base import Module as Module
    from peftport.migrating import migrate as migrate
    from peftport.port_folder import port as port
    from peftport.porting import apply_port as apply_port
    from peftport.porting import plan_port as plan_port
    from peftport.predicting import predict as predict

__version__ = "0.1.0"

# torch then asks for huge pages for CPU tensors of 2 MiB and more, and batches of unlike size break
# the heap up far less (docs/banks.md); torch reads it when it is imported
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_WHERE = {
    "Module": "peftport.methods.base",
    "apply_port": "peftport.porting",
    "assess": "peftport.assessing",
    "attach": "peftport.methods.attach",
    "inspect_host": "peftport.hosts.load",
    "load_dataset": "peftport.data.datasets",
    "load_host": "peftport.hosts.load",
    "load_module": "peftport.formats",
    "migrate": "peftport.migrating",
    "plan_port": "peftport.porting",
    "port": "peftport.port_folder",
    "predict": "peftport.predicting",
    "save_module": "peftport.formats",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'peftport' has no attribute '{name}'")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
