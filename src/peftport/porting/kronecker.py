"""Dense matrices as Kronecker sums with a shared rule: the parametrisation of Compacter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peftport.methods.compacter import kronecker_sum

_ROUNDS = 60


@dataclass(frozen=True)
class Dense:
    """A matrix to be approximated.

    Attributes:
        matrix: D [n p, n q], applied as x @ D.
        covariance: of the x it meets, [n p, n p]; errors count by it. None: all directions alike.
        mean: of the x it meets, [n p], or None.
    """

    matrix: Tensor
    covariance: Tensor | None = None
    mean: Tensor | None = None

    @property
    def metric(self) -> Tensor:
        """Symmetric positive definite, mean diagonal about 1; one hundredth of it is the identity,
        so that directions which were not met are not thrown away."""
        eye = torch.eye(self.matrix.shape[0], dtype=torch.float64)
        if self.covariance is None or float(self.covariance.trace()) <= 0:
            return eye
        return (self.covariance / self.covariance.diagonal().mean() + 0.01 * eye) / 1.01


@dataclass
class Factors:
    """left [n, p, 1] and right [n, 1, q] of one matrix; shift [n q] is the mean of x @ (D - K)."""

    left: Tensor
    right: Tensor
    shift: Tensor


def factorise(targets: Sequence[Dense], rule: Tensor) -> tuple[Tensor, list[Factors], list[float]]:
    """Minimise sum over matrices of |D - sum_i kron(rule_i, left_i right_i)|^2 / |D|^2.

    Alternating least squares in its three blocks (left, right, rule), each solved exactly, from
    the source module's rule (a start from the matrices' own leading patterns did no better).
    Source: the rearrangement of Van Loan & Pitsianis 1993 for the start; compacter's eq. 6
    (arXiv 2106.04647) for the form.

    Args:
        targets: matrices of all sites; n must divide their sides.
        rule: [n, n, n], the source module's.

    Returns:
        The rule, the factors by matrix, and the relative errors in the metric (0 exact, 1 none of
        it kept; square roots).
    """
    n = rule.shape[0]
    problems = [_Problem(t, n) for t in targets]
    fitted, factors = _alternate(problems, rule)
    fitted = _rebalanced(fitted, factors, rule)
    for target, own in zip(targets, factors, strict=True):
        if target.mean is not None:
            gap = target.matrix - kronecker_sum(fitted, own.left, own.right)
            own.shift = target.mean.double() @ gap
    return fitted, factors, [p.error(fitted, f) for p, f in zip(problems, factors, strict=True)]


class _Problem:
    """One matrix with its metric, as [a, u, c, v]: D[(a, u), (c, v)], a, c < n, u < p, v < q."""

    def __init__(self, target: Dense, n: int) -> None:
        self.matrix = target.matrix.to(torch.float64)
        rows, cols = self.matrix.shape
        self.n, self.p, self.q = n, rows // n, cols // n
        self.metric = target.metric  # [n p, n p]
        self.metric4 = self.metric.reshape(n, self.p, n, self.p)  # [a, u, b, w]
        self.weighted = (self.metric @ self.matrix).reshape(n, self.p, n, self.q)
        self.energy = max(float((self.matrix * (self.metric @ self.matrix)).sum()), 1e-300)

    def error(self, rule: Tensor, own: Factors) -> float:
        gap = self.matrix - kronecker_sum(rule, own.left, own.right)
        return (max(float((gap * (self.metric @ gap)).sum()), 0.0) / self.energy) ** 0.5

    def start(self, rule: Tensor) -> Factors:
        """Unweighted: coefficients of the matrix in the rule, each cut to rank one."""
        n, p, q = self.n, self.p, self.q
        patterns = self.matrix.reshape(n, p, n, q).permute(0, 2, 1, 3).reshape(n * n, p * q)
        blocks = torch.linalg.lstsq(rule.reshape(n, n * n).T, patterns, driver="gelsd").solution
        u, s, vh = torch.linalg.svd(blocks.reshape(n, p, q), full_matrices=False)
        root = s[:, :1].sqrt()  # [n, 1]
        left, right = u[:, :, 0] * root, vh[:, 0, :] * root
        return Factors(left[:, :, None], right[:, None, :], torch.zeros(n * q).double())

    def solve_left(self, rule: Tensor, own: Factors) -> None:
        right = own.right[:, 0, :]  # [n, q]
        mixed = torch.einsum("iac,jbc,iv,jv->iajb", rule, rule, right, right)
        system = torch.einsum("iajb,aubw->iujw", mixed, self.metric4)
        rhs = torch.einsum("iac,iv,aucv->iu", rule, right, self.weighted)
        size = self.n * self.p
        own.left = _solve(system.reshape(size, size), rhs.reshape(size)).reshape(self.n, self.p, 1)

    def solve_right(self, rule: Tensor, own: Factors) -> None:
        left = own.left[:, :, 0]  # [n, p]
        system = torch.einsum("iac,iu,aubw,jbc,jw->ij", rule, left, self.metric4, rule, left)
        rhs = torch.einsum("iac,iu,aucv->iv", rule, left, self.weighted)
        own.right = _solve(system, rhs)[:, None, :]

    def rule_system(self, own: Factors) -> tuple[Tensor, Tensor]:
        """Normal equations for the rule, [(i, a), (j, b)] and [(i, a), c], scaled by 1/|D|^2."""
        left, right = own.left[:, :, 0], own.right[:, 0, :]
        inner = torch.einsum("iu,aubw,jw->iajb", left, self.metric4, left)
        system = inner * (right @ right.T)[:, None, :, None]
        rhs = torch.einsum("iu,iv,aucv->iac", left, right, self.weighted)
        size = self.n * self.n
        return system.reshape(size, size) / self.energy, rhs.reshape(size, self.n) / self.energy


def _alternate(problems: list[_Problem], rule: Tensor) -> tuple[Tensor, list[Factors]]:
    rule = rule.to(torch.float64)
    factors = [problem.start(rule) for problem in problems]
    before = float("inf")
    for _ in range(_ROUNDS):
        for problem, own in zip(problems, factors, strict=True):
            problem.solve_right(rule, own)
            problem.solve_left(rule, own)
        systems = [p.rule_system(own) for p, own in zip(problems, factors, strict=True)]
        total = torch.stack([s for s, _ in systems]).sum(0)
        rule = _solve(total, torch.stack([r for _, r in systems]).sum(0)).reshape(rule.shape)
        now = sum(p.error(rule, own) ** 2 for p, own in zip(problems, factors, strict=True))
        if now > before - 1e-9 * len(problems):
            break
        before = now
    return rule, factors


def _rebalanced(rule: Tensor, factors: list[Factors], like: Tensor) -> Tensor:
    """Give each rule matrix the norm it had in the source and its factors the rest: the product
    is the same, but further training starts from the scale that the method is used to."""
    norms = rule.flatten(1).norm(dim=1)  # [n]
    wanted = like.to(torch.float64).flatten(1).norm(dim=1).mean()
    if float(wanted) == 0:
        return rule
    scale = torch.where(norms > 0, norms / wanted, torch.ones_like(norms))
    for own in factors:
        left, right = own.left.flatten(1).norm(dim=1), own.right.flatten(1).norm(dim=1)
        total = left * right * scale
        shared = total.sqrt()
        own.left = own.left * (shared / left.clamp(min=1e-300))[:, None, None]
        own.right = own.right * (shared / right.clamp(min=1e-300))[:, None, None]
    return rule / scale[:, None, None]


def _solve(system: Tensor, rhs: Tensor) -> Tensor:
    """system [m, m] symmetric positive semidefinite, rhs [m] or [m, k]."""
    level = float(system.diagonal().mean())
    if level <= 0:
        return torch.zeros_like(rhs)
    damped = system + 1e-12 * level * torch.eye(len(system), dtype=system.dtype)
    columns = rhs[:, None] if rhs.dim() == 1 else rhs
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        solved = torch.linalg.lstsq(damped, columns, driver="gelsd").solution
    else:
        solved = torch.cholesky_solve(columns, factor)
    return solved[:, 0] if rhs.dim() == 1 else solved
