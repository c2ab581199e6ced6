"""What is cheap to know of a module and two hosts: from weights, and from unlabelled texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from peftport.errors import InputError
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.base import SHARED, Module, method_of
from peftport.porting import Correspondence
from peftport.porting.carriers.base import carrier_of
from peftport.porting.layers import LayerMap, cka_matrices
from peftport.porting.lowrank import leading
from peftport.porting.recorded import predictions
from peftport.porting.tokens import least_squares, shared_moments
from peftport.porting.weights import HostFiles

#: by name, what a feature is
FEATURES = {
    "same_shape": "1 where a module can be copied unchanged, else 0",
    "distance": "relative Frobenius distance of the hosts' weights in the module's blocks; the "
    "square root of 2, as of unrelated weights of one size, where shapes differ",
    "overlap": "share of the leading input directions of the source's linears that lie in the "
    "target's, carried over by the shared tokens' embeddings where widths differ",
    "width": "absolute logarithm of the ratio of the hosts' widths",
    "depth": "absolute logarithm of the ratio of the hosts' depths",
    "norm": "logarithm of the mean Frobenius norm of what the module does at a site",
    "rank": "mean effective rank of the module's matrices, as a share of the full one",
    "cka": "mean linear CKA of the hidden states of corresponding layers on the texts",
    "agreement": "correlation of class scores on the texts: source host and module against target "
    "host and ported module",
    "kappa": "Cohen's kappa of the same two's answers on the texts",
}
#: features that need unlabelled texts and both hosts loaded
NEED_TEXTS = ("cka", "agreement", "kappa")
#: leading directions of a weight that are compared
_DIRECTIONS = 16
_TOKENS = 40_000
_UNRELATED = math.sqrt(2.0)

Files = tuple[HostFiles, HostFiles]


def measure(
    module: Module,
    files: Files,
    layer_map: LayerMap,
    *,
    hosts: Correspondence | None = None,
    ported: Module | None = None,
) -> dict[str, float]:
    """Features of a port by name.

    Args:
        module: on the source host.
        files: source and target.
        layer_map: for every stack the source layer of each target layer.
        hosts: both loaded, with texts; None: no feature of :data:`NEED_TEXTS`.
        ported: the module on the target; needed with ``hosts``.

    Raises:
        InputError: a host's files cannot be read.
    """
    source, target = files[0].spec, files[1].spec
    same = source.shape_digest == target.shape_digest
    links = list(_links(module, source, target, layer_map))
    found = {
        "same_shape": float(same),
        "distance": _distance(files, links) if same else _UNRELATED,
        "overlap": _overlap(files, links),
        "width": abs(math.log(target.d_model / source.d_model)),
        "depth": abs(math.log(sum(target.layers.values()) / sum(source.layers.values()))),
        "norm": _norm(module),
        "rank": _rank(module),
    }
    if hosts is not None:
        assert ported is not None, "the ported module is needed beside loaded hosts"
        found |= _on_texts(hosts, module, ported, layer_map)
    return found


def _links(
    module: Module, source: HostSpec, target: HostSpec, layer_map: LayerMap
) -> Iterator[tuple[Site, Site]]:
    """Linear sites of the blocks that the module acts in on the target, with their source sites."""
    acts = {
        (s.stack, s.layer, s.block) for s in method_of(module.config).sites(source, module.config)
    }
    for site in target.sites:
        layers = layer_map.get(site.stack, ())
        if site.role in ("kv", "out") or site.layer >= len(layers):
            continue
        layer = layers[site.layer]
        own = source.by_name.get(f"{site.stack}.{layer}.{site.block}.{site.role}")
        if own is not None and (own.stack, own.layer, own.block) in acts:
            yield own, site


def _distance(files: Files, links: list[tuple[Site, Site]]) -> float:
    moved = size = 0.0
    for ours, theirs in links:
        w = files[0].linear(ours)
        moved += float((files[1].linear(theirs) - w).double().square().sum())
        size += float(w.double().square().sum())
    return math.sqrt(moved / size) if size > 0 else 0.0


def _overlap(files: Files, links: list[tuple[Site, Site]]) -> float:
    """Mean of |Q^T V_t|^2 / k over the linears that read the residual stream, with Q an orthonormal
    basis of the source's k leading right singular vectors in the target's coordinates; k / d_model,
    as of directions drawn at random, where the vocabularies share too few tokens."""
    source, target = files[0].spec, files[1].spec
    reading = [(s, t) for s, t in links if s.d_in == source.d_model and t.d_in == target.d_model]
    carry: Tensor | None = None
    if source.d_model != target.d_model:
        try:
            carry = least_squares(shared_moments(files[0], files[1], _TOKENS)).weight.float()
        except InputError:
            return _DIRECTIONS / target.d_model
    shares = []
    for ours, theirs in reading:
        v_s, v_t = _read(files[0], ours), _read(files[1], theirs)  # [d_s, k], [d_t, k]
        q = v_s if carry is None else torch.linalg.qr(carry.T @ v_s)[0]  # [d_t, k]
        shares.append(float((q.T @ v_t).square().sum()) / min(q.shape[1], v_t.shape[1]))
    return sum(shares) / len(shares) if shares else 0.0


@lru_cache(maxsize=1024)
def _read(files: HostFiles, site: Site) -> Tensor:
    """Leading input directions of a linear, [d_in, k]; kept, since every module of a pair asks."""
    return leading(files.linear(site), _DIRECTIONS)[2]


def _norm(module: Module) -> float:
    carrier = carrier_of(module.config.method)
    sizes = [
        carrier.size(module.config, module.state, site) for site in module.state if site != SHARED
    ]
    return math.log(max(sum(sizes) / max(1, len(sizes)), 1e-12))


def _rank(module: Module) -> float:
    """exp of the entropy of the normalised singular values, over the smaller side.

    Source: Roy & Vetterli 2007, The effective rank.
    """
    shares = []
    for tensors in module.state.values():
        for tensor in tensors.values():
            if tensor.ndim < 2 or min(tensor.shape[-2:]) < 2:
                continue
            s = torch.linalg.svdvals(tensor.detach().double().reshape(-1, tensor.shape[-1]))
            p = s / s.sum().clamp(min=1e-300)
            entropy = float(-(p * p.clamp(min=1e-300).log()).sum())
            shares.append(math.exp(entropy) / len(s))
    return sum(shares) / len(shares) if shares else 1.0


def _on_texts(
    hosts: Correspondence, module: Module, ported: Module, layer_map: LayerMap
) -> dict[str, float]:
    matrices = cka_matrices(hosts)
    alike = [
        float(matrices[stack][layer, at])
        for stack, layers in layer_map.items()
        for at, layer in enumerate(layers)
    ]
    before = predictions(hosts, "source", module).double()  # [texts, C]
    after = predictions(hosts, "target", ported).double()
    return {
        "cka": sum(alike) / len(alike),
        "agreement": correlation(before, after),
        "kappa": kappa(before.argmax(1), after.argmax(1), before.shape[1]),
    }


def correlation(x: Tensor, y: Tensor) -> float:
    """Of class scores relative to each text's mean, over all texts and classes, classes centred;
    0 where one side never varies. x, y: [N, C]."""
    x, y = (t - t.mean(1, keepdim=True) for t in (x, y))
    x, y = (t - t.mean(0) for t in (x, y))
    size = float(x.norm() * y.norm())
    return float((x * y).sum()) / size if size > 1e-12 else 0.0


def kappa(x: Tensor, y: Tensor, classes: int) -> float:
    """Cohen's kappa of two answers [N]: agreement beyond chance; 0 where chance explains all.

    Source: Cohen 1960, A coefficient of agreement for nominal scales.
    """
    same = float((x == y).double().mean())
    chance = sum(
        float((x == c).double().mean()) * float((y == c).double().mean()) for c in range(classes)
    )
    return (same - chance) / (1 - chance) if chance < 1 else 0.0
