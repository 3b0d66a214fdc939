"""What a constraint is: the protocols and the traits that its laws follow from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..problem import Array

Mask = NDArray[np.bool_]
Shape = tuple[int, int]
#: (name, counts, two integers): all that the native core needs to know of a support; one count stands for every row.
Descriptor = tuple[str, tuple[int, ...], int, int]


@dataclass(frozen=True)
class Traits:
    """State which laws a constraint's projection obeys; the tests check each of them.

    cone: P(tZ) = tP(Z) for t > 0.  row_separable: P acts on each row alone.
    union_of_subspaces: <Z - PZ, PZ> = 0.
    """

    cone: bool
    row_separable: bool
    union_of_subspaces: bool


class Support(Protocol):
    """A family F of masks; `select` finds the one with the largest total gain."""

    def check(self, shape: Shape) -> None:
        """Raise ValueError where the family is empty or undefined for this (d_out, d_in)."""

    def select(self, gain: Array) -> Mask:
        """Return the mask in F with the largest sum of gain (>= 0); ties: the lowest input index wins."""

    def at(self, fraction: float, shape: Shape) -> Support:
        """Return the support on the way from dense (fraction 0) to this one (fraction 1)."""

    def descriptor(self) -> Descriptor:
        """Return the native core's name and parameters of this support."""


class Constraint(Protocol):
    """A closed set S with an exact projection."""

    @property
    def traits(self) -> Traits:
        """Return the laws the projection obeys."""

    def check(self, shape: Shape) -> None:
        """Raise ValueError where S is undefined for this (d_out, d_in)."""

    def project(self, z: Array) -> Array:
        """Return a nearest point of S to Z in the Frobenius norm; Z is not modified."""

    def contains(self, theta: Array) -> bool:
        """Return whether Theta lies in S."""


def top_k(scores: Array, k: int) -> Mask:
    """Return the mask of the k largest scores along the last axis; ties: the lowest index wins; O(d)."""
    d = scores.shape[-1]
    if k <= 0 or k >= d:
        return np.full(scores.shape, k >= d, dtype=np.bool_)
    threshold = np.partition(scores, d - k, axis=-1)[..., d - k, None]
    mask = scores > threshold
    ties = scores == threshold
    missing = k - np.count_nonzero(mask, axis=-1)[..., None]
    mask |= ties & (np.cumsum(ties, axis=-1) <= missing)
    return mask
