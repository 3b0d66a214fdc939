"""Magnitude pruning."""

from __future__ import annotations

from ..backend import Backend
from ..constraints import Sparse
from ..problem import Array, Problem


def magnitude(problem: Problem, constraint: Sparse, *, engine: Backend) -> Array:
    """Return the projection of W: the largest weights kept, rounded to the grid where there is one.

    Args:
        problem: W (d_out, d_in); C is ignored.
        constraint: support x values; an unfitted grid is fitted to the kept weights.
        engine: the backend that selects and rounds.

    Source: AWP (arXiv 2506.10205), equation 1.
    """
    mask = engine.select(constraint.support, problem.weight * problem.weight)
    return constraint.bind(problem.weight * mask).restrict(problem.weight, mask)
