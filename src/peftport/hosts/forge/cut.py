"""Cut a narrower, shallower BERT out of a BERT, before any training.

With R [D, d] the basis of the kept subspace of the residual stream, a state x of the parent is
x R in the cut. Every linear that reads the stream becomes W R, every linear that writes it
becomes R^T W, embeddings become E R. R is mean-free: its rows sum to zero, so that x R has mean
zero over its coordinates and a layer norm's centring costs nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from peftport.hosts.forge.recipes import CutRecipe
from peftport.hosts.forge.text import pad_batch

Rows = Sequence[Sequence[int]]
#: shown the input [N, d_in] and the output [N, d_out] of a module at real tokens
See = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Cut:
    """Attributes:
    student: the cut, untrained.
    basis: R  [D, d]; a state of the parent times R is a state of the student.
    pooled_units: units of the parent's pooler that the student's pooler keeps  [d].
    pooled_variance: of those units over sentences, mean over the units.
    kept_variance: share of the parent's state variance inside the basis.
    """

    student: BertModel
    basis: Tensor
    pooled_units: Tensor
    pooled_variance: float
    kept_variance: float


class Moments:
    """Mean and covariance of vectors seen in portions."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.outer = torch.zeros(width, width, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """x [N, width]"""
        x = x.double()
        self.count += len(x)
        self.total += x.sum(0)
        self.outer += x.T @ x

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        return self.outer / self.count - torch.outer(self.mean, self.mean)


def cut(parent: BertModel, rows: Rows, recipe: CutRecipe, pad: int = 0) -> Cut:
    """Cut ``parent`` down to the recipe's shape.

    Args:
        parent: a BertModel with pooler, in eval mode.
        rows: token ids of unlabelled sentences.
        recipe: the shape and which layers.
    Returns:
        The student and what it takes to compare it with its parent.
    """
    config = parent.config
    d_kv = config.hidden_size // config.num_attention_heads
    stream, context, inner = Moments(config.hidden_size), {}, {}
    for i in recipe.layers:
        context[i], inner[i] = Moments(config.hidden_size), Moments(config.intermediate_size)
    layers = parent.encoder.layer
    watched = {parent.embeddings.LayerNorm: _outputs(stream)}
    for layer in layers:
        watched[layer.output.LayerNorm] = _outputs(stream)
    for i in recipe.layers:
        watched[layers[i].attention.output.dense] = _inputs(context[i])
        watched[layers[i].output.dense] = _inputs(inner[i])
    pooled = Moments(config.hidden_size)
    _watch(parent, rows, watched, pad, pooled)

    basis, kept = mean_free_basis(stream.covariance, recipe.d_model, recipe.seed)
    units = spanning(pooled.covariance, recipe.d_model)
    student = BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=recipe.d_model,
            num_hidden_layers=len(recipe.layers),
            num_attention_heads=recipe.heads,
            intermediate_size=recipe.d_ff,
            hidden_act=config.hidden_act,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            layer_norm_eps=config.layer_norm_eps,
            pad_token_id=config.pad_token_id,
        )
    ).eval()
    if recipe.d_model != recipe.heads * d_kv:
        raise ValueError(f"d_model must be heads x {d_kv}, got {recipe.d_model}, {recipe.heads}")
    r = basis.float()
    # what the student cannot see of the mean state goes into the biases of what reads the stream
    unseen = (stream.mean - basis @ (basis.T @ stream.mean)).float()
    with torch.no_grad():
        for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            old = getattr(parent.embeddings, table).weight
            getattr(student.embeddings, table).weight.copy_((old @ r).half().float())
        for new, i in zip(student.encoder.layer, recipe.layers, strict=True):
            old = layers[i]
            heads = best_heads(old.attention.output.dense.weight, context[i], d_kv, recipe.heads)
            attention, read = new.attention, old.attention.self
            for role in ("query", "key", "value"):
                _read(getattr(attention.self, role), getattr(read, role), r, unseen, heads)
            _write(attention.output.dense, old.attention.output.dense, r, heads, context[i].mean)
            size = old.output.dense.weight.norm(dim=0).double()
            importance = inner[i].covariance.diagonal().clamp_min(0).sqrt() * size
            neurons = importance.topk(recipe.d_ff).indices.sort().values
            _read(new.intermediate.dense, old.intermediate.dense, r, unseen, neurons)
            _write(new.output.dense, old.output.dense, r, neurons, inner[i].mean)
        _read(student.pooler.dense, parent.pooler.dense, r, unseen, units)
    _fit_norms(parent, student, rows, r, recipe.layers, pad)
    return Cut(student, r, units, float(pooled.covariance.diagonal()[units].mean()), kept)


def mean_free_basis(covariance: Tensor, width: int, seed: int) -> tuple[Tensor, float]:
    """The top ``width - 1`` principal directions, turned so that every row sums to zero.

    One dimension is spent on being mean-free; the turn is random and spreads the variance evenly
    over the coordinates.

    Args:
        covariance: of the residual stream  [D, D] float64.
    Returns:
        R [D, width] float64 with R R^T the projector on the kept directions, and their share of
        the variance.
    """
    values, vectors = torch.linalg.eigh(covariance)
    top = vectors[:, -(width - 1) :]
    top = top * torch.sign(top.gather(0, top.abs().argmax(0, keepdim=True)))  # sign is arbitrary
    noise = torch.randn(width, width, dtype=torch.float64, generator=_generator(seed))
    noise[:, 0] = 1.0
    turn = torch.linalg.qr(noise).Q[:, 1:]  # [width, width - 1], columns orthogonal to ones
    return top @ turn.T, float(values[-(width - 1) :].sum() / values.sum())


def spanning(covariance: Tensor, count: int) -> Tensor:
    """Units that together say most about all units: pivoted Cholesky  [count] ascending."""
    left = covariance.clone()
    chosen: list[int] = []
    for _ in range(count):
        spread = left.diagonal().clone()
        spread[chosen] = -1.0
        j = int(spread.argmax())
        chosen.append(j)
        left -= torch.outer(left[:, j], left[j]) / left[j, j].clamp_min(1e-12)
    return torch.tensor(sorted(chosen))


def best_heads(out: Tensor, context: Moments, d_kv: int, count: int) -> Tensor:
    """Columns of the heads whose outputs vary most in the residual stream  [count * d_kv]."""
    power = []
    for start in range(0, out.shape[1], d_kv):
        w = out[:, start : start + d_kv].double()
        c = context.covariance[start : start + d_kv, start : start + d_kv]
        power.append(torch.trace(w @ c @ w.T))
    heads = torch.stack(power).topk(count).indices.sort().values
    return torch.cat([torch.arange(int(h) * d_kv, (int(h) + 1) * d_kv) for h in heads])


def _read(new: nn.Linear, old: nn.Linear, r: Tensor, unseen: Tensor, keep: Tensor) -> None:
    """Rows ``keep`` of a linear that reads the stream."""
    new.weight.copy_(old.weight[keep] @ r)
    new.bias.copy_(old.bias[keep] + old.weight[keep] @ unseen)


def _write(new: nn.Linear, old: nn.Linear, r: Tensor, keep: Tensor, mean: Tensor) -> None:
    """Columns ``keep`` of a linear that writes the stream; the others write their mean."""
    lost = mean.float().clone()
    lost[keep] = 0.0
    new.weight.copy_(r.T @ old.weight[:, keep])
    new.bias.copy_(r.T @ (old.bias + old.weight @ lost))


def _inputs(moments: Moments) -> See:
    return lambda x, y: moments.add(x)


def _outputs(moments: Moments) -> See:
    return lambda x, y: moments.add(y)


def _fit_norms(
    parent: BertModel, student: BertModel, rows: Rows, r: Tensor, layers: Sequence[int], pad: int
) -> None:
    """Gain and bias of each of the student's layer norms by least squares per coordinate: from
    the parent's projected input, normalised, to the parent's projected output."""
    pairs = {parent.embeddings.LayerNorm: student.embeddings.LayerNorm}
    for new, i in zip(student.encoder.layer, layers, strict=True):
        old = parent.encoder.layer[i]
        pairs[old.attention.output.LayerNorm] = new.attention.output.LayerNorm
        pairs[old.output.LayerNorm] = new.output.LayerNorm
    width = r.shape[1]
    sums = {old: torch.zeros(5, width, dtype=torch.float64) for old in pairs}

    def collect(old: nn.LayerNorm) -> See:
        def see(x: Tensor, y: Tensor) -> None:
            n = nn.functional.layer_norm(x @ r, (width,), eps=old.eps).double()
            t = (y @ r).double()
            parts = [torch.ones_like(n), n, t, n * n, n * t]
            sums[old] += torch.stack([part.sum(0) for part in parts])

        return see

    _watch(parent, rows, {old: collect(old) for old in pairs}, pad)
    with torch.no_grad():
        for old, new in pairs.items():
            count, n, t, nn_, nt = sums[old]
            gain = (nt / count - n * t / count**2) / (nn_ / count - (n / count) ** 2)
            new.weight.copy_(gain)
            new.bias.copy_(t / count - gain * n / count)


@torch.no_grad()
def _watch(
    model: BertModel,
    rows: Rows,
    watched: Mapping[nn.Module, See],
    pad: int,
    pooled: Moments | None = None,
) -> None:
    """Show the inputs and outputs of modules at real tokens  ([N, d_in], [N, d_out])."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with _hooks(watched) as state:
        for start in range(0, len(order), 64):
            ids, mask = pad_batch([rows[i] for i in order[start : start + 64]], pad)
            state["real"] = mask.bool()
            out = model(input_ids=ids, attention_mask=mask)
            if pooled is not None:
                pooled.add(out.pooler_output)


@contextmanager
def _hooks(
    watched: Mapping[nn.Module, See],
) -> Iterator[dict[str, Tensor]]:
    state: dict[str, Tensor] = {}

    def hook(show: See) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            show(args[0][state["real"]], output[state["real"]])

        return see

    handles = [module.register_forward_hook(hook(show)) for module, show in watched.items()]
    try:
        yield state
    finally:
        for handle in handles:
            handle.remove()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
