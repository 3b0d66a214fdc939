"""Round to nearest."""

from __future__ import annotations

from ..backend import Backend
from ..constraints import Sparse
from ..problem import Array, Problem


def rtn(problem: Problem, constraint: Sparse, *, engine: Backend) -> Array:
    """Return the projection of W onto the grid fitted to W's own range (and onto the support, if not dense).

    Args:
        problem: W (d_out, d_in); C is ignored.
        constraint: support x `IntGrid`.
        engine: the backend that projects.
    """
    return engine.project(constraint.bind(problem.weight), problem.weight)
