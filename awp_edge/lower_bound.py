"""A lower bound of f over a support family, or over the codes at given scales (proofs/T13_lower_bound.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .constraints import NM, BalancedBlock, RowSparse, Support
from .constraints.values import BoundGrid

Matrix = NDArray[np.float64]

#: Steps of the dual ascent, of Lanczos, and of the bisection for a budget's price.
DUAL_STEPS, LANCZOS_STEPS, BISECTIONS = 12, 60, 30
#: Share of the largest diagonal that each round takes from C. The second gains a tenth and costs an inversion, which
#: wide layers are spared; more rounds gain little.
ROUNDS, NARROW = (0.9, 1.0), 1024
#: What a C scaled to a diagonal of ones must have beyond 0, in roundings of d terms, to count as definite.
MARGIN = 16
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class Separated:
    """Hold a positive definite C, (d, d), its inverse and D > 0, (d,), with C - D positive semidefinite."""

    gram: Matrix
    inverse: Matrix
    diagonal: Matrix


class Relaxed(Protocol):
    """A separable part of the problem: what choosing Theta entry by entry costs at least."""

    def floor(self, y: Matrix, diagonal: Matrix) -> Matrix:
        """Return min over the set of 1/2 sum D_j (theta_j - y_j)^2, per row."""

    def prox(self, weight: Matrix, y: Matrix, diagonal: Matrix) -> Matrix:
        """Return the minimiser of H(theta) + 1/2 sum D_j (theta_j - y_j)^2, H the convex hull of floor's cost at w."""


