"""Which source layer a target layer is filled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec
from peftport.porting.spaces import Correspondence
from peftport.porting.taps import Pair, Space

LayerMap = Mapping[str, tuple[int, ...]]
LAYER_RULES = ("depth", "cka")
#: positions of a text that layers are compared on, and of all texts
_PER_TEXT, _MOST = 8, 4096


def depth_map(source: int, target: int) -> tuple[int, ...]:
    """For every target layer the source layer at the same relative depth.

    Layer i of L covers the stretch from i / L to (i + 1) / L of a stack; a target layer gets the
    source layer whose middle is nearest to its own, the earlier of two equally near.

    >>> depth_map(6, 3), depth_map(3, 6), depth_map(4, 4)
    ((0, 2, 4), (0, 0, 1, 1, 2, 2), (0, 1, 2, 3))
    """
    # the middle (j + 1/2) / target lies at (2 j + 1) source / (2 target) - 1/2 in source layers;
    # rounded half down, in integers: ceil(that - 1/2)
    exact = ((2 * j + 1) * source - 2 * target for j in range(target))
    return tuple(max(0, -((-numerator) // (2 * target))) for numerator in exact)


def layers_by(
    rule: str, source: HostSpec, target: HostSpec, given: LayerMap | None
) -> dict[str, tuple[int, ...]]:
    """The layer map of a plan.

    Args:
        rule: ``depth`` or ``cka``.
        given: what :func:`cka_layers` found, for ``cka``.

    Raises:
        InputError: a map that is missing, not asked for, or not of these hosts.
    """
    if (rule == "cka") != (given is not None):
        raise InputError(
            "layer rule 'cka' compares the layers of both loaded hosts on unlabelled texts, and "
            "got no result; pass layer_map=cka_layers(hosts), or use --layers depth"
            if given is None
            else f"got a layer map with layer rule '{rule}', expected none; use --layers cka"
        )
    if given is None:
        return {s: depth_map(source.layers[s], count) for s, count in target.layers.items()}
    for stack, count in target.layers.items():
        chosen = given.get(stack, ())
        if len(chosen) != count or not all(0 <= i < source.layers[stack] for i in chosen):
            raise InputError(
                f"the layer map gives {list(chosen)} for {count} {stack} layers, expected as many "
                f"numbers below {source.layers[stack]}; compute it for these hosts"
            )
    return {stack: tuple(given[stack]) for stack in target.layers}


def cka_layers(hosts: Correspondence) -> dict[str, tuple[int, ...]]:
    """For every stack and target layer the source layer that the best order-preserving
    correspondence gives it (:func:`best_path` on :func:`cka_matrices`)."""
    return {stack: best_path(matrix) for stack, matrix in cka_matrices(hosts).items()}


def cka_matrices(hosts: Correspondence) -> dict[str, Tensor]:
    """Linear CKA of every source layer with every target layer, [L_s, L_t] by stack.

    Layers are compared by the residual stream that they leave (normed where the architecture norms
    it there) at up to 8 evenly spaced positions of each text, 4096 in all. Kept with the hosts.
    """
    if "cka" not in hosts.memo:
        ours, theirs = (
            {stack: _outputs(spec, stack) for stack in hosts.target.spec.layers}
            for spec in (hosts.source.spec, hosts.target.spec)
        )
        xs, ys = _collected(hosts, ours, theirs)
        hosts.memo["cka"] = {
            stack: torch.tensor([[cka(xs[s], ys[t]) for t in theirs[stack]] for s in ours[stack]])
            for stack in ours
        }
    found: dict[str, Tensor] = hosts.memo["cka"]
    return found


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of x [N, d_x] and y [N, d_y]: |X^T Y|^2 / (|X^T X| |Y^T Y|),
    columns centred, Frobenius norms. 1 for one representation in two rotations; 0 where one of
    them never varies.

    Source: Kornblith et al. 2019, arXiv 1905.00414, section 3.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    size = float((x.T @ x).norm() * (y.T @ y).norm())
    return float((x.T @ y).square().sum()) / size if size > 0 else 0.0


def best_path(similarity: Tensor) -> tuple[int, ...]:
    """For every target layer a source layer, in order, with the largest sum of similarities.

    A target that is no deeper takes source layers one each, strictly in order, and leaves the rest
    out: dp[i][j] = A[i][j] + max over k < i of dp[k][j - 1] (LoRASuite). A deeper target uses every
    source layer, each for one or more layers in a row, so that a surplus layer goes to the more
    similar of its neighbours' sources. The earlier source layer wins a tie.

    Args:
        similarity: A, [source layers, target layers].

    Source: LoRASuite, arXiv 2505.13515, for the strict case.

    >>> best_path(torch.eye(3)[:, [0, 2]]), best_path(torch.eye(2)[:, [0, 1, 1]])
    ((0, 2), (0, 1, 1))
    """
    deep, wide = similarity.shape
    rows = similarity.tolist()
    none = float("-inf")
    deeper = wide > deep

    def before(i: int) -> Sequence[int]:
        return range(max(0, i - 1), i + 1) if deeper else range(i)

    best = [[none] * wide for _ in range(deep)]
    came = [[0] * wide for _ in range(deep)]
    for j in range(wide):
        for i in range(deep):
            if j == 0:
                best[i][j] = none if deeper and i else rows[i][j]
            elif before(i):
                came[i][j] = max(before(i), key=lambda k: (best[k][j - 1], -k))
                best[i][j] = rows[i][j] + best[came[i][j]][j - 1]
    last = deep - 1 if deeper else max(range(deep), key=lambda i: (best[i][-1], -i))
    path = [last]
    for j in range(wide - 1, 0, -1):
        path.append(came[path[-1]][j])
    return tuple(reversed(path))


def _outputs(spec: HostSpec, stack: str) -> list[Space]:
    return [Space("normed", f"{stack}.{i}.ff.out") for i in range(spec.layers[stack])]


def _collected(
    hosts: Correspondence, ours: dict[str, list[Space]], theirs: dict[str, list[Space]]
) -> tuple[dict[Space, Tensor], dict[Space, Tensor]]:
    """Activations at corresponding positions by space, [N, d], float64, for either host."""
    xs: dict[Space, list[Tensor]] = {s: [] for spaces in ours.values() for s in spaces}
    ys: dict[Space, list[Tensor]] = {s: [] for spaces in theirs.values() for s in spaces}
    per_text = max(1, min(_PER_TEXT, _MOST // len(hosts.texts)))
    for batch in hosts.passes(xs, ys):
        for stack in ours:
            for s in ours[stack]:
                x, _, texts = batch.points(Pair(s, theirs[stack][0]))
                xs[s].append(x[_spaced(texts, per_text)].double())
            for t in theirs[stack]:
                _, y, texts = batch.points(Pair(ours[stack][0], t))
                ys[t].append(y[_spaced(texts, per_text)].double())
    return (
        {space: torch.cat(parts) for space, parts in xs.items()},
        {space: torch.cat(parts) for space, parts in ys.items()},
    )


def _spaced(texts: Tensor, count: int) -> Tensor:
    """Evenly spaced places of every text's stretch in a list of points, at most so many each."""
    lengths = torch.unique_consecutive(texts, return_counts=True)[1].tolist()
    made, start = [], 0
    for length in lengths:
        made += [start + i * length // min(count, length) for i in range(min(count, length))]
        start += length
    return torch.tensor(made)
