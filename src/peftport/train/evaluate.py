"""Class scores of a host, alone or with a module, and the metrics made from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from peftport.data.tasks import Encoded
from peftport.hosts.load import Host
from peftport.hosts.packed.layout import pack, repeat
from peftport.hosts.packed.memory import release
from peftport.methods.bank import Bank
from peftport.methods.base import Module
from peftport.methods.scores import class_scores
from peftport.train.fused import dtype_of, program_of

__all__ = ["bank_scores", "class_scores"]

#: tokens that pass through the host together when a bank is measured
BLOCK = 4096


@torch.no_grad()
def bank_scores(host: Host, modules: Sequence[Module], encoded: Encoded) -> np.ndarray:
    """Logits of every class for every text and module, without padding.

    Args:
        host: frozen host of a family with a packed program.
        modules: modules of one config.
        encoded: encoded texts.

    Returns:
        float32 array  [K, N, C] in the order of the texts.
    """
    count = len(modules)
    scores = np.zeros((count, len(encoded), host.labels), dtype=np.float32)
    bank = Bank(host.spec, modules, dtype=dtype_of(host), grad=False)
    bank.layer.refresh()
    program = program_of(host)
    for rows in _blocks(encoded.lengths, max(1, BLOCK // count)):
        packed = repeat(pack([[encoded.ids[i] for i in rows]]), count)
        out = program.scores(packed, bank.layer).float()  # [K n, C]; a block is sorted as packed
        scores[:, rows] = out.view(count, len(rows), -1).numpy()
    release()
    return scores


def _blocks(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """All texts once, shortest first, in blocks of about so many tokens."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    blocks: list[list[int]] = []
    room = 0
    for i in order:
        if not blocks or lengths[i] > room:
            blocks.append([])
            room = tokens
        blocks[-1].append(i)
        room -= lengths[i]
    return blocks
