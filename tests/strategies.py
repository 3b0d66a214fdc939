"""Hypothesis strategies for layers and constraints, the hard cases included.

A matrix is named by a kind and a seed, so that a failing example can be rebuilt from the printed note:
`make_weight("ties", (3, 8), "float32", seed=7)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import numpy as np
from hypothesis import note
from numpy.typing import NDArray

from awp_edge import (
    NM,
    BalancedBlock,
    BlockSparse,
    Dense,
    IntGrid,
    LowRank,
    Problem,
    Reals,
    RowSparse,
    Sparse,
)
from awp_edge.constraints import BITS, Support

Matrix = NDArray[np.floating]
Shape = tuple[int, int]
Draw = Callable[[st.SearchStrategy], object]

DTYPES = ("float32", "float64")
SEEDS = st.integers(0, 2**20)


# ---------------------------------------------------------------------------------------------------- weights
def _zero_rows(rng: np.random.Generator, shape: Shape) -> Matrix:
    weight = rng.normal(size=shape)
    weight[rng.random(shape[0]) < 0.5] = 0
    return weight


def _subnormals(rng: np.random.Generator, shape: Shape) -> Matrix:
    # Filled in by make_weight, which knows the dtype: here only integer multiples.
    return rng.integers(-8, 9, shape).astype(np.float64)


WEIGHT_KINDS: dict[str, Callable[[np.random.Generator, Shape], Matrix]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, size=shape),
    "ties": lambda rng, shape: rng.integers(-2, 3, shape).astype(np.float64),
    "constant": lambda rng, shape: np.full(shape, rng.choice([-1.5, 0.0, 1.0])),
    "sparse": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.3),
    "zero rows": _zero_rows,
    "positive": lambda rng, shape: rng.uniform(0.5, 1.0, shape),
    "scales": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 3, (1, shape[1])),
    "subnormals": _subnormals,
}


def make_weight(kind: str, shape: Shape, dtype: str, *, seed: int) -> Matrix:
    """Return a (d_out, d_in) matrix of a kind of `WEIGHT_KINDS`."""
    weight = WEIGHT_KINDS[kind](np.random.default_rng(seed), shape)
    if kind == "subnormals":
        weight = weight * float(np.finfo(dtype).smallest_subnormal)
    return weight.astype(dtype)


@st.composite
def weights(
    draw: Draw, shape: Shape, dtype: str = "float64", kinds: Sequence[str] = tuple(WEIGHT_KINDS)
) -> Matrix:
    """Draw a weight matrix."""
    kind, seed = draw(st.sampled_from(kinds)), draw(SEEDS)
    note(f"make_weight({kind!r}, {shape}, {dtype!r}, seed={seed})")
    return make_weight(kind, shape, dtype, seed=seed)


# ---------------------------------------------------------------------------------------------------- Gram matrices
def with_spectrum(rng: np.random.Generator, eigenvalues: Matrix) -> Matrix:
    """Return a symmetric matrix with these eigenvalues and random eigenvectors."""
    d = len(eigenvalues)
    basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return (basis * eigenvalues) @ basis.T


def _log_spectrum(rng: np.random.Generator, d: int) -> Matrix:
    return with_spectrum(rng, 10.0 ** rng.uniform(-2, 2, d))


def _singular(rng: np.random.Generator, d: int) -> Matrix:
    eigenvalues = rng.uniform(0.5, 2, d)
    eigenvalues[: max(1, d // 2)] = 0
    return with_spectrum(rng, eigenvalues)


def _few_samples(rng: np.random.Generator, d: int) -> Matrix:
    inputs = rng.normal(size=(max(1, d // 3), d))
    return inputs.T @ inputs / len(inputs)


def _samples(rng: np.random.Generator, d: int) -> Matrix:
    inputs = rng.normal(size=(4 * d, d)) @ rng.normal(size=(d, d))
    return inputs.T @ inputs / len(inputs)


def _spiked(rng: np.random.Generator, d: int) -> Matrix:
    spike = rng.normal(size=d)
    return _samples(rng, d) / d + 10.0 ** rng.integers(1, 4) * np.outer(spike, spike) / d


def _ill_scaled(rng: np.random.Generator, d: int) -> Matrix:
    scale = 10.0 ** rng.uniform(-2, 2, d)
    return scale[:, None] * _samples(rng, d) * scale / d


def _dead_inputs(rng: np.random.Generator, d: int) -> Matrix:
    alive = (np.arange(d) % 3 != 1).astype(float)
    return alive[:, None] * _samples(rng, d) * alive


GRAM_KINDS: dict[str, Callable[[np.random.Generator, int], Matrix]] = {
    "identity": lambda rng, d: np.eye(d),
    "samples": _samples,
    "log spectrum": _log_spectrum,
    "singular": _singular,
    "few samples": _few_samples,
    "spiked": _spiked,
    "ill scaled": _ill_scaled,
    "dead inputs": _dead_inputs,
    "zero": lambda rng, d: np.zeros((d, d)),
}


def make_gram(kind: str, d: int, dtype: str, *, seed: int) -> Matrix:
    """Return an exactly symmetric (d, d) matrix of a kind of `GRAM_KINDS`, positive semidefinite up to rounding."""
    gram = GRAM_KINDS[kind](np.random.default_rng(seed), d)
    return ((gram + gram.T) / 2).astype(dtype)


@st.composite
def grams(draw: Draw, d: int, dtype: str = "float64", kinds: Sequence[str] = tuple(GRAM_KINDS)) -> Matrix:
    """Draw a Gram matrix."""
    kind, seed = draw(st.sampled_from(kinds)), draw(SEEDS)
    note(f"make_gram({kind!r}, {d}, {dtype!r}, seed={seed})")
    return make_gram(kind, d, dtype, seed=seed)


@st.composite
def gentle_grams(draw: Draw, d: int, condition: float) -> Matrix:
    """Draw C with all eigenvalues within a factor `condition`, for theorems that ask it; the scale is arbitrary."""
    seed, scale = draw(SEEDS), 10.0 ** draw(st.integers(-3, 3))
    note(f"gentle_grams({d}, {condition}) with seed={seed}, scale={scale}")
    rng = np.random.default_rng(seed)
    gram = scale * with_spectrum(rng, rng.uniform(1, condition, d))
    return (gram + gram.T) / 2


# ---------------------------------------------------------------------------------------------------- constraints
def divisors(d: int) -> list[int]:
    """Return every divisor of d."""
    return [m for m in range(1, d + 1) if d % m == 0]


@st.composite
def supports(draw: Draw, shape: Shape) -> Support:
    """Draw any support that fits the shape; both ends (nothing kept, all kept) are likely."""
    kind = draw(st.sampled_from((Dense, RowSparse, NM, BalancedBlock, BlockSparse)))
    if kind is Dense:
        return Dense()
    if kind is RowSparse:
        return RowSparse(draw(counts(shape[1])))
    if kind is BlockSparse:
        rows, cols = draw(st.sampled_from(divisors(shape[0]))), draw(st.sampled_from(divisors(shape[1])))
        return BlockSparse(rows, cols, draw(counts(shape[1] // cols)))
    size = draw(st.sampled_from(divisors(shape[1])))
    return kind(draw(counts(size)), size)


def counts(d: int) -> st.SearchStrategy[int]:
    """Draw 0 <= k <= d with k = 0 and k = d often."""
    return st.one_of(st.sampled_from((0, d)), st.integers(0, d))


@st.composite
def grids(draw: Draw, shape: Shape) -> IntGrid:
    """Draw any grid whose group size divides d_in."""
    return IntGrid(
        draw(st.sampled_from(BITS)),
        draw(st.sampled_from(divisors(shape[1]))),
        symmetric=draw(st.booleans()),
        half_scales=draw(st.booleans()),
    )


@st.composite
def sparse_sets(draw: Draw, shape: Shape, *, real_only: bool = False) -> Sparse:
    """Draw support x values; grids are not bound yet."""
    values = Reals() if real_only or draw(st.booleans()) else draw(grids(shape))
    return Sparse(draw(supports(shape)), values)


def constraints(shape: Shape) -> st.SearchStrategy[Sparse | LowRank]:
    """Draw any constraint that fits the shape."""
    return st.one_of(sparse_sets(shape), st.builds(LowRank, st.integers(0, min(shape))))


# ---------------------------------------------------------------------------------------------------- whole layers
def shapes(max_out: int = 6, max_in: int = 12) -> st.SearchStrategy[Shape]:
    """Draw (d_out, d_in)."""
    return st.tuples(st.integers(1, max_out), st.integers(1, max_in))


#: Kinds without entries so small that squares underflow: for tests about objectives.
ORDINARY = tuple(kind for kind in WEIGHT_KINDS if kind != "subnormals")


@st.composite
def problems(
    draw: Draw,
    shape: Shape | None = None,
    dtype: str = "float64",
    gram_kinds: Sequence[str] = tuple(GRAM_KINDS),
) -> Problem:
    """Draw a layer problem."""
    shape = shape or draw(shapes())
    return Problem(draw(weights(shape, dtype, ORDINARY)), draw(grams(shape[1], dtype, gram_kinds)))


@st.composite
def cases(
    draw: Draw,
    dtype: str = "float64",
    *,
    max_out: int = 6,
    max_in: int = 12,
    gram_kinds: Sequence[str] = tuple(GRAM_KINDS),
) -> tuple[Problem, Sparse]:
    """Draw a layer problem and a support x values set that fits it; grids are fitted to W."""
    problem = draw(problems(draw(shapes(max_out, max_in)), dtype, gram_kinds))
    return problem, draw(sparse_sets(problem.shape)).bind(problem.weight)


@st.composite
def points(draw: Draw, dtype: str = "float64", *, max_out: int = 4, max_in: int = 8) -> tuple[Matrix, Sparse]:
    """Draw a matrix to project and a bound set; the grid is fitted to another matrix, so that clipping happens."""
    shape = draw(shapes(max_out, max_in))
    kinds = tuple(kind for kind in WEIGHT_KINDS if kind != "scales")
    return draw(weights(shape, dtype)), draw(sparse_sets(shape)).bind(draw(weights(shape, dtype, kinds)))
