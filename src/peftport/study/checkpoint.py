"""How far a bank is, as bytes: what a worker hands out at a budget, and goes on from elsewhere.

Nothing in it is trusted: bytes of another bank, another format or another digest are no checkpoint,
and the bank is done from its beginning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.torch
import torch

from peftport.errors import InputError
from peftport.study.planned import Measure
from peftport.train.fused import BankState

#: first bytes of a checkpoint; the number goes up when what follows is written in another way
_MAGIC = b"peftport checkpoint 1 "
_HEADER = "peftport"


@dataclass(frozen=True)
class Checkpoint:
    """A bank at a budget.

    Attributes:
        keys: its trainings.
        seconds: what it took so far.
        measures: of every training, at this budget and those before it.
        errors: error and traceback of every training that failed; None for the others.
        state: where those are that began.
    """

    keys: tuple[str, ...]
    seconds: float
    measures: tuple[tuple[Measure, ...], ...]
    errors: tuple[tuple[str, str] | None, ...]
    state: BankState

    def to_bytes(self) -> bytes:
        """A line with the digest of what follows, and safetensors."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state.tensors().items()}
        for at, own in enumerate(self.measures):
            for m in own:
                scores = np.ascontiguousarray(m.scores)
                tensors[f"scores/{at}/{m.budget}"] = torch.from_numpy(scores)
        facts = {
            "keys": self.keys,
            "seconds": self.seconds,
            "done": self.state.done,
            "modules": [[(m.budget, m.module) for m in own] for own in self.measures],
            "errors": self.errors,
        }
        content = safetensors.torch.save(tensors, {_HEADER: json.dumps(facts)})
        return _MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def read_checkpoint(content: bytes, keys: Sequence[str]) -> Checkpoint:
    """What :meth:`Checkpoint.to_bytes` gave for the bank of these trainings.

    Raises:
        InputError: the bytes are something else, damaged, or another bank's.
    """
    start, _, body = content.partition(b"\n")
    if start != _MAGIC + hashlib.sha256(body).hexdigest().encode():
        raise InputError("no checkpoint of this peftport, or a damaged one; begin again")
    try:
        length = int.from_bytes(body[:8], "little")
        facts = json.loads(json.loads(body[8 : 8 + length])["__metadata__"][_HEADER])
        tensors = safetensors.torch.load(body)
        names = BankState.__dataclass_fields__.keys() - {"done"}
        found = Checkpoint(
            tuple(facts["keys"]),
            float(facts["seconds"]),
            tuple(
                tuple(
                    Measure(budget, tensors[f"scores/{at}/{budget}"].numpy(), str(module))
                    for budget, module in own
                )
                for at, own in enumerate(facts["modules"])
            ),
            tuple(None if error is None else (error[0], error[1]) for error in facts["errors"]),
            BankState(**{name: tensors[name] for name in names}, done=int(facts["done"])),
        )
    except (KeyError, IndexError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"no checkpoint: {error}; begin again") from None
    if found.keys != tuple(keys) or not len(keys) == len(found.measures) == len(found.errors):
        raise InputError("the checkpoint is another bank's; begin again")
    return found
