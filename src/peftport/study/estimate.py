"""What a study will cost, before it runs: a guess from the hosts' shapes."""

from __future__ import annotations

from peftport.hosts.families.base import families
from peftport.hosts.spec import HostSpec
from peftport.study.materials import Materials, in_banks
from peftport.study.plan import Training
from peftport.train.sizing import bank_bytes

#: arithmetic a second on two current CPU cores in float32: of banks of short sentences (the whole
#: mini study, porting and measuring included), and of modules that are trained one by one
FLOP_PER_S = 2.4e11
FLOP_PER_S_ALONE = 1e11
#: tokens of a review sentence on average
TOKENS = 27
#: texts of a slot's batch in the estimate of memory
SLOT_TEXTS = 16
_LINEAR = ("q", "k", "v", "o", "up", "gate", "down")
#: the host's weights in its model and in the layouts of the packed program, forward and backward
COPIES = 3


def cost_s(materials: Materials, training: Training) -> float:
    """Seconds of one training with its measurements, on two cores: for every weight and token 2
    operations forward and 2 backward (none into frozen weights); a measurement or a probe goes
    forward alone."""
    spec = materials.specs[training.host]
    texts = 0 if training.init == "host" else training.steps * training.batch
    passes = 2 if training.init == "probe" else 4
    reads = len(training.budgets) * len(materials.measured.texts) * 2
    flop = weights_per_text(materials, spec) * (texts * passes + reads)
    return flop / (FLOP_PER_S if in_banks(spec) else FLOP_PER_S_ALONE) + 0.01


def memory_bytes(materials: Materials, bank: int) -> int:
    """What banks of so many modules take on the study's most demanding host, beside the
    interpreter and its libraries."""
    tokens = SLOT_TEXTS * _tokens(materials)
    sizes = []
    for spec in materials.specs.values():
        sizes.append(host_bytes(spec) + bank_bytes(spec, bank, tokens))
    return max(sizes)


def host_bytes(spec: HostSpec, width: int = 4, copies: int = COPIES) -> int:
    """Memory of a host with its packed program.

    Args:
        spec: its spec.
        width: bytes of a weight.
        copies: of every linear layer's weights; the embedding is there once, and with a word host's
            output layer, of its size, once for each copy more.
    """
    linear = sum(site.d_in * site.d_out for site in spec.sites if site.role in _LINEAR)
    words = spec.vocab_size * spec.d_model
    output = words if families.get(spec.family).decides_by == "word" else 0
    return width * (copies * (linear + output) + words)


def largest_host(materials: Materials) -> str:
    """The host on which a step costs most."""
    return max(materials.specs, key=lambda name: weights_per_text(materials, materials.specs[name]))


def smallest_host(materials: Materials) -> str:
    """The host on which a step costs least."""
    return min(materials.specs, key=lambda name: weights_per_text(materials, materials.specs[name]))


def weights_per_text(materials: Materials, spec: HostSpec) -> float:
    """Weights times tokens of a text on the way to its answer. With a pooler the last layer's
    queries, outputs and feed-forward block run on the first token alone."""
    tokens = _tokens(materials)
    weights = body_parameters(spec) * tokens
    if in_banks(spec) and materials.study.head == "pooler":
        inner = spec.heads * spec.d_kv
        last = body_parameters(spec) / next(iter(spec.layers.values()))
        weights -= round((last - 2 * spec.d_model * inner) * (tokens - 1))
    return weights


def body_parameters(spec: HostSpec) -> int:
    """Weights that every token of the text meets (the encoder's linear layers)."""
    stack = next(iter(spec.layers))
    roles = {site.role for site in spec.sites if site.block == "ff" and site.stack == stack}
    feed_forward = (3 if "gate" in roles else 2) * spec.d_model * spec.d_ff
    return spec.layers[stack] * (4 * spec.d_model * spec.heads * spec.d_kv + feed_forward)


def _tokens(materials: Materials) -> int:
    return min(materials.task.max_tokens, TOKENS)
