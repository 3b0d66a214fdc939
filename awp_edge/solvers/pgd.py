"""Projected gradient descent, which for a sparse set is iterative hard thresholding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..constraints import Mask, Sparse, Support
from ..constraints.values import Reals
from ..problem import Array, Problem, half_inner, ratio
from .base import State

PRODUCTS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Pgd:
    """Iterate Z = Theta + eta (W - Theta) C, Theta = Proj_S(Z).

    Args:
        step: eta; None takes the paper's 2/||C||_F, or 1.5/||C||_F on an integer grid.
        ramp: number of first steps over which the support shrinks linearly from dense to its own count.
        products: "float32" multiplies in the weights' dtype; "bfloat16" lets the native core round the operands
            of float32 products to bfloat16, with float32 accumulation, until the last quarter of the steps (the
            reference ignores it).
        refit: fit the grid anew to every Z, over the weights that stay. On a frozen grid every point within half a
            step of W is a fixed point once eta <= 1/||C||_inf, so descent from rounding to nearest hardly moves.

    Source: AWP (arXiv 2506.10205), Algorithm 1.
    """

    step: float | None = None
    ramp: int = 0
    products: str = "float32"
    refit: bool = False

    def __post_init__(self) -> None:
        if self.step is not None and not self.step > 0:
            raise ValueError(f"the step must be positive, got {self.step}")
        if self.ramp < 0:
            raise ValueError(f"the ramp must not be negative, got {self.ramp}")
        if self.products not in PRODUCTS:
            raise ValueError(f"products must be one of {', '.join(PRODUCTS)}, got {self.products!r}")


def pgd(step: float | None = None, *, ramp: int = 0, products: str = "float32", refit: bool = False) -> Pgd:
    """Return Algorithm 1 of AWP as a method for `solve`; see `Pgd` for the arguments."""
    return Pgd(step, ramp, products, refit)


class Operations(Protocol):
    """What an iteration is written in; every backend offers it."""

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b."""

    def select(self, support: Support, gain: Array) -> Mask:
        """Return the mask with the largest total gain."""

    def project(self, constraint: Sparse, z: Array) -> Array:
        """Return the nearest point of the set."""


def step_size(problem: Problem, constraint: Sparse, *, method: Pgd) -> float:
    """Return eta: the method's own, else 2/||C||_F (reals) or 1.5/||C||_F (grid); 0 for C = 0."""
    if method.step is not None:
        return method.step
    norm = float(np.linalg.norm(problem.gram))
    return ratio(2.0 if isinstance(constraint.values, Reals) else 1.5, norm) if norm > 0 else 0.0


def iterate(
    problem: Problem, constraint: Sparse, start: Array, *, method: Pgd, engine: Operations
) -> Iterator[State]:
    """Yield the iterates without end, the start first; one d_out x d_in x d_in product each."""
    eta = problem.weight.dtype.type(step_size(problem, constraint, method=method))
    norm = float(np.linalg.norm(problem.weight))
    theta, settled, t = start, False, 0
    while True:
        residual = problem.weight - theta
        descent = engine.product(residual, problem.gram)
        yield State(
            theta,
            half_inner(residual, descent),
            ratio(float(np.linalg.norm(descent)), norm),
            constraint,
            feasible=t >= method.ramp,
            settled=settled and t > method.ramp,
        )
        t += 1
        z = theta + eta * descent
        relaxed = ramped(constraint, problem, step=t, ramp=method.ramp)
        if method.refit:
            try:
                relaxed = relaxed.rebind(z * engine.select(relaxed.support, z * z))
            except ValueError:  # the step has diverged past what scales can hold
                yield State(theta, np.inf, np.inf, constraint, feasible=False)
                return
            constraint = replace(constraint, values=relaxed.values)
        following = engine.project(relaxed, z)
        theta, settled = following, np.array_equal(following, theta)


def ramped(constraint: Sparse, problem: Problem, *, step: int, ramp: int) -> Sparse:
    """Return the constraint of step t: its support relaxed to the fraction t / ramp."""
    if step >= ramp:
        return constraint
    return replace(constraint, support=constraint.support.at(step / ramp, problem.shape))
