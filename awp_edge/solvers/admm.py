"""Search for a support by splitting: ADMM in coordinates where its penalty needs no tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..constraints import Sparse, Support
from ..problem import Array, Problem

PRODUCTS = ("float32", "int8")
#: Rows of a d_in x d_in matrix that are rounded at a time: a temporary of that matrix is the size of W or more.
STRIP = 128
#: Largest codes of the factors of an int8 product: four products of what is left and right fit in 16 bits, where the
#: left one is shifted to be positive, as x86 wants it.
LEFT_LIMIT, RIGHT_LIMIT = 31, 127
#: Products of such codes that float32 adds up exactly.
EXACT_TERMS = 4096


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
        products: "float32" multiplies in the weights' dtype. "int8" rounds both factors of every product
            (`RoundedMatrix`): quicker, the same bits on every machine, and another support where it hardly matters:
            0.01% of the error in the end, on SmolLM2-135M (bench/search.py has both).

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
        """Return the inverse of a symmetric positive definite matrix, exactly symmetric, in its dtype.

        overwrite: the matrix's memory may be used.
        """


class Operations(Inverter, Protocol):
    """What the iteration is written in."""

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b."""

    def project(self, constraint: Sparse, z: Array) -> Array:
        """Return the nearest point of the set."""


@dataclass(frozen=True)
class RoundedMatrix:
    """Hold a square matrix M as codes * scale + diag(diagonal): integers off the diagonal, which stays exact.

    codes: (d, d) int8, at most 127 in magnitude, column j in steps of scale_j.  scale, diagonal: (d,), float32 or
    float64.
    """

    codes: NDArray[np.int8]
    scale: Array
    diagonal: Array

    def times(self, x: Array, *, engine: Operations) -> Array:
        """Return x M for (n, d) x of the scale's dtype, each row rounded to steps of a 31st of its largest entry."""
        left, unit = rounded_rows(x)
        return self.sums(left, engine=engine) * (unit * self.scale) + x * self.diagonal

    def sums(self, left: Array, *, engine: Operations) -> Array:
        """Return left @ codes: sums of integers, exact before they are rounded to left's dtype once."""
        total = np.zeros((len(left), self.codes.shape[1]))
        for first in range(0, len(self.codes), EXACT_TERMS):
            part = slice(first, first + EXACT_TERMS)
            total += engine.product(left[:, part], self.codes[part].astype(left.dtype))
        return total.astype(left.dtype)


def rounded_rows(x: Array) -> tuple[Array, Array]:
    """Return integers of at most 31 in x's dtype and what one of them stands for in every row, (n, 1)."""
    limit = x.dtype.type(LEFT_LIMIT)
    top = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        factor = limit / top
    factor[np.isinf(factor)] = 0  # nothing, or nearly nothing, in the row
    return np.rint(x * factor), top / limit


def admm(problem: Problem, support: Support, *, method: Admm, engine: Operations) -> Array:
    """Return P(V) after the last step, (d_out, d_in): the weight on the support that was found, not refitted."""
    weight, matrix = problem.weight, proximal_map(problem.gram, method=method, engine=engine)
    v, constraint = weight, Sparse(support)
    for relaxation in np.linspace(*method.relaxation, method.steps - 1):
        z = engine.project(constraint, v)
        argument = weight + v - z - z
        if isinstance(matrix, RoundedMatrix):
            moved = matrix.times(argument, engine=engine)
        else:
            moved = engine.product(argument, matrix)
        v = v + float(relaxation) * (weight - moved - z)
    return engine.project(constraint, v)


def proximal_map(gram: Array, *, method: Admm, engine: Inverter) -> Array | RoundedMatrix:
    """Return rho (C + rho I)^-1, symmetric, inverted in float64: in C's dtype, or rounded for int8 products."""
    ridged = gram.astype(np.float64)
    ridged += 0.0  # -0 becomes 0, which it stays in what is inverted
    ridged.flat[:: len(gram) + 1] += method.penalty
    inverse = engine.inverse(ridged, overwrite=True)
    del ridged  # a second matrix where it was not overwritten, in float64 twice the size of C
    inverse *= method.penalty
    if method.products == "int8":
        return _rounded(inverse, gram.dtype)
    return inverse.astype(gram.dtype, order="C")


def _rounded(matrix: Array, dtype: DTypeLike) -> RoundedMatrix:
    """Round (d, d) float64, symmetric, which is overwritten: rows of a strip are its columns."""
    d = len(matrix)
    codes, scale, diagonal = np.empty((d, d), dtype=np.int8), np.empty(d, dtype), np.empty(d, dtype)
    for rows in (slice(first, first + STRIP) for first in range(0, d, STRIP)):
        strip = matrix[rows]
        on_diagonal = strip.reshape(-1)[rows.start :: d + 1]
        diagonal[rows] = on_diagonal
        on_diagonal[:] = 0
        top = np.maximum(strip.max(axis=1), -strip.min(axis=1))
        scale[rows] = top / RIGHT_LIMIT
        strip *= (RIGHT_LIMIT / np.where(top > 0, top, 1))[:, None]
        codes[:, rows] = np.rint(strip, out=strip).T
    return RoundedMatrix(codes, scale, diagonal)


def scaled(problem: Problem, scale: Array) -> Problem:
    """Return the same problem in the variables theta_j scale_j: W diag(s), diag(1/s) C diag(1/s)."""
    return problem.derived(weight=problem.weight * scale, gram=problem.gram / np.outer(scale, scale))
