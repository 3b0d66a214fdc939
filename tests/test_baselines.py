"""The peers without a solver: their formulas, their invariants, and where all of them coincide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import sorted_mask
from strategies import DTYPES, ORDINARY, cases, grams, sparse_sets, supports, weights

from awp_edge import Dense, IntGrid, LowRank, Problem, RowSparse, Sparse
from awp_edge.backend import resolve
from awp_edge.baselines import asvd, magnitude, rtn, wanda

SHAPE = (3, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("baseline", [magnitude, wanda, rtn], ids=lambda f: f.__name__)
@given(data=st.data())
def test_baselines_are_feasible_and_pure(
    backend: str, data: st.DataObject, dtype: str, baseline: object
) -> None:
    problem, constraint = data.draw(cases(dtype))
    before = problem.weight.copy(), problem.gram.copy()
    theta = baseline(problem, constraint, engine=resolve(backend))
    assert theta.dtype == dtype and constraint.contains(theta)
    np.testing.assert_array_equal(problem.weight, before[0])
    np.testing.assert_array_equal(problem.gram, before[1])


@given(st.data())
def test_magnitude_is_the_projection_of_w(backend: str, data: st.DataObject) -> None:
    weight, support = data.draw(weights(SHAPE, kinds=ORDINARY)), data.draw(supports(SHAPE))
    theta = magnitude(Problem(weight, np.eye(8)), Sparse(support), engine=resolve(backend))
    np.testing.assert_array_equal(theta, Sparse(support).project(weight))


@given(st.data())
def test_wanda_keeps_the_largest_scores(backend: str, data: st.DataObject) -> None:
    weight = data.draw(weights(SHAPE, kinds=("normal", "ties", "sparse", "zero rows")))
    gram = data.draw(grams(8, kinds=("samples", "dead inputs", "zero", "identity")))
    k = data.draw(st.integers(0, 8))
    theta = wanda(Problem(weight, gram), Sparse(RowSparse(k)), engine=resolve(backend))
    mask = sorted_mask(RowSparse(k), weight * weight * np.diagonal(gram))
    np.testing.assert_array_equal(theta, np.where(mask, weight, 0))


@given(st.data())
def test_magnitude_and_wanda_coincide_on_white_inputs(backend: str, data: st.DataObject) -> None:
    weight = data.draw(weights(SHAPE))
    constraint, problem = data.draw(sparse_sets(SHAPE)), Problem(weight, np.eye(8))
    engine = resolve(backend)
    np.testing.assert_array_equal(
        magnitude(problem, constraint, engine=engine), wanda(problem, constraint, engine=engine)
    )


def test_wanda_sees_the_activations_and_magnitude_does_not() -> None:
    problem = Problem(np.array([[1.0, 2.0]]), np.diag([100.0, 1.0]))
    engine = resolve("numpy")
    np.testing.assert_array_equal(wanda(problem, Sparse(RowSparse(1)), engine=engine), [[1, 0]])
    np.testing.assert_array_equal(magnitude(problem, Sparse(RowSparse(1)), engine=engine), [[0, 2]])


@given(st.data())
def test_rtn_rounds_to_the_grid_of_the_range(backend: str, data: st.DataObject) -> None:
    weight = data.draw(weights(SHAPE))
    spec = IntGrid(data.draw(st.sampled_from((2, 3, 4, 8))), data.draw(st.sampled_from((2, 4, 8))))
    theta = rtn(Problem(weight, np.eye(8)), Sparse(Dense(), spec), engine=resolve(backend))
    grid = spec.fit(weight)
    np.testing.assert_array_equal(theta, grid.round(weight))
    steps = np.repeat(grid.scales, spec.group_size, axis=1)
    # A zero point rounded to an integer may clip the far end by half a step more.
    assert (np.abs(weight - theta) <= steps * (1 + 1e-12)).all()


def test_a_grid_is_fitted_to_what_is_kept() -> None:
    # The outlier is pruned: the grid must not span it.
    problem = Problem(np.array([[10.0, 1.0, 0.5, 0.75]]), np.diag([0.0, 1.0, 1.0, 1.0]))
    theta = wanda(problem, Sparse(RowSparse(3), IntGrid(2, 4)), engine=resolve("numpy"))
    np.testing.assert_allclose(theta, [[0, 1, 2 / 3, 2 / 3]])


@given(st.data())
def test_asvd_beats_the_plain_svd(backend: str, data: st.DataObject) -> None:
    problem = Problem(data.draw(weights(SHAPE, kinds=("normal", "ties"))), data.draw(grams(8)))
    constraint = LowRank(data.draw(st.integers(0, 3)))
    left, right = asvd(problem, constraint, engine=resolve(backend, constraint=constraint))
    assert left.shape == (3, constraint.rank) and right.shape == (constraint.rank, 8)
    size = problem.objective(np.zeros(SHAPE))
    plain = problem.objective(constraint.project(problem.weight))
    assert problem.objective(left @ right) <= plain + 1e-12 * size
