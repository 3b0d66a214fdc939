"""Matrices of bounded rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..problem import Array
from .base import Shape, Traits


@dataclass(frozen=True)
class LowRank:
    """Constrain to {Theta: rank(Theta) <= r}.

    Source: Eckart-Young; the weighted optimum is `awp_edge.baselines.asvd`.
    """

    rank: int

    @property
    def traits(self) -> Traits:
        """Return the laws the projection obeys."""
        return Traits(cone=True, row_separable=False, union_of_subspaces=True)

    def check(self, shape: Shape) -> None:
        """Raise ValueError unless 0 <= rank <= min(d_out, d_in)."""
        if not 0 <= self.rank <= min(shape):
            raise ValueError(
                f"rank must lie in 0..{min(shape)} for a {shape[0]}x{shape[1]} matrix, got {self.rank}"
            )

    def project(self, z: Array) -> Array:
        """Return the truncated singular value decomposition; cost O(d_out d_in min(d_out, d_in))."""
        left, right = self.factors(z)
        return left @ right

    def factors(self, z: Array) -> tuple[Array, Array]:
        """Return (U_r S_r, V_r^T), shapes (d_out, r) and (r, d_in)."""
        self.check((z.shape[0], z.shape[1]))
        u, s, vt = np.linalg.svd(z, full_matrices=False)
        return u[:, : self.rank] * s[: self.rank], vt[: self.rank]

    def contains(self, theta: Array) -> bool:
        """Return whether the numerical rank (tolerance max(shape) eps sigma_1) is at most r."""
        self.check((theta.shape[0], theta.shape[1]))
        return int(np.linalg.matrix_rank(theta)) <= self.rank
