"""The primitives every method is written in, by two twins: NumPy (the reference) and the native core."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from . import native
from .constraints import BoundGrid, LowRank, Mask, Reals, Sparse, Support
from .constraints.values import Codes
from .problem import Array, Problem
from .solvers import descent, nearest_plane, ranges
from .solvers.admm import Admm, admm, proximal_map
from .solvers.base import Run, Stop, minimise
from .solvers.nearest_plane import Order
from .solvers.pgd import Pgd, iterate
from .solvers.refit import refit
from .solvers.swap import Columns, Swaps, swap

log = logging.getLogger(__name__)

#: Supports with a native twin, by the name their descriptor gives.
NATIVE_SUPPORTS = frozenset({"dense", "row", "nm", "balanced", "block"})


class Backend(Protocol):
    """Select, round, project and iterate; the twins agree bit for bit in all but the products."""

    name: ClassVar[str]

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b."""

    def select(self, support: Support, gain: Array) -> Mask:
        """Return the mask with the largest total gain."""

    def encode(self, grid: BoundGrid, z: Array) -> Codes:
        """Return the codes of the nearest grid points."""

    def project(self, constraint: Sparse, z: Array) -> Array:
        """Return the nearest point of a support x values set."""

    def factors(self, problem: Problem, constraint: LowRank) -> tuple[Array, Array]:
        """Return the factors of the activation-aware rank-r optimum."""

    def pgd(self, problem: Problem, constraint: Sparse, start: Array, *, method: Pgd, stop: Stop) -> Run:
        """Run projected gradient descent from a start inside the set (or W, with a ramp)."""

    def inverse(self, matrix: Array, *, overwrite: bool = False) -> Array:
        """Return the inverse of a symmetric positive definite matrix, exactly symmetric, in its dtype.

        overwrite: the matrix's memory may be used.
        """

    def admm(self, problem: Problem, support: Support, *, method: Admm) -> Array:
        """Return the sparse end of a splitting run."""

    def refit(
        self, problem: Problem, mask: Mask, start: Array, *, steps: int
    ) -> tuple[Array, NDArray[np.float64]]:
        """Minimise f inside the mask; return Theta and f of every row."""

    def swap(
        self,
        problem: Problem,
        mask: Mask,
        theta: Array,
        *,
        labels: Columns,
        method: Swaps,
        least: NDArray[np.float64],
    ) -> Array:
        """Return Theta after exact 1-swaps among each row's likeliest candidates."""

    def cheapest_range(self, weight: Array, importance: Array, found: ranges.Candidates) -> NDArray[np.int32]:
        """Return each group's candidate with the least weighted rounding error."""

    def factor(self, gram: Array, order: Order) -> Array:
        """Return upper triangular U with C[o, o] = U U^T."""

    def nearest_plane(self, target: Array, upper: Array, order: Order, *, grid: BoundGrid) -> Array:
        """Return the target rounded column by column."""

    def masked_nearest_plane(
        self, problem: Problem, theta: Array, mask: Mask, *, order: Order, grid: BoundGrid
    ) -> Array:
        """Return every row refitted on its mask and rounded there."""

    def descend(
        self, problem: Problem, theta: Array, grid: BoundGrid, *, mask: Mask | None = None
    ) -> tuple[Array, BoundGrid]:
        """Lower f by one code and one scale at a time."""


