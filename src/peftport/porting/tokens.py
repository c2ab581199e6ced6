"""Maps between hosts from the embeddings of the tokens that both know; no text is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec, Site
from peftport.porting.carriers.base import Maps, sibling
from peftport.porting.maps import Affine, Moments, residual, ridge
from peftport.porting.spaces import Pair, Space
from peftport.porting.weights import HostFiles

#: Fewest shared tokens that a map can be fitted on.
MIN_TOKENS = 32
#: Ridge strength that stands for none: the pseudo-inverse's minimum norm where tokens are too few.
_NONE = 1e-9
_CHUNK = 4096


def shared_moments(source: HostFiles, target: HostFiles, most: int) -> Moments:
    """Moments of the embeddings of shared tokens; x: source [d_s], y: target [d_t].

    Args:
        most: tokens to use; evenly spaced ones of more.

    Raises:
        InputError: too few are shared.
    """
    ours, theirs = source.vocabulary(), target.vocabulary()
    pairs = sorted((index, theirs[token]) for token, index in ours.items() if token in theirs)
    if len(pairs) < MIN_TOKENS:
        raise InputError(
            f"the hosts' vocabularies share {len(pairs)} tokens, expected at least {MIN_TOKENS}; "
            "use --strategy ridge (with --texts)"
        )
    if len(pairs) > most:
        pairs = [pairs[i * len(pairs) // most] for i in range(most)]
    x, y = source.embedding(), target.embedding()
    known = [(i, j) for i, j in pairs if i < len(x) and j < len(y)]
    moments = Moments(x.shape[1], y.shape[1])
    for start in range(0, len(known), _CHUNK):
        rows, columns = zip(*known[start : start + _CHUNK], strict=True)
        moments.add(x[list(rows)], y[list(columns)])
    return moments


class TokenMaps(Maps):
    """Least squares on the shared tokens' embeddings, pushed through a linear layer where the
    space lies behind one.

    Residual stream (what q, k, v, up, gate read, what o, down and adapters write, the head):
    W = pinv(E_s) E_t. Outputs of q, k, v, up, gate: T = pinv(E_s W_s^T) E_t W_t^T with the layer's
    own weights. Input of o: as the outputs of v, repeated for grouped queries; heads are not told
    apart, so that what one head says can end up in another (strategy ``heads`` does tell them).
    Input of down: as the outputs of up, the activation left out. All from three matrices of
    moments, so that no token is pushed anywhere.
    """

    def __init__(self, source: HostFiles, target: HostFiles, *, tokens: int) -> None:
        self.source, self.target = source, target
        self._tokens = shared_moments(source, target, tokens)
        self._stream: dict[str, Affine] = {}

    def read(self, pair: Pair, *, intercept: bool = True) -> Affine:
        made = self._map(pair, "read")
        return made if intercept else Affine(made.weight, torch.zeros_like(made.bias))

    def write(self, pair: Pair) -> Affine:
        return self._map(pair, "write")

    def facts(self) -> dict[str, Any]:
        error = residual(self._tokens, self.stream("write"))
        return {"tokens": {"shared": self._tokens.n, "residual": error}}

    def stream(self, direction: str) -> Affine:
        """The map between the residual streams."""
        if direction not in self._stream:
            towards = self._tokens if direction == "write" else self._tokens.swapped()
            self._stream[direction] = least_squares(towards)
        return self._stream[direction]

    def fit(self, pair: Pair, moments: Moments, direction: str) -> Tensor:
        """The map x -> y of outputs of linear layers, [d_x, d_y]; x: source where ``direction`` is
        ``write``, target where it is ``read``."""
        return least_squares(moments).weight

    def _map(self, pair: Pair, direction: str) -> Affine:
        if layer_behind(self.source.spec, pair.source) is None:
            return self.stream(direction)
        w_s, b_s = behind(self.source, pair.source)
        w_t, b_t = behind(self.target, pair.target)
        moments = _through(self._tokens, w_s, w_t)
        if direction == "read":
            weight = self.fit(pair, moments.swapped(), direction)
            return Affine(weight, b_s - b_t @ weight)
        weight = self.fit(pair, moments, direction)
        return Affine(weight, b_t - b_s @ weight)


def layer_behind(spec: HostSpec, space: Space) -> Site | None:
    """The linear site whose outputs a space is made of; None for the residual stream."""
    if space.kind not in ("in", "out"):
        return None
    site = spec.site(space.site)
    if space.kind == "out":
        return None if site.role in ("o", "down") else site
    role = {"o": "v", "down": "up"}.get(site.role)
    return sibling(spec, site, role) if role else None


def behind(files: HostFiles, space: Space) -> tuple[Tensor, Tensor]:
    """Weight [d_space, d_in] and bias [d_space] of the linear layer behind a space, float64."""
    site = layer_behind(files.spec, space)
    assert site is not None
    weight = files.linear(site).to(torch.float64)
    bias = files.bias(site)
    bias = weight.new_zeros(len(weight)) if bias is None else bias.to(torch.float64)
    if space.kind == "in" and site.role == "v":
        weight, bias = per_query_head(files.spec, weight), per_query_head(files.spec, bias)
    elif space.kind == "in":
        bias = torch.zeros_like(bias)  # an activation lies between
    return weight, bias


def per_query_head(spec: HostSpec, rows: Tensor) -> Tensor:
    """Rows of key/value heads, [kv_heads * d_kv, ...], repeated for the query heads that share
    them, [heads * d_kv, ...]."""
    heads = rows.reshape(spec.kv_heads, -1, *rows.shape[1:])
    return heads.repeat_interleave(spec.heads // spec.kv_heads, dim=0).flatten(0, 1)


def least_squares(moments: Moments) -> Affine:
    """The linear map x -> y through the origin that fits best."""
    return ridge(moments, _NONE, intercept=False)


def _through(moments: Moments, w_x: Tensor, w_y: Tensor) -> Moments:
    """Moments of w_x x and w_y y; w_x [e_x, d_x], w_y [e_y, d_y]."""
    made = Moments(0, 0)
    made.n = moments.n
    made.x, made.y = w_x @ moments.x, w_y @ moments.y
    made.xx, made.yy = w_x @ moments.xx @ w_x.T, w_y @ moments.yy @ w_y.T
    made.xy = w_x @ moments.xy @ w_y.T
    return made
