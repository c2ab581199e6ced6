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
from peftport.train.fused import program_of

__all__ = ["bank_scores", "class_scores"]

#: tokens that pass through the host together when a bank is measured, by kind of device
BLOCK = {"cpu": 4096, "cuda": 1 << 16}


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
    device = host.device
    bank = Bank(host.spec, modules, dtype=host.dtype, grad=False, device=device)
    bank.refresh()
    program = program_of(host)
    for rows in _blocks(encoded.lengths, max(1, BLOCK[device.type] // count)):
        packed = repeat(pack([[encoded.ids[i] for i in rows]], device), count)
        out = program.scores(packed, bank.layer).float()  # [K n, C]; a block is sorted as packed
        scores[:, rows] = out.view(count, len(rows), -1).cpu().numpy()
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
