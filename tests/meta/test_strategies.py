"""The strategies do produce the hard cases that the other tests rely on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from strategies import (
    GRAM_KINDS,
    WEIGHT_KINDS,
    cases,
    constraints,
    divisors,
    gentle_grams,
    grams,
    make_gram,
    make_weight,
    points,
    shapes,
    sparse_sets,
    supports,
    weights,
)

from awp_edge import NM, BalancedBlock, BlockSparse, Dense, IntGrid, LowRank, RowSparse, Sparse
from awp_edge.constraints import BITS, BoundGrid

SHAPE = (4, 8)
PATIENT = settings(max_examples=5000, derandomize=True, database=None)


def produces(strategy: st.SearchStrategy, wanted: Callable[[object], bool]) -> None:
    """Fail unless the strategy draws an example that satisfies the condition."""
    find(strategy, wanted, settings=PATIENT)


WEIGHT_CASES = {
    "ties": lambda w: any(len(np.unique(np.abs(row[row != 0]))) < np.count_nonzero(row) for row in w),
    "integers": lambda w: bool(w.any()) and np.array_equal(w, np.rint(w)),
    "a zero row among others": lambda w: (~w.any(axis=1)).any() and w.any(),
    "all zero": lambda w: not w.any(),
    "mostly zeros": lambda w: 0 < np.count_nonzero(w) < w.size / 2,
    "subnormals": lambda w: bool(w.any()) and np.abs(w).max() < np.finfo(w.dtype).tiny,
    "six decades": lambda w: np.abs(w[w != 0]).max(initial=0) > 1e4 * np.abs(w[w != 0]).min(initial=np.inf),
    "one sign": lambda w: (w > 0).all(),
}


@pytest.mark.parametrize("case", WEIGHT_CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights(case: str, dtype: str) -> None:
    produces(weights(SHAPE, dtype), WEIGHT_CASES[case])


def spectrum(gram: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(gram)


GRAM_CASES = {
    "singular": lambda c: c.any() and spectrum(c)[0] < 1e-12 * spectrum(c)[-1],
    "well conditioned": lambda c: spectrum(c)[0] > 0.5 * spectrum(c)[-1] > 0,
    "one outlier direction": lambda c: spectrum(c)[-1] > 50 * spectrum(c)[-2] > 0,
    "step above 1/L": lambda c: c.any() and 2 * spectrum(c)[-1] > np.linalg.norm(c),
    "step below 1/L": lambda c: 2 * spectrum(c)[-1] < np.linalg.norm(c),
    "scales over six decades": lambda c: c.diagonal().max() > 1e6 * c.diagonal().min() > 0,
    "an input that is always zero": lambda c: c.any() and (c.diagonal() == 0).any(),
    "zero": lambda c: not c.any(),
}


@pytest.mark.parametrize("case", GRAM_CASES)
def test_grams(case: str) -> None:
    produces(grams(8), GRAM_CASES[case])


@given(st.sampled_from(sorted(GRAM_KINDS)), shapes(1, 12), st.integers(0, 99))
def test_every_gram_is_symmetric_and_semidefinite(kind: str, shape: tuple[int, int], seed: int) -> None:
    for dtype in ("float32", "float64"):
        gram = make_gram(kind, shape[1], dtype, seed=seed)
        np.testing.assert_array_equal(gram, gram.T)
        values = spectrum(gram)
        assert values[0] >= -20 * np.finfo(dtype).eps * max(values[-1], 0)


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_weight_is_finite_and_reproducible(kind: str, dtype: str) -> None:
    weight = make_weight(kind, SHAPE, dtype, seed=3)
    assert weight.dtype == dtype and weight.shape == SHAPE and np.isfinite(weight).all()
    np.testing.assert_array_equal(weight, make_weight(kind, SHAPE, dtype, seed=3))


def count(support: object) -> tuple[int, int]:
    """Return (kept, at most) of a support."""
    match support:
        case RowSparse(k):
            return k, SHAPE[1]
        case NM(n, m):
            return n, m
        case BalancedBlock(k, block):
            return k, block
        case BlockSparse(_, cols, k):
            return k, SHAPE[1] // cols
        case _:
            return 1, 1


@pytest.mark.parametrize("kind", [RowSparse, NM, BalancedBlock, BlockSparse])
@pytest.mark.parametrize("end", ["nothing kept", "some kept", "all kept"])
def test_supports(kind: type, end: str) -> None:
    wanted = {
        "nothing kept": lambda k, d: k == 0,
        "some kept": lambda k, d: 0 < k < d,
        "all kept": lambda k, d: k == d,
    }[end]
    produces(supports(SHAPE), lambda s: isinstance(s, kind) and wanted(*count(s)))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_grids(bits: int, *, symmetric: bool, half: bool) -> None:
    def wanted(constraint: Sparse) -> bool:
        grid = constraint.values
        return isinstance(grid, IntGrid) and (grid.bits, grid.symmetric, grid.half_scales) == (
            bits,
            symmetric,
            half,
        )

    produces(sparse_sets(SHAPE), wanted)


def test_constraints_cover_every_kind() -> None:
    produces(constraints(SHAPE), lambda c: isinstance(c, LowRank) and c.rank == 0)
    produces(constraints(SHAPE), lambda c: isinstance(c, LowRank) and c.rank == 4)
    produces(constraints(SHAPE), lambda c: isinstance(c, Sparse) and isinstance(c.support, Dense))


def test_points_fall_outside_their_grid() -> None:
    def clipped(drawn: tuple[np.ndarray, Sparse]) -> bool:
        z, constraint = drawn
        if not isinstance(constraint.values, BoundGrid):
            return False
        return bool((np.abs(z - constraint.values.round(z)) > np.max(constraint.values.scales)).any())

    produces(points(), clipped)


@given(shapes(), st.data())
def test_every_constraint_fits_its_shape(shape: tuple[int, int], data: st.DataObject) -> None:
    data.draw(constraints(shape)).check(shape)


@given(cases())
def test_every_case_is_bound(case: tuple) -> None:
    problem, constraint = case
    assert problem.gram.shape[0] == problem.shape[1]
    assert not isinstance(constraint.values, IntGrid)


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize("condition", [1.8, 3.0, 50.0])
def test_gentle_grams_are_as_gentle_as_asked(condition: float) -> None:
    @given(gentle_grams(6, condition))
    def within(gram: np.ndarray) -> None:
        np.testing.assert_array_equal(gram, gram.T)
        assert np.linalg.cond(gram) <= condition * (1 + 1e-9)

    within()
    produces(gentle_grams(6, condition), lambda gram: np.linalg.cond(gram) > 1 + 0.5 * (condition - 1))
    produces(gentle_grams(6, condition), lambda gram: gram.max() > 100)
