"""Plain singular value decomposition of the weight."""

from __future__ import annotations

from ..backend import Backend
from ..constraints import LowRank
from ..problem import Array, Problem


def svd(problem: Problem, constraint: LowRank, *, engine: Backend) -> tuple[Array, Array]:
    """Return factors (d_out, r), (r, d_in) of the truncated SVD of W; C is ignored.

    Source: Eckart and Young (1936); what `asvd` is compared with. Cost O(d_out d_in min(d_out, d_in)).
    """
    return constraint.factors(problem.weight)
