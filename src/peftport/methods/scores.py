"""Class scores of a host, alone or with one module at work."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch

from peftport.data.batches import eval_batches
from peftport.data.tasks import Encoded
from peftport.hosts.load import Host
from peftport.methods.attach import attach
from peftport.methods.base import Module


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
            batch = encoded.batch(batch_rows, host.pad_id, host.device)
            out = host.family.scores(host.model, batch, host.words)  # [B, C]
            scores[np.asarray(batch_rows)] = out.float().cpu().numpy()
    return scores
