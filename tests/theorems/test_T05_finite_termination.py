"""T05: on a finite grid, descent below 1/L ends after finitely many steps (proofs/T05_finite_termination.md)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from oracles import descend_codes
from strategies import ORDINARY, SEEDS, cases, grams, make_gram, make_weight, weights

from awp_edge import Dense, IntGrid, Problem, Sparse, Stop, pgd, solve, theory
from awp_edge.backend import resolve
from awp_edge.constraints import BoundGrid

SMALL = {"max_out": 3, "max_in": 8}
NO_DECADES = tuple(kind for kind in ORDINARY if kind != "scales")


@st.composite
def grid_cases(draw: st.DrawFn) -> tuple[Problem, Sparse]:
    """Draw a layer and a support x bound grid; the start may be far from W."""
    problem, constraint = draw(cases(**SMALL))
    assume(isinstance(constraint.values, BoundGrid) and problem.lipschitz() > 1e-200)
    return problem, constraint


def lower_bound(problem: Problem, path: np.ndarray) -> float:
    """Return f_0 - f_T, the part of f_0 - min f that this run has used."""
    return float(path[0] - path[-1])


@given(case=grid_cases(), seed=SEEDS, share=st.sampled_from((0.3, 0.9)))
def test_it_ends_within_the_bound_at_a_fixed_point(
    backend: str, case: tuple[Problem, Sparse], seed: int, share: float
) -> None:
    problem, constraint = case
    spread = float(np.abs(problem.weight).max()) + 1e-300
    start = spread * np.random.default_rng(seed).normal(size=problem.shape)
    step, lipschitz = share / problem.lipschitz(), problem.lipschitz()
    result = solve(problem, constraint, start=start, method=pgd(step), stop=Stop(300, tol=0), backend=backend)
    spacing = float(constraint.values.scales.min())
    gap = lower_bound(problem, result.objectives) + 1e-12 * result.objectives[0]
    bound = theory.moves_until_fixed(gap, step=step, lipschitz=lipschitz, spacing=spacing)
    ended = result.reason == "fixed point"
    moves = result.n_iter - ended  # the last step of a run that has ended changed nothing
    assert moves <= bound + 1e-6
    if not ended:
        event("longer than 300 steps")
        return
    again = solve(
        problem, constraint, start=result.theta, method=pgd(step), stop=Stop(2, tol=0), backend=backend
    )
    assert again.n_iter == 1
    event("moved" if moves else "was fixed")


@given(grid_cases())
def test_no_two_points_are_nearer_than_the_smallest_scale(case: tuple[Problem, Sparse]) -> None:
    grid = case[1].values
    steps = np.abs(
        grid.decode(np.full(case[0].shape, 1, np.uint8)) - grid.decode(np.zeros(case[0].shape, np.uint8))
    )
    assert steps.min() == pytest.approx(float(grid.scales.min()), rel=1e-9)


@given(grams(6), weights((2, 6), kinds=NO_DECADES), SEEDS)
def test_coordinate_descent_ends_too(gram: np.ndarray, weight: np.ndarray, seed: int) -> None:
    problem, grid = Problem(weight, gram), IntGrid(2, 6).fit(weight)
    codes = np.random.default_rng(seed).integers(0, 4, (2, 6)).astype(np.uint8)
    start = grid.decode(codes)
    end = descend_codes(problem, grid, start)
    assert problem.objective(end) <= problem.objective(start) * (1 + 1e-12)
    np.testing.assert_array_equal(descend_codes(problem, grid, end), end)


@given(gram=grams(6), weight=weights((2, 6), kinds=NO_DECADES), seed=SEEDS)
def test_the_packages_descent_never_rises(
    backend: str, gram: np.ndarray, weight: np.ndarray, seed: int
) -> None:
    problem, grid, engine = Problem(weight, gram), IntGrid(2, 6).fit(weight), resolve(backend)
    codes = np.random.default_rng(seed).integers(0, 4, (2, 6)).astype(np.uint8)
    theta, noise = grid.decode(codes), 1e-9 * float(np.abs(gram).max() * np.sum(weight**2) + 1e-300)
    for _ in range(4):
        before = theta
        theta, grid = engine.descend(problem, theta, grid)
        assert problem.objective(theta) <= problem.objective(before) * (1 + 1e-9) + noise
    event("ended" if np.array_equal(theta, before) else "still moving")


def test_the_bound_is_informative() -> None:
    # C = I, eta = 1/2, codes far from W: every step changes codes, and the bound is within a small factor.
    problem = Problem(np.full((1, 1), 100.0), np.eye(1))
    grid = BoundGrid(IntGrid(8, 1), np.ones((1, 1)), np.zeros((1, 1), np.uint8))
    result = solve(
        problem, Sparse(Dense(), grid), start=np.zeros((1, 1)), method=pgd(0.01), stop=Stop(999, tol=0)
    )
    gap = result.objectives[0] - result.objectives[-1]
    bound = theory.moves_until_fixed(gap, step=0.01, lipschitz=1.0, spacing=1.0)
    assert result.reason == "fixed point" and 0.2 * bound < result.n_iter - 1 <= bound
    layer = Problem(
        make_weight("normal", (2, 8), "float64", seed=0), make_gram("samples", 8, "float64", seed=0)
    )
    bound_grid = IntGrid(2, 8).fit(layer.weight)
    start, step = np.zeros((2, 8)), 0.5 / layer.lipschitz()
    result = solve(layer, Sparse(Dense(), bound_grid), start=start, method=pgd(step), stop=Stop(99, tol=0))
    spacing = float(bound_grid.scales.min())
    bound = theory.moves_until_fixed(
        result.objectives[0], step=step, lipschitz=layer.lipschitz(), spacing=spacing
    )
    assert bound < 4.0**16 - 1  # the number of points is the other bound


# ------------------------------------------------------------------------------------------------ negative controls
def test_a_long_step_never_ends(backend: str) -> None:
    problem = Problem(np.array([[0.4]]), np.eye(1))
    grid = BoundGrid(IntGrid(2, 1), np.ones((1, 1)), np.zeros((1, 1), np.uint8))
    result = solve(problem, Sparse(Dense(), grid), method=pgd(1.5), stop=Stop(1000, tol=0), backend=backend)
    assert result.reason == "iterations"
    with pytest.raises(ValueError, match="not below 1/L"):
        theory.moves_until_fixed(1.0, step=1.5, lipschitz=1.0, spacing=1.0)


def test_on_the_reals_it_does_not_end(backend: str) -> None:
    problem = Problem(np.array([[1.0, 2.0]]), np.diag([1.0, 0.5]))
    method, stop = pgd(0.5), Stop(40, tol=0)
    result = solve(
        problem, Sparse(Dense()), start=np.zeros((1, 2)), method=method, stop=stop, backend=backend
    )
    assert result.reason == "iterations"
