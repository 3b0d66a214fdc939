"""Activation-aware singular value decomposition: the global optimum of low rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..backend import Backend
from ..constraints import LowRank
from ..problem import Array, Problem


def asvd(problem: Problem, constraint: LowRank, *, engine: Backend) -> tuple[Array, Array]:
    """Return factors (d_out, r), (r, d_in) whose product minimises f over all matrices of rank <= r.

    Source: LatentLLM (arXiv 2505.18413); weighted Eckart-Young, proofs/T09.
    """
    return engine.factors(problem, constraint)


def weighted_factors(problem: Problem, constraint: LowRank) -> tuple[Array, Array]:
    """Return U_r and U_r^T W, where C = S S^T and U_r holds the first r left singular vectors of W S.

    U_r U_r^T W S is the truncated SVD [W S]_r, so the error is 1/2 sum_{i > r} sigma_i(W S)^2, the smallest there
    is. This equals [W S]_r S^+ up to the null space of C, but inverts nothing: an ill-conditioned or singular C
    costs no accuracy.
    Computed in float64; cost O(d_in^3 + d_out d_in min(d_out, d_in)).
    """
    constraint.check(problem.shape)
    weight, dtype = problem.weight.astype(np.float64), problem.weight.dtype
    u, _, _ = np.linalg.svd(weight @ gram_root(problem.gram), full_matrices=False)
    left = u[:, : constraint.rank]
    return left.astype(dtype), (left.T @ weight).astype(dtype)


def junction(left: Array, right: Array) -> tuple[Array, Array, NDArray[np.intp]]:
    """Return (L J, J^-1 R, pivots): the same product L R, whose right factor holds an identity in the pivot columns.

    The r x r identity need not be stored: r (d_out + d_in - r) numbers and r indices are left of r (d_out + d_in).
    Pivots are chosen one by one, the column of R farthest from the span of those before; where R has a rank below r,
    the factors shrink to it. Computed in float64; cost O(r^2 d_in).

    Source: LatentLLM (arXiv 2505.18413), junction matrices; proofs/T09 d.
    """
    exact = right.astype(np.float64)
    rest, pivots = exact.copy(), list[int]()
    largest = float(np.max(np.sum(exact * exact, axis=0), initial=0.0))
    floor = (max(right.shape) * float(np.finfo(right.dtype).eps)) ** 2 * largest
    for _ in range(len(right)):
        squares = np.sum(rest * rest, axis=0)
        pivot = int(np.argmax(squares))
        if squares[pivot] <= floor:
            break
        axis = rest[:, pivot] / np.sqrt(squares[pivot])
        rest -= np.outer(axis, axis @ rest)
        rest[:, pivot] = 0
        pivots.append(pivot)
    block = exact[:, pivots]
    reduced = np.linalg.lstsq(block, exact, rcond=None)[0]
    reduced[:, pivots] = np.eye(len(pivots))
    joined = (left.astype(np.float64) @ block).astype(left.dtype)
    return joined, reduced.astype(right.dtype), np.asarray(pivots, dtype=np.intp)


def gram_root(gram: Array) -> Array:
    """Return S with C = S S^T, (d_in, d_in), float64; negative eigenvalues, which are rounding, count as zero."""
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    return vectors * np.sqrt(np.maximum(values, 0.0))
