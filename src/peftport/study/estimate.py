"""What a study will cost, before it runs: a rough guess from the hosts' shapes."""

from __future__ import annotations

from peftport.hosts.spec import HostSpec
from peftport.study.materials import Materials
from peftport.study.plan import Training

#: arithmetic that two current CPU cores do in float32 on batches of 16 short sentences
FLOP_PER_S = 1e11
#: tokens of a review sentence on average
TOKENS = 27


def cost_s(materials: Materials, training: Training) -> float:
    """Seconds of one training with its measurements, on two cores: 4 operations a weight and token
    for forward and backward past frozen weights, 2 for forward alone."""
    spec = materials.specs[training.host]
    tokens = min(materials.task.max_tokens, TOKENS)
    per_token = body_parameters(spec) * tokens
    steps = training.steps * training.batch * 4
    reads = len(training.budgets) * len(materials.measured.texts) * 2
    return per_token * (steps + reads) / FLOP_PER_S + 0.1


def body_parameters(spec: HostSpec) -> int:
    """Weights that every token of the text meets (the encoder's linear layers)."""
    stack = next(iter(spec.layers))
    roles = {site.role for site in spec.sites if site.block == "ff" and site.stack == stack}
    feed_forward = (3 if "gate" in roles else 2) * spec.d_model * spec.d_ff
    return spec.layers[stack] * (4 * spec.d_model * spec.heads * spec.d_kv + feed_forward)
