"""Wanda: magnitude times activation norm."""

from __future__ import annotations

from ..backend import Backend
from ..constraints import Mask, Sparse
from ..problem import Array, Problem


def wanda(problem: Problem, constraint: Sparse, *, engine: Backend) -> Array:
    """Return W on the support with the largest sum of W_ij^2 C_jj, rounded to the grid where there is one.

    Args:
        problem: W (d_out, d_in) and C, of which only the diagonal is read.
        constraint: support x values; an unfitted grid is fitted to the kept weights.
        engine: the backend that selects and rounds.

    Source: Sun et al., A simple and effective pruning approach for large language models (ICLR 2024): score
    |W_ij| ||x_j||, compared within each output row.
    """
    mask = wanda_mask(problem, constraint, engine=engine)
    return constraint.bind(problem.weight * mask).restrict(problem.weight, mask)


def wanda_mask(problem: Problem, constraint: Sparse, *, engine: Backend) -> Mask:
    """Return Wanda's support, (d_out, d_in)."""
    score = problem.weight * problem.weight * problem.gram.diagonal()
    return engine.select(constraint.support, score)
