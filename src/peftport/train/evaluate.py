"""Class scores of a host, alone or with a module, and the metrics made from them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch

from peftport.data.batches import eval_batches
from peftport.data.tasks import Encoded
from peftport.hosts.load import Host
from peftport.hosts.packed.layout import pack, repeat
from peftport.hosts.packed.memory import release
from peftport.methods.attach import attach
from peftport.methods.bank import Bank
from peftport.methods.base import Module
from peftport.train.fused import dtype_of, program_of

#: tokens that pass through the host together when a bank is measured
BLOCK = 4096


@torch.no_grad()
def class_scores(host: Host, module: Module | None, encoded: Encoded, rows: int = 64) -> np.ndarray:
    """Logits of every class for every text.

    Args:
        host: frozen host.
        module: module at work, or None for the host alone (a host with an untrained head scores
            every class zero).
        encoded: encoded texts.
        rows: texts a batch; batches are sorted by length, so that little is padded.

    Returns:
        float32 array  [N, C] in the order of the texts.
    """
    scores = np.zeros((len(encoded.ids), host.labels), dtype=np.float32)
    with attach(host.model, module, spec=host.spec) if module is not None else nullcontext():
        for batch_rows in eval_batches(encoded.lengths, rows):
            batch = encoded.batch(batch_rows, host.pad_id)
            out = host.family.scores(host.model, batch, host.words)  # [B, C]
            scores[np.asarray(batch_rows)] = out.float().numpy()
    return scores


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
