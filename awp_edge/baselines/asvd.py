"""Activation-aware singular value decomposition: the global optimum of low rank."""

from __future__ import annotations

import numpy as np

from ..backend import Backend
from ..constraints import LowRank
from ..problem import Array, Problem


def asvd(problem: Problem, constraint: LowRank, *, engine: Backend) -> tuple[Array, Array]:
    """Return factors (d_out, r), (r, d_in) whose product minimises f over all matrices of rank <= r.

    Source: LatentLLM (arXiv 2505.18413); weighted Eckart-Young, proofs/T09.
    """
    return engine.factors(problem, constraint)


def weighted_factors(problem: Problem, constraint: LowRank) -> tuple[Array, Array]:
    """Return U_r S_r and V_r^T S^+ with C = S S^T and W S = U S_r V^T; a singular C is allowed.

    The rows of [W S]_r lie in the range of S^T, so multiplying by the pseudo-inverse S^+ loses nothing and the
    error is 1/2 sum_{i > r} sigma_i(W S)^2, the smallest there is. Computed in float64; cost O(d_in^3 + d_out d_in^2).
    """
    constraint.check(problem.shape)
    dtype = problem.weight.dtype
    root, inverse = gram_root(problem.gram)
    u, s, vt = np.linalg.svd(problem.weight.astype(np.float64) @ root, full_matrices=False)
    r = constraint.rank
    return (u[:, :r] * s[:r]).astype(dtype), (vt[:r] @ inverse).astype(dtype)


def gram_root(gram: Array) -> tuple[Array, Array]:
    """Return S = C^(1/2) and its pseudo-inverse, float64; eigenvalues below d eps lambda_max count as 0."""
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    floor = gram.shape[0] * float(np.finfo(gram.dtype).eps) * max(float(values[-1]), 0.0)
    roots = np.sqrt(np.where(values > floor, values, 0.0))
    inverses = np.divide(1.0, roots, out=np.zeros_like(roots), where=roots > 0)
    return (vectors * roots) @ vectors.T, (vectors * inverses) @ vectors.T
