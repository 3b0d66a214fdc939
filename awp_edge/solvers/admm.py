"""Search for a support by splitting: ADMM in coordinates where its penalty needs no tuning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..constraints import Sparse, Support
from ..problem import Array, Problem

PRODUCTS = ("float32", "bfloat16")
#: Rows of a d_in x d_in matrix that are made symmetric at a time: a temporary of that matrix is the size of W or more.
STRIP = 128


@dataclass(frozen=True)
class Admm:
    """Iterate V <- V + t (prox(2 P(V) - V) - P(V)) from V = W; P(V) after the last step is the sparse weight.

    P is the projection onto the support and prox(Y) = W - (W - Y) rho (C + rho I)^-1 minimises
    f(X) + rho/2 ||X - Y||^2: ADMM with penalty rho in the one variable V = X + U (Douglas-Rachford). At a fixed point
    V holds theta inside the support and (W - Theta) C / rho outside, so with rho = 1 and inputs of unit conditional
    variance v no weight inside is cheaper to drop than one outside is worth. Other penalties end higher, by 2 to 6% at
    0.8 and 1.25, and so does a support that shrinks to its count over the first steps. Long moves first and short ones
    last end 0.2 to 0.5% lower than t = 1 throughout, in as many steps (a first t of 2 to 2.4 and a last of 0.05 to 0.4
    differ little; in four steps and fewer t = 1 is better). All this was measured on SmolLM2-135M.

    Args:
        steps: selections made; one product less.
        penalty: rho, in coordinates where every input has unit conditional variance.
        relaxation: t of the first and of the last move, in between by equal parts. Constant t converge for convex f and
            sets where 0 < t < 2.
        products: as in `Pgd`; bfloat16 may move the support, not what a refit makes of it.

    Source: ADMM for pruning, Boza, Fast and effective weight update for pruned large language models (TMLR 2024), and
    Meng et al., ALPS (NeurIPS 2024). The scaling, and with it the fixed penalty, is this project's.
    """

    steps: int = 20
    penalty: float = 1.0
    relaxation: tuple[float, float] = (2.0, 0.2)
    products: str = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.penalty > 0:
            raise ValueError(f"steps must be at least 1 and the penalty positive, got {self}")
        if not (0 < self.relaxation[1] <= 2 and 0 < self.relaxation[0] <= 2):
            raise ValueError(f"both relaxations must be above 0 and at most 2, got {self.relaxation}")
        if self.products not in PRODUCTS:
            raise ValueError(f"products must be one of {', '.join(PRODUCTS)}, got {self.products!r}")


class Inverter(Protocol):
    """What inverts."""

    def inverse(self, matrix: Array, *, overwrite: bool = False) -> Array:
        """Return the inverse of a symmetric positive definite matrix, in its dtype, which may be overwritten."""


class Operations(Inverter, Protocol):
    """What the iteration is written in."""

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b."""

    def project(self, constraint: Sparse, z: Array) -> Array:
        """Return the nearest point of the set."""


def admm(problem: Problem, support: Support, *, method: Admm, engine: Operations) -> Array:
    """Return P(V) after the last step, (d_out, d_in): the weight on the support that was found, not refitted."""
    inverse, weight = proximal_matrix(problem.gram, method.penalty, engine=engine), problem.weight
    v, constraint = weight, Sparse(support)
    for relaxation in np.linspace(*method.relaxation, method.steps - 1):
        z = engine.project(constraint, v)
        v = v + float(relaxation) * (weight - engine.product(weight + v - z - z, inverse) - z)
    return engine.project(constraint, v)


def proximal_matrix(gram: Array, penalty: float, *, engine: Inverter) -> Array:
    """Return rho (C + rho I)^-1, symmetric, inverted in float64."""
    ridged = gram.astype(np.float64)
    ridged += 0.0  # -0 becomes 0, which it stays in what is inverted
    ridged.flat[:: len(gram) + 1] += penalty
    inverse = engine.inverse(ridged, overwrite=True)
    del ridged  # a second matrix where it was not overwritten, in float64 twice the size of C
    inverse *= penalty
    symmetric = np.empty_like(gram, order="C")
    for first in range(0, len(gram), STRIP):
        rows = slice(first, first + STRIP)
        symmetric[rows] = (inverse[rows] + inverse[:, rows].T) / 2
    return symmetric


def scaled(problem: Problem, scale: Array) -> Problem:
    """Return the same problem in the variables theta_j scale_j: W diag(s), diag(1/s) C diag(1/s)."""
    return replace(problem, weight=problem.weight * scale, gram=problem.gram / np.outer(scale, scale))
