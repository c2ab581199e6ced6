"""Values of key/value pairs, fitted to what an attention should add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from peftport.porting.maps import STRENGTHS, Affine, Moments, residual
from peftport.porting.regression import gentlest

#: conjugate gradients end at this relative error, or after so many rounds
_PRECISION, _ROUNDS = 1e-6, 500
#: (right side, lambda) -> V
Near = Callable[[Tensor, float], Tensor]


class _Values:
    """Normal equations of y = sum_hp a_hp V[g(h), p] W_h in V [kv_heads, l, d_kv]."""

    def __init__(self, weight: Tensor, kv_heads: int, length: int) -> None:
        self.weight = weight  # [H, d_kv, d_out]
        self.shape = (kv_heads, length, weight.shape[1])
        self._share = weight.shape[0] // kv_heads  # query heads of one head of values

    def out(self, values: Tensor) -> Tensor:
        """V -> what one unit of each head's attention to each pair adds, [H * l, d_out]."""
        own = values.repeat_interleave(self._share, 0)  # [H, l, d_kv]
        return torch.einsum("hpk,hko->hpo", own, self.weight).flatten(0, 1)

    def back(self, outputs: Tensor) -> Tensor:
        """The transpose of :meth:`out`, [H * l, d_out] -> [kv_heads, l, d_kv]."""
        kv_heads, length, _ = self.shape
        split = outputs.unflatten(0, (len(self.weight), length))
        own = torch.einsum("hpo,hko->hpk", split, self.weight)
        return own.unflatten(0, (kv_heads, self._share)).sum(1)

    def near(self, gram: Tensor) -> tuple[Near, float]:
        """A system that is like the normal equations and easy to solve, and the mean of its
        diagonal: every head of values alone, the query heads that share it taken as independent.

        Returns:
            (r, lambda) -> V, and the level that strengths are relative to.
        """
        heads, (kv_heads, length, _) = len(self.weight), self.shape
        own = gram.reshape(heads, length, heads, length).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        weight = torch.einsum("hko,hjo->hkj", self.weight, self.weight)
        own = own.unflatten(0, (kv_heads, self._share)).sum(1)  # [kv_heads, l, l]
        weight = weight.unflatten(0, (kv_heads, self._share)).mean(1)  # [kv_heads, d_kv, d_kv]
        a, u = torch.linalg.eigh(own)
        b, q = torch.linalg.eigh(weight)
        level = float((a.mean(1) * b.mean(1)).mean())

        def solve(right: Tensor, damping: float) -> Tensor:
            rotated = u.mT @ right @ q
            return u @ (rotated / (a.clamp(min=0)[:, :, None] * b[:, None] + damping)) @ q.mT

        return solve, level

    def solve(self, moments: Moments, strengths: Iterable[float]) -> Iterator[Tensor]:
        """V that minimises |y - sum_hp a_hp V W_h|^2 + lambda |V|^2 per point, for one strength
        after the other; each search starts where the one before ended."""
        gram = moments.xx / moments.n
        wanted = self.back(moments.xy / moments.n)
        near, level = self.near(gram)
        values = torch.zeros(self.shape, dtype=torch.float64)
        for strength in strengths:
            if level > 0:  # else nothing attends to the pairs
                values = self._search(gram, wanted, near, strength * level, values)
            yield values

    def _search(
        self, gram: Tensor, wanted: Tensor, near: Near, damping: float, start: Tensor
    ) -> Tensor:
        """Conjugate gradients on the normal equations, preconditioned by :meth:`near`."""

        def apply(flat: Any) -> Any:
            values = torch.as_tensor(flat).reshape(self.shape)
            return (self.back(gram @ self.out(values)) + damping * values).flatten().numpy()

        def guess(flat: Any) -> Any:
            return near(torch.as_tensor(flat).reshape(self.shape), damping).flatten().numpy()

        size = (start.numel(), start.numel())
        found, _ = cg(
            LinearOperator(size, matvec=apply, dtype="float64"),
            wanted.flatten().numpy(),
            x0=start.flatten().numpy(),
            rtol=_PRECISION,
            maxiter=_ROUNDS,
            M=LinearOperator(size, matvec=guess, dtype="float64"),
        )
        return torch.from_numpy(found).reshape(self.shape)


def fit_values(
    train: Moments,
    held: Moments,
    weight: Tensor,
    kv_heads: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Tensor, float, float]:
    """Ridge regression of the values of l key/value pairs, the keys given.

    With a_hp the attention that head h pays to pair p and W_h the rows of the output projection
    that belong to it, the pairs add sum_hp a_hp V[g(h), p] W_h, linear in the values V (g(h): the
    head of keys and values that head h uses). The strength is the largest whose error on held-out
    points is within 1 % of the least.

    Args:
        train, held: moments of a [N, H * l] and of what is to be added [N, d_out].
        weight: W, [H, d_kv, d_out], float64.
        kv_heads: heads of keys and values.

    Returns:
        V [l, kv_heads * d_kv], the strength, the residual on held-out points.
    """
    problem = _Values(weight, kv_heads, train.x.shape[0] // weight.shape[0])
    ordered = sorted(strengths, reverse=True)
    nothing = train.y.new_zeros(train.y.shape)
    errors = [
        residual(held, Affine(problem.out(values), nothing))
        for values in problem.solve(train, ordered)
    ]
    best = gentlest(errors, ordered)
    (values,) = problem.solve(train + held, [ordered[best]])
    return values.transpose(0, 1).flatten(1), ordered[best], errors[best]