@dataclass(frozen=True, eq=False)
class Cardinality:
    """Allow `budget` nonzeros in each group of inputs; groups: (n, size) column numbers, each column once.

    budget: one number, or one for each row, (rows,).
    """

    groups: NDArray[np.intp]
    budget: int | NDArray[np.intp]

    def floor(self, y: Matrix, diagonal: Matrix) -> Matrix:
        """Return what the entries outside the best support cost: all but the largest D_j y_j^2 of each group."""
        cost = np.sort((diagonal * y * y)[:, self.groups], axis=2)
        dropped = np.arange(cost.shape[2]) < cost.shape[2] - self._budgets()
        return np.asarray(np.sum(cost, axis=(1, 2), where=dropped) / 2)

    def prox(self, weight: Matrix, y: Matrix, diagonal: Matrix) -> Matrix:
        """Return z (w + y) / (1 + z), 0 <= z <= 1 the shares of the budget: larger entries get more."""
        pull = (np.sqrt(diagonal) * np.abs(weight + y))[:, self.groups]
        size = pull.shape[2]
        budget = self._budgets()
        smallest = np.broadcast_to(np.clip(size - budget, 0, size - 1), (*pull.shape[:2], 1))
        low = np.zeros((*pull.shape[:2], 1))
        high = 2 / np.maximum(np.take_along_axis(np.sort(pull, axis=2), smallest, axis=2), _TINY)
        with np.errstate(
            over="ignore"
        ):  # a group with fewer inputs alive than its budget: the price has no bound
            for _ in range(BISECTIONS):
                price = (low + high) / 2
                over = np.clip(pull * price - 1, 0, 1).sum(axis=2, keepdims=True) > budget
                low, high = np.where(over, low, price), np.where(over, price, high)
            inside = np.where(budget >= size, 1, np.clip(pull * low - 1, 0, 1))
        shares = np.empty_like(y)
        shares[:, self.groups] = np.where(budget == 0, 0, inside)
        return shares * (weight + y) / (1 + shares)

    def _budgets(self) -> NDArray[np.intp]:
        """Return the budget as (rows or 1, 1, 1)."""
        return np.asarray(self.budget).reshape(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class FixedGrid:
    """Allow the points of a grid whose scales are given."""

    grid: BoundGrid

    def floor(self, y: Matrix, diagonal: Matrix) -> Matrix:
        """Return 1/2 sum D_j dist(y_j, grid)^2."""
        return np.asarray(np.sum(diagonal * (self.grid.round(y) - y) ** 2, axis=1) / 2)

    def prox(self, weight: Matrix, y: Matrix, diagonal: Matrix) -> Matrix:
        """Return a grid point where (w + y)/2 is within a quarter step of one, else a point of the gap between two."""
        repeat = self.grid.spec.group_size
        scales = np.repeat(self.grid.scales, repeat, axis=1)
        zeros = np.repeat(self.grid.zeros, repeat, axis=1).astype(np.float64)
        top, middle = self.grid.spec.top, (weight + y) / 2
        place = np.clip(middle / scales + zeros, 0, top)
        near = np.rint(place)
        between = 2 * middle / scales + zeros - np.minimum(np.floor(place), top - 1) - 0.5
        return (np.where(np.abs(place - near) <= 0.25, near, np.clip(between, 0, top)) - zeros) * scales


def cardinality(support: Support, d: int) -> Cardinality | None:
    """Return the budgets of a support whose groups lie in one row; None for others."""
    columns = np.arange(d)
    match support:
        case RowSparse(k):
            return Cardinality(columns[None], np.array(k))
        case NM(n, m):
            return Cardinality(columns.reshape(-1, m), n)
        case BalancedBlock(k, block):
            return Cardinality(np.ascontiguousarray(columns.reshape(block, -1).T), k)
        case _:
            return None


def dual_bound(
    weight: Matrix, theta: Matrix, *, part: Separated, relaxed: Relaxed, steps: int = DUAL_STEPS
) -> Matrix:
    """Return a lower bound of f, (rows,), over every theta that `relaxed` allows (T13 b); at least 0.

    Each step of the alternating direction method on the relaxation is one product with C^-1; the residual u of every
    step is a dual point. The best of each row is evaluated from C itself, so that rounding in C^-1 cannot flatter it.

    Args:
        weight, theta: W and a feasible start, (rows, d).
        part: of C.
    """
    gram, inverse, diagonal = part.gram, part.inverse, part.diagonal
    target, multiplier = weight - theta, np.zeros_like(weight)
    best, dual = np.zeros(len(weight)), np.zeros_like(weight)
    for _ in range(steps):
        shifted = target - multiplier
        residual = (diagonal * shifted) @ inverse
        value = _value(weight, residual, shifted - residual, diagonal=diagonal, relaxed=relaxed)
        better = value > best
        best, dual = np.where(better, value, best), np.where(better[:, None], residual, dual)
        target = weight - relaxed.prox(weight, weight - residual - multiplier, diagonal)
        multiplier = multiplier + residual - target
    slope = dual @ gram / diagonal - dual
    return np.maximum(0.0, _value(weight, dual, slope, diagonal=diagonal, relaxed=relaxed))


def _value(weight: Matrix, dual: Matrix, slope: Matrix, *, diagonal: Matrix, relaxed: Relaxed) -> Matrix:
    """Return the dual function at v: slope = D^-1 R v (T13 b)."""
    spent = np.sum(diagonal * slope * (slope + dual), axis=1) / 2
    return relaxed.floor(weight + slope, diagonal) - spent


def separate(gram: Matrix) -> Separated | None:
    """Return C with a diagonal D that C - D can spare, as large as a few inversions make it; None for a singular C.

    Each round adds t / (R^-1)_jj, R = C - D, with the largest t that Cholesky confirms (T13 d): an input that others
    explain well gets little. Invariant to the scale of the inputs; cost about 6 d^3 flops, 4 for wide layers.
    """
    inverse = definite_inverse(gram)
    if inverse is None:
        return None
    found, last = np.zeros(len(gram)), inverse
    for share in ROUNDS if len(gram) <= NARROW else ROUNDS[-1:]:
        remaining = _less(gram, found)
        if found.any():
            last = np.asarray(np.linalg.inv(remaining), dtype=np.float64)
        free = 1 / np.maximum(last.diagonal(), _TINY)
        root = np.sqrt(free)
        step = 0.999 / largest_eigenvalue(root[:, None] * last * root)
        for _ in range(8):
            if _clearly_definite(_less(remaining, step * free), gram.diagonal()):
                found = found + share * step * free
                break
            step *= 0.95
    return Separated(gram, inverse, found) if found.any() else None


def definite_inverse(matrix: Matrix) -> Matrix | None:
    """Return the inverse of a symmetric matrix that is positive definite by more than rounding, at any scale of inputs.

    None for others: Cholesky alone would let exactly dependent inputs pass, and their inverse is noise.
    """
    if not (matrix.diagonal() > 0).all() or not _clearly_definite(matrix.copy(), matrix.diagonal()):
        return None
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _less(matrix: Matrix, diagonal: Matrix) -> Matrix:
    """Return a matrix less a diagonal one."""
    left = matrix.copy()
    left.flat[:: len(left) + 1] -= diagonal
    return left


def _clearly_definite(matrix: Matrix, diagonal: Matrix) -> bool:
    """Return whether a symmetric matrix is definite by more than rounding once `diagonal` is scaled to ones.

    It is overwritten: memory is planned for no more copies.
    """
    scale = 1 / np.sqrt(diagonal)
    matrix *= scale
    matrix *= scale[:, None]
    matrix.flat[:: len(matrix) + 1] -= MARGIN * len(matrix) * np.finfo(np.float64).eps
    return is_definite(matrix)


def is_definite(matrix: Matrix) -> bool:
    """Return whether a symmetric matrix has a Cholesky factor."""
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def largest_eigenvalue(matrix: Matrix) -> float:
    """Return the largest eigenvalue of a symmetric psd matrix by Lanczos, from below; a fixed start vector."""
    basis = np.zeros((min(LANCZOS_STEPS, len(matrix)), len(matrix)))
    vector = np.random.default_rng(0).normal(size=len(matrix))
    diagonal: list[float] = []
    off: list[float] = []
    for i in range(len(basis)):
        basis[i] = vector / np.linalg.norm(vector)
        vector = matrix @ basis[i]
        diagonal.append(float(basis[i] @ vector))
        for _ in range(2):  # twice is enough
            vector = vector - basis[: i + 1].T @ (basis[: i + 1] @ vector)
        off.append(float(np.linalg.norm(vector)))
        if off[-1] <= 1e-13 * abs(diagonal[0]):
            break
    beside = np.array(off[: len(diagonal) - 1])
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))[-1])
