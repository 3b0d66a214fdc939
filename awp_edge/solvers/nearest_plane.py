"""Round one column after another, each on top of what the columns before it did wrong.

With C[o, o] = U U^T, U upper triangular and o the order, f = 1/2 sum_i (U_ii e_i + sum_{j<i} U_ji e_j)^2 for the
errors e = t - q: the columns still to come absorb the errors of those that are done, at the price of U_ii^2 each.

Source: GPTQ (arXiv 2210.17323), which is Babai's nearest plane algorithm (arXiv 2507.18553).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..constraints import Mask
from ..constraints.values import BoundGrid
from ..problem import Array, Problem

Order = NDArray[np.intp]


def factor(gram: Array, order: Order) -> Array:
    """Return upper triangular U with C[o, o] = U U^T, in C's dtype but computed in float64; cost k^3 / 3.

    Args:
        gram: C, (d_in, d_in).
        order: o, k different columns.

    Raises:
        numpy.linalg.LinAlgError: C is not positive definite.
    """
    backwards = order[::-1]
    lower = np.linalg.cholesky(gram[np.ix_(backwards, backwards)].astype(np.float64))
    return np.ascontiguousarray(lower[::-1, ::-1]).astype(gram.dtype)


def nearest_plane(target: Array, upper: Array, order: Order, *, grid: BoundGrid) -> Array:
    """Return grid points near the target in the norm of C: (d_out, d_in), in the target's dtype.

    Args:
        target: (d_out, d_in).
        upper: `factor(gram, order)`.
        order: the columns in the order of rounding; the others become zero.
        grid: fitted to a matrix of the target's shape.

    Cost: d_out d_in^2.
    """
    theta, pull = np.zeros_like(target), np.zeros((target.shape[0], len(order)), dtype=target.dtype)
    for i, j in enumerate(order):
        theta[:, j] = grid.round_column(target[:, j] + pull[:, i] / upper[i, i], int(j))
        pull[:, i + 1 :] += np.outer(target[:, j] - theta[:, j], upper[i, i + 1 :])
    return theta


def masked_nearest_plane(
    problem: Problem, theta: Array, mask: Mask, *, order: Order, grid: BoundGrid
) -> Array:
    """Refit every row on its support, then round it there as `nearest_plane` does; zero elsewhere.

    Columns outside the support come first in the order, so to speak: their whole error goes into the refit. Each row
    has a factor of its own.

    Args:
        problem: W and C, positive definite.
        theta: any matrix that is zero outside the mask; the refit starts from it, which saves digits.
        mask: the support, (d_out, d_in).
        order: all columns in the order of rounding.
        grid: fitted to a matrix of W's shape.

    Cost: d_out k^3 / 3 for k columns a row.
    """
    gradient = problem.gradient(theta)
    rounded = np.zeros_like(theta)
    for row in range(theta.shape[0]):
        kept = order[mask[row, order]]
        upper = factor(problem.gram, kept)
        target = theta[row : row + 1].copy()
        target[0, kept] -= np.linalg.solve(upper.T, np.linalg.solve(upper, gradient[row, kept]))
        rounded[row] = nearest_plane(target, upper, kept, grid=grid.row(row))[0]
    return rounded
