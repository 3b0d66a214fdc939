"""Refit the weights on a support that is given: conjugate gradients, every row for itself."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..constraints import Mask
from ..problem import Array, Problem


class Operations(Protocol):
    """What the refit is written in."""

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b."""


def refit(
    problem: Problem, mask: Mask, start: Array, *, steps: int, engine: Operations
) -> tuple[Array, NDArray[np.float64]]:
    """Minimise f over the weights inside the mask from `start`; return Theta and f of every row, (d_out,).

    Conjugate gradients on C_SS, preconditioned by its diagonal, for all rows side by side: one product a step. f of a
    row never rises but for rounding, which in float32 takes over some dozens of steps on.

    Args:
        problem: W (d_out, d_in) and C.
        mask: where weights may be nonzero, (d_out, d_in).
        start: Theta(0), zero outside the mask.
        steps: one d_out x d_in x d_in product each.

    Source: Hestenes and Stiefel; for pruned layers, Meng et al., ALPS (NeurIPS 2024).
    """
    gram, zero = problem.gram, problem.weight.dtype.type(0)
    inverse = _reciprocal(gram.diagonal())
    theta, gradient = start, engine.product(problem.weight - start, gram)
    inside = np.where(mask, gradient, zero)
    direction = inside * inverse
    energy = _row_inner(inside, direction)
    for _ in range(steps):
        image = engine.product(direction, gram)
        alpha = _quotient(energy, _row_inner(direction, image)).astype(gram.dtype)[:, None]
        theta, gradient = theta + alpha * direction, gradient - alpha * image
        inside = np.where(mask, gradient, zero)
        before, energy = energy, _row_inner(inside, inside * inverse)
        direction = inside * inverse + _quotient(energy, before).astype(gram.dtype)[:, None] * direction
    return theta, 0.5 * _row_inner(problem.weight - theta, gradient)


def _reciprocal(diagonal: Array) -> Array:
    return np.divide(1, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)


def _row_inner(a: Array, b: Array) -> NDArray[np.float64]:
    return np.einsum("ij,ij->i", a, b, dtype=np.float64)


def _quotient(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