@dataclass(frozen=True)
class NumpyBackend:
    """The reference: every primitive as its class defines it."""

    name: ClassVar[str] = "numpy"

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b."""
        return a @ b

    def select(self, support: Support, gain: Array) -> Mask:
        """Return the mask with the largest total gain."""
        support.check((gain.shape[0], gain.shape[1]))
        return support.select(gain)

    def encode(self, grid: BoundGrid, z: Array) -> Codes:
        """Return the codes of the nearest grid points."""
        return grid.encode(z)

    def project(self, constraint: Sparse, z: Array) -> Array:
        """Return the nearest point of a support x values set."""
        return constraint.project(z)

    def factors(self, problem: Problem, constraint: LowRank) -> tuple[Array, Array]:
        """Return the factors of the activation-aware rank-r optimum."""
        from .baselines.asvd import weighted_factors

        return weighted_factors(problem, constraint)

    def pgd(self, problem: Problem, constraint: Sparse, start: Array, *, method: Pgd, stop: Stop) -> Run:
        """Run projected gradient descent."""
        return minimise(iterate(problem, constraint, start, method=method, engine=self), stop)

    def inverse(self, matrix: Array, *, overwrite: bool = False) -> Array:
        """Return the inverse of a symmetric positive definite matrix, exactly symmetric, in its dtype."""
        found = np.linalg.inv(matrix)
        return (found + found.T) / 2

    def admm(self, problem: Problem, support: Support, *, method: Admm) -> Array:
        """Return the sparse end of a splitting run."""
        return admm(problem, support, method=method, engine=self)

    def refit(
        self, problem: Problem, mask: Mask, start: Array, *, steps: int
    ) -> tuple[Array, NDArray[np.float64]]:
        """Minimise f inside the mask by conjugate gradients."""
        return refit(problem, mask, start, steps=steps, engine=self)

    def swap(
        self,
        problem: Problem,
        mask: Mask,
        theta: Array,
        *,
        labels: Columns,
        method: Swaps,
        least: NDArray[np.float64],
    ) -> Array:
        """Return Theta after exact 1-swaps among each row's likeliest candidates."""
        return swap(problem, mask, theta, labels=labels, method=method, least=least, engine=self)

    def cheapest_range(self, weight: Array, importance: Array, found: ranges.Candidates) -> NDArray[np.int32]:
        """Return each group's candidate with the least weighted rounding error."""
        return ranges.cheapest_range(weight, importance, found)

    def factor(self, gram: Array, order: Order) -> Array:
        """Return upper triangular U with C[o, o] = U U^T."""
        return nearest_plane.factor(gram, order)

    def nearest_plane(self, target: Array, upper: Array, order: Order, *, grid: BoundGrid) -> Array:
        """Return the target rounded column by column."""
        return nearest_plane.nearest_plane(target, upper, order, grid=grid)

    def masked_nearest_plane(
        self, problem: Problem, theta: Array, mask: Mask, *, order: Order, grid: BoundGrid
    ) -> Array:
        """Return every row refitted on its mask and rounded there."""
        return nearest_plane.masked_nearest_plane(problem, theta, mask, order=order, grid=grid)

    def descend(
        self, problem: Problem, theta: Array, grid: BoundGrid, *, mask: Mask | None = None
    ) -> tuple[Array, BoundGrid]:
        """Lower f by one code and one scale at a time."""
        return descent.descend(problem, theta, grid, mask=mask)


