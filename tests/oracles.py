"""Slow and obvious twins of what the package computes: enumeration, sorting, exact fractions."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from awp_edge import NM, BalancedBlock, BlockSparse, Dense, Problem, RowSparse, Sparse
from awp_edge.constraints import BoundGrid, IntGrid, Support

Matrix = NDArray[np.floating]
Cells = list[list[tuple[int, int]]]


def competitions(support: Support, shape: tuple[int, int]) -> tuple[int, list[Cells]]:
    """Return (k, groups): in each group of candidates exactly k may stay; a candidate is a list of cells."""
    rows, columns = range(shape[0]), range(shape[1])
    single = {(i, j): [(i, j)] for i in rows for j in columns}
    if isinstance(support, Dense):
        return 1, [[cell] for cell in single.values()]
    if isinstance(support, RowSparse):
        return support.k, [[single[i, j] for j in columns] for i in rows]
    if isinstance(support, NM):
        blocks = [range(j, j + support.m) for j in columns[:: support.m]]
        return support.n, [[single[i, j] for j in block] for i in rows for block in blocks]
    if isinstance(support, BalancedBlock):
        stride = shape[1] // support.block
        return support.k, [
            [single[i, j] for j in range(b, shape[1], stride)] for i in rows for b in range(stride)
        ]
    assert isinstance(support, BlockSparse)
    strips = [range(i, i + support.rows) for i in rows[:: support.rows]]
    tiles = [range(j, j + support.cols) for j in columns[:: support.cols]]
    return support.k, [[list(product(strip, tile)) for tile in tiles] for strip in strips]


def sorted_mask(support: Support, gain: Matrix) -> NDArray[np.bool_]:
    """Select by a stable sort of exact sums: the largest gains, the lowest index among equals."""
    mask = np.zeros(gain.shape, dtype=bool)
    k, groups = competitions(support, gain.shape)
    for candidates in groups:
        totals = [sum(Fraction(float(gain[cell])) for cell in cells) for cells in candidates]
        for index in sorted(range(len(totals)), key=lambda i: -totals[i])[:k]:
            for cell in candidates[index]:
                mask[cell] = True
    return mask


def allowed_masks(support: Support, shape: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
    """Yield every mask of the family with the full count (tiny shapes only)."""
    k, groups = competitions(support, shape)
    for choice in product(*(combinations(candidates, k) for candidates in groups)):
        mask = np.zeros(shape, dtype=bool)
        for cells in (cells for chosen in choice for cells in chosen):
            for cell in cells:
                mask[cell] = True
        yield mask


def grid_values(grid: BoundGrid, row: int, column: int) -> list[float]:
    """Return every value the grid offers at one entry."""
    group = column // grid.spec.group_size
    zero, scale = int(grid.zeros[row, group]), grid.scales[row, group]
    return [float((code - zero) * scale) for code in range(2**grid.spec.bits)]


def cheapest(constraint: Sparse, z: Matrix) -> float:
    """Return min ||Z - Theta||^2 over the set by enumeration, per competition (they are independent)."""
    z = z.astype(np.float64)
    kept = np.zeros(z.shape)
    if isinstance(constraint.values, BoundGrid):
        for i, j in np.ndindex(z.shape):
            kept[i, j] = min((z[i, j] - v) ** 2 for v in grid_values(constraint.values, i, j))
    k, groups = competitions(constraint.support, z.shape)
    total = 0.0
    for candidates in groups:
        stay = [sum(kept[cell] for cell in cells) for cells in candidates]
        go = [sum(z[cell] ** 2 for cell in cells) for cells in candidates]
        ways = combinations(range(len(candidates)), k)
        total += min(sum(stay[i] if i in way else go[i] for i in range(len(candidates))) for way in ways)
    return total


def exact_code(value: float, scale: float, zero: int, *, top: int) -> int:
    """Return the code of one number: the quotient in the dtype of the inputs, everything after it exact."""
    with np.errstate(over="ignore"):
        ratio = float(value / scale)
    if np.isinf(ratio):
        return top if ratio > 0 else 0
    quotient = Fraction(ratio)
    floor = quotient.numerator // quotient.denominator
    rest = quotient - floor
    step = floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1))
    return min(max(step + zero, 0), top)


def fitted_group(spec: IntGrid, group: Matrix) -> tuple[float, int]:
    """Return (scale, zero) of one group of weights, without float16 scales."""
    low, high = min(group.min(), 0), max(group.max(), 0)
    if spec.symmetric:
        zero, scale = 2 ** (spec.bits - 1), max(-low, high) / group.dtype.type(2 ** (spec.bits - 1) - 1)
        return (scale, zero) if scale > 0 else (1.0, zero)
    scale = (high - low) / group.dtype.type(2**spec.bits - 1)
    if not scale > 0:
        return 1.0, 0
    return scale, min(max(round(float(-low / scale)), 0), 2**spec.bits - 1)


def plain_pgd(problem: Problem, constraint: Sparse, theta: Matrix, *, step: float, n: int) -> list[Matrix]:
    """Return the iterates of Algorithm 1 of AWP, row by row in float64."""
    weight, gram = problem.weight.astype(np.float64), problem.gram.astype(np.float64)
    iterates = [theta]
    for _ in range(n):
        z = np.empty_like(weight)
        for i in range(weight.shape[0]):
            z[i] = iterates[-1][i] + step * np.array([np.dot(weight[i] - iterates[-1][i], c) for c in gram.T])
        iterates.append(constraint.project(z))
    return iterates


def exact_objective(problem: Problem, theta: Matrix) -> Fraction:
    """Return 1/2 tr((W - Theta) C (W - Theta)^T) without rounding."""
    residual = [[Fraction(float(w)) - Fraction(float(t)) for w, t in zip(*rows, strict=True)]
                for rows in zip(problem.weight, theta, strict=True)]  # fmt: skip
    gram = [[Fraction(float(c)) for c in row] for row in problem.gram]
    d = range(len(gram))
    return sum((r[i] * gram[i][j] * r[j] for r in residual for i in d for j in d), Fraction(0)) / 2


def best_sparse_objective(problem: Problem, k: int) -> float:
    """Return min f over rows with at most k nonzeros: every support, least squares on each (small d_in only)."""
    values, vectors = np.linalg.eigh(problem.gram.astype(np.float64))
    root = (vectors * np.sqrt(np.maximum(values, 0))).T
    total = 0.0
    for row in problem.weight.astype(np.float64):
        target = root @ row
        total += min(_residual(root[:, list(s)], target) for s in combinations(range(len(row)), k))
    return total / 2


def _residual(columns: Matrix, target: Matrix) -> float:
    if columns.shape[1] == 0:
        return float(target @ target)
    fitted = columns @ np.linalg.lstsq(columns, target, rcond=None)[0]
    return float((target - fitted) @ (target - fitted))


def descend_codes(problem: Problem, grid: BoundGrid, theta: Matrix) -> Matrix:
    """Move one entry at a time to its best code until no move lowers f: coordinate descent as T04 defines its end."""
    theta, weight = theta.astype(np.float64), problem.weight.astype(np.float64)
    gram = problem.gram.astype(np.float64)
    moved = True
    while moved:
        moved = False
        for i, j in np.ndindex(theta.shape):
            gradient = float(gram[j] @ (theta[i] - weight[i]))
            noise = 1e-13 * float(np.abs(gram[j]) @ (np.abs(theta[i]) + np.abs(weight[i])))
            shifts = np.array(grid_values(grid, i, j)) - theta[i, j]
            changes = shifts * gradient + shifts**2 * gram[j, j] / 2 + noise * np.abs(shifts)
            if changes.min() < 0:
                theta[i, j] += shifts[changes.argmin()]
                moved = True
    return theta


def coordinate_minimum(gram: Matrix, row: Matrix, theta: Matrix) -> Matrix:
    """Change one entry or swap one pair, each exactly, until neither lowers f: a coordinate-wise minimum of T04 (d)."""
    theta, k = theta.astype(np.float64), np.count_nonzero(theta)
    diagonal = np.maximum(gram.diagonal(), 1e-300)

    def objective(point: Matrix) -> float:
        return float((point - row) @ gram @ (point - row)) / 2

    while True:
        bases = [(theta, (theta != 0) | (np.count_nonzero(theta) < k))]
        for i in np.flatnonzero(theta):
            bases.append((np.where(np.arange(len(row)) == i, 0, theta), np.ones(len(row), bool)))
        rivals = []
        for base, free in bases:
            if not free.any():
                continue
            g = gram @ (base - row)
            j = int(np.where(free, g * g / diagonal, -1).argmax())
            changed = base.copy()
            changed[j] -= g[j] / diagonal[j]
            rivals.append((objective(changed), changed))
        best = min(rivals, key=lambda rival: rival[0], default=(objective(theta), theta))
        if best[0] >= objective(theta) - 1e-13 * float(row @ gram @ row):
            return theta
        theta = best[1]


def refit(gram: Matrix, row: Matrix, support: Matrix) -> Matrix:
    """Return the least-squares row on a support: C_SS theta_S = (C w)_S; the shortest where C_SS is singular."""
    theta, kept = np.zeros(len(row)), np.flatnonzero(support)
    if kept.size:
        theta[kept] = np.linalg.pinv(gram[np.ix_(kept, kept)], hermitian=True) @ (gram @ row)[kept]
    return theta


def round_with_feedback(
    gram: Matrix, row: Matrix, *, values: list[list[float]], order: Matrix
) -> tuple[Matrix, Matrix]:
    """Round one entry after the other to its nearest value, each time to the best real row given the codes so far.

    Returns q and the rounding errors r, both in the original order. The least-squares problem is solved afresh for
    every entry: the statement of GPTQ, not its algorithm.
    """
    q, errors, rest = np.zeros(len(row)), np.zeros(len(row)), list(order)
    while rest:
        done = [j for j in order if j not in rest]
        shift = gram[np.ix_(rest, done)] @ (row - q)[done]
        target = row[rest] + np.linalg.solve(gram[np.ix_(rest, rest)], shift)
        j = rest.pop(0)
        options = np.array(values[j])
        q[j] = options[np.abs(options - target[0]).argmin()]
        errors[j] = target[0] - q[j]
    return q, errors


def least_squares(problem: Problem, row: int, mask: np.ndarray) -> float:
    """Return the smallest f of one row on a support, by the normal equations."""
    inside, residual = np.flatnonzero(mask), problem.weight[row].copy()
    if inside.size:
        gram = problem.gram[np.ix_(inside, inside)]
        residual[inside] -= np.linalg.lstsq(gram, problem.gram[inside] @ problem.weight[row], rcond=None)[0]
    return 0.5 * float(residual @ problem.gram @ residual)


# ------------------------------------------------------------------------------------------------ refit
