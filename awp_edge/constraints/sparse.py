"""Support x values: one exact projection for every combination."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..problem import Array
from .base import Mask, Shape, Support, Traits
from .supports import BlockSparse
from .values import BoundGrid, IntGrid, Reals, Values


@dataclass(frozen=True)
class Sparse:
    """Constrain to {Theta: supp(Theta) in F, nonzero entries in V}.

    With Q(z) the nearest value and gain(z) = z^2 - (z - Q(z))^2 >= 0, the cost of a support M is
    ||Z||^2 - sum_M gain: choosing the support with the largest total gain, rounding inside and zeroing outside is
    the exact projection (proofs/T01).

    Args:
        support: the family F.
        values: the set V; an `IntGrid` must be fitted (`bind`) before `project` and `contains`.
    """

    support: Support
    values: Values | IntGrid = Reals()

    @property
    def traits(self) -> Traits:
        """Return the laws the projection obeys."""
        real = isinstance(self.values, Reals)
        return Traits(
            cone=real, row_separable=not isinstance(self.support, BlockSparse), union_of_subspaces=real
        )

    def check(self, shape: Shape) -> None:
        """Raise ValueError where the support or the grid does not fit (d_out, d_in)."""
        self.support.check(shape)
        spec = self.values.spec if isinstance(self.values, BoundGrid) else self.values
        if isinstance(spec, IntGrid):
            spec.check(shape)

    def bind(self, weight: Array, gram: Array | None = None) -> Sparse:
        """Return the constraint with its grid fitted to a weight; itself where there is nothing to fit."""
        if not isinstance(self.values, IntGrid):
            return self
        return replace(self, values=self.values.fit(weight, gram))

    def rebind(self, weight: Array) -> Sparse:
        """Return the constraint with its bound grid fitted anew to a weight; itself for real values."""
        if not isinstance(self.values, BoundGrid):
            return self
        return replace(self, values=self.values.spec.fit(weight))

    def project(self, z: Array) -> Array:
        """Return the nearest point of the set; cost O(d_out d_in)."""
        self.check((z.shape[0], z.shape[1]))
        rounded = self.rounder().round(z)
        # x + 0 turns a kept -0.0 into 0.0, so that both backends agree in every bit.
        return np.where(self.support.select(gain(z, rounded)), rounded, z.dtype.type(0)) + z.dtype.type(0)

    def contains(self, theta: Array) -> bool:
        """Return whether Theta lies in the set exactly."""
        self.check((theta.shape[0], theta.shape[1]))
        nonzero = theta != 0
        on_grid = np.array_equal(self.rounder().round(theta), theta)
        # A nonzero pattern is allowed if selecting by it loses none of it.
        return bool(on_grid and not (nonzero & ~self.support.select(nonzero.astype(theta.dtype))).any())

    def restrict(self, theta: Array, mask: Mask) -> Array:
        """Return Theta rounded to V inside the mask and zero outside."""
        return np.where(mask, self.rounder().round(theta), theta.dtype.type(0)) + theta.dtype.type(0)

    def rounder(self) -> Values:
        """Return the values, which round; raise ValueError where the grid is unbound."""
        if isinstance(self.values, IntGrid):
            raise ValueError(
                "the integer grid has no scales yet: call bind(weight) (or grid.fit(weight)) first"
            )
        return self.values


def gain(z: Array, rounded: Array) -> Array:
    """Return z^2 - (z - Q(z))^2 >= 0: what keeping an entry saves against zeroing it.

    In the form Q(z) (2z - Q(z)) nothing cancels where z lies far outside the grid, and no compiler can fuse it.
    """
    return rounded * (z + z - rounded)