@dataclass(frozen=True)
class NativeBackend:
    """The multithreaded C++ core.

    Args:
        threads: number of threads, all usable cores where None; the results do not depend on it.
    """

    threads: int | None = None
    name: ClassVar[str] = "native"

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b."""
        return native.product(a, b, threads=self.threads)

    def select(self, support: Support, gain: Array) -> Mask:
        """Return the mask with the largest total gain."""
        support.check((gain.shape[0], gain.shape[1]))
        return native.select(gain, support.descriptor(), threads=self.threads)

    def encode(self, grid: BoundGrid, z: Array) -> Codes:
        """Return the codes of the nearest grid points."""
        return native.encode(z, grid, threads=self.threads)

    def project(self, constraint: Sparse, z: Array) -> Array:
        """Return the nearest point of a support x values set."""
        constraint.check((z.shape[0], z.shape[1]))
        return native.project(z, constraint, threads=self.threads)

    def factors(self, problem: Problem, constraint: LowRank) -> tuple[Array, Array]:
        """Return the factors of the activation-aware rank-r optimum."""
        constraint.check(problem.shape)
        return native.low_rank(problem.weight, problem.gram, constraint.rank)

    def pgd(self, problem: Problem, constraint: Sparse, start: Array, *, method: Pgd, stop: Stop) -> Run:
        """Run projected gradient descent: fused in the core, or step by step where the grid is refitted or mixed."""
        if method.refit or native.mixed(constraint, problem.weight):
            return minimise(iterate(problem, constraint, start, method=method, engine=self), stop)
        return native.pgd(problem, constraint, start, method=method, stop=stop, threads=self.threads)

    def inverse(self, matrix: Array, *, overwrite: bool = False) -> Array:
        """Return the inverse of a symmetric positive definite matrix, exactly symmetric, in its dtype."""
        return native.inverse(matrix, overwrite=overwrite, threads=self.threads)

    def admm(self, problem: Problem, support: Support, *, method: Admm) -> Array:
        """Return the sparse end of a splitting run."""
        matrix = proximal_map(problem.gram, method=method, engine=self)
        return native.admm(problem, support, matrix, method=method, threads=self.threads)

    def refit(
        self, problem: Problem, mask: Mask, start: Array, *, steps: int
    ) -> tuple[Array, NDArray[np.float64]]:
        """Minimise f inside the mask by conjugate gradients."""
        return native.refit(problem, mask, start, steps=steps, threads=self.threads)

    def swap(
        self,
        problem: Problem,
        mask: Mask,
        theta: Array,
        *,
        labels: Columns,
        method: Swaps,
        least: NDArray[np.float64],
    ) -> Array:
        """Return Theta after exact 1-swaps among each row's likeliest candidates."""
        return native.swap(
            problem, mask, theta, labels=labels, method=method, least=least, threads=self.threads
        )

    def cheapest_range(self, weight: Array, importance: Array, found: ranges.Candidates) -> NDArray[np.int32]:
        """Return each group's candidate with the least weighted rounding error."""
        return native.cheapest_range(weight, importance, found, threads=self.threads)

    def factor(self, gram: Array, order: Order) -> Array:
        """Return upper triangular U with C[o, o] = U U^T."""
        return native.factor(gram, order, threads=self.threads)

    def nearest_plane(self, target: Array, upper: Array, order: Order, *, grid: BoundGrid) -> Array:
        """Return the target rounded column by column."""
        return native.nearest_plane(target, upper, order, grid=grid, threads=self.threads)

    def masked_nearest_plane(
        self, problem: Problem, theta: Array, mask: Mask, *, order: Order, grid: BoundGrid
    ) -> Array:
        """Return every row refitted on its mask and rounded there."""
        return native.masked_nearest_plane(problem, theta, mask, order=order, grid=grid, threads=self.threads)

    def descend(
        self, problem: Problem, theta: Array, grid: BoundGrid, *, mask: Mask | None = None
    ) -> tuple[Array, BoundGrid]:
        """Lower f by one code and one scale at a time."""
        return native.descend(problem, theta, grid, mask=mask, threads=self.threads)


def resolve(name: str, *, threads: int | None = None, constraint: Sparse | LowRank | None = None) -> Backend:
    """Return the backend of that name; "auto" is native where it is built and knows the constraint.

    AWP_BACKEND=numpy|native overrides "auto". Low rank is NumPy's under "auto": LAPACK's SVD is faster.

    Raises:
        ValueError: an unknown name, or "native" where it was not built or has no twin of the constraint.
    """
    name = wanted(name)
    if name == "auto":
        name = _automatic(constraint)
    if name == "numpy":
        return NumpyBackend()
    if name != "native":
        raise ValueError(f"backend must be auto, numpy or native, got {name!r}")
    if not native.available():
        raise ValueError(
            "the native core was not built: install a C++ compiler and reinstall, or use backend='numpy'"
        )
    if not _has_twin(constraint):
        raise ValueError(f"the native core has no twin of {constraint!r}: use backend='numpy'")
    return NativeBackend(threads)


def wanted(name: str) -> str:
    """Return the name, or for "auto" what AWP_BACKEND says instead."""
    return (os.environ.get("AWP_BACKEND", "") or name) if name == "auto" else name


def _automatic(constraint: Sparse | LowRank | None) -> str:
    if isinstance(constraint, LowRank) or not _has_twin(constraint):
        return "numpy"
    return "native" if native.available() else "numpy"


def _has_twin(constraint: Sparse | LowRank | None) -> bool:
    if not isinstance(constraint, Sparse):
        return True
    described = getattr(constraint.support, "descriptor", None)
    known = described is not None and described()[0] in NATIVE_SUPPORTS
    return known and (isinstance(constraint.values, Reals | BoundGrid) or hasattr(constraint.values, "fit"))
