"""The sweep behind SparseGPT and GPTQ: settle one column after another, correct those that are still free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..backend import Backend
from ..constraints import BoundGrid, Sparse
from ..problem import Array, Problem

#: Columns whose corrections are applied one by one; all later columns get those of a whole block in one product.
BLOCK = 128
Order = NDArray[np.intp]
#: Return the final value of the column that a step settles, given all columns in the sweep's order, (d_in, d_out).
Settle = Callable[[Array, int], Array]


@dataclass(frozen=True)
class Sweep:
    """Bundle what a sweep of one layer needs.

    order: the input that comes at each step, (d_in,).
    upper: U, upper triangular with (C + damping)^-1 = U^T U in that order, (d_in, d_in), dtype of W.
    block: columns per block.
    """

    order: Order
    upper: Array
    block: int = BLOCK

    def run(self, weight: Array, settle: Settle, *, engine: Backend) -> Array:
        """Return Theta, (d_out, d_in): every column as `settle` left it.

        Settling column j at q instead of its present z moves the free columns to their optimum given the settled
        ones: z_k -= U_jk (z_j - q) / U_jj. With H = C + damping, tr((W - Theta) H (W - Theta)^T) =
        sum_j ||z_j - q_j||^2 / U_jj^2. Cost d_out d_in^2.

        Source: Frantar and Alistarh, SparseGPT (ICML 2023), Algorithm 1; the lazy blocks are GPTQ's (ICLR 2023).
        """
        columns = np.ascontiguousarray(weight.T[self.order])
        d = len(columns)
        for first in range(0, d, self.block):
            last = min(first + self.block, d)
            errors = np.empty_like(columns[first:last])
            for j in range(first, last):
                value = settle(columns, j)
                error = errors[j - first] = (columns[j] - value) / self.upper[j, j]
                columns[j] = value
                columns[j + 1 : last] -= np.outer(self.upper[j, j + 1 : last], error)
            if last < d:
                columns[last:] -= engine.product(
                    np.ascontiguousarray(self.upper[first:last, last:].T), errors
                )
        theta = np.empty_like(columns)
        theta[self.order] = columns
        return np.ascontiguousarray(theta.T)


def column_rounder(constraint: Sparse) -> Callable[[Array, int], Array]:
    """Return a function that rounds one column (d_out,), given with its input's index, to the set's values."""
    values = constraint.rounder()
    if not isinstance(values, BoundGrid):
        return lambda z, _: z
    size, one = values.spec.group_size, replace(values.spec, group_size=1)
    groups = range(values.scales.shape[1])
    grids = [BoundGrid(one, values.scales[:, g, None], values.zeros[:, g, None]) for g in groups]
    return lambda z, j: grids[j // size].round(z[:, None])[:, 0]


def inverse_factor(problem: Problem, order: Order, *, damping: float) -> Array:
    """Return U, upper triangular, with (C + damping mean(C_jj) I)^-1 = U^T U and C in the given order.

    H = R R^T with R upper triangular, the Cholesky factor from the last row up, and U = R^-1: one factorization, and
    no product that squares the condition. C = 0 counts as the identity: no column then corrects another.
    Computed in float64, returned in W's dtype; cost O(d_in^3). Raises: ValueError for a C that is far from psd.
    """
    gram = problem.gram.astype(np.float64)[np.ix_(order, order)]
    ridge = damping * float(gram.diagonal().mean()) or 1.0
    gram[np.diag_indices_from(gram)] += ridge
    try:
        factor = np.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        raise ValueError(
            f"gram is not positive semidefinite even with {ridge:.3g} added to its diagonal: pass E[x x^T]"
        ) from None
    return _inverse_upper(factor).astype(problem.weight.dtype)


def _inverse_upper(matrix: Array) -> Array:
    """Return the inverse of an upper triangular matrix by halves: a quarter of a general inverse's work."""
    if len(matrix) <= BLOCK:
        return np.triu(np.linalg.inv(matrix))
    half = len(matrix) // 2
    inverse = np.zeros_like(matrix)
    inverse[:half, :half] = _inverse_upper(matrix[:half, :half])
    inverse[half:, half:] = _inverse_upper(matrix[half:, half:])
    inverse[:half, half:] = -(inverse[:half, :half] @ matrix[:half, half:] @ inverse[half:, half:])
    return inverse
