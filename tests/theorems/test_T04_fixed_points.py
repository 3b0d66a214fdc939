"""T04: where descent stops, and why coordinate descent stops at better points (proofs/T04_fixed_points.md)."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
from hypothesis import assume, event, given
from hypothesis import strategies as st
from oracles import coordinate_minimum, descend_codes, grid_values, refit
from strategies import ORDINARY, SEEDS, grams, make_gram, make_weight, problems, weights

from awp_edge import Dense, IntGrid, Problem, RowSparse, Sparse, Stop, pgd, solve, theory
from awp_edge.backend import resolve
from awp_edge.constraints import BoundGrid

NO_DECADES = tuple(
    kind for kind in ORDINARY if kind != "scales"
)  # there rounding hides what the small entries do
ONCE = Stop(1, tol=0)


def normal(seed: int, shape: tuple[int, int], *, gram: str = "samples") -> Problem:
    weight = make_weight("normal", shape, "float64", seed=seed)
    return Problem(weight, make_gram(gram, shape[1], "float64", seed=seed))


def step_row(problem: Problem, constraint: Sparse, theta: np.ndarray, *, step: float) -> np.ndarray:
    return constraint.project(theta - step * problem.gradient(theta))


# ------------------------------------------------------------------------------------------------ sparse rows (c)
@given(
    grams(6),
    weights((1, 6), kinds=ORDINARY),
    st.integers(0, 6),
    SEEDS,
    st.sampled_from((0.3, 0.999, 1.001, 3)),
)
def test_a_sparse_row_is_fixed_up_to_its_step(
    gram: np.ndarray, weight: np.ndarray, k: int, seed: int, share: float
) -> None:
    problem, lipschitz = Problem(weight, gram), float(np.linalg.eigvalsh(gram)[-1])
    assume(lipschitz > 1e-12)
    chosen = np.zeros(6, bool)
    chosen[np.random.default_rng(seed).permutation(6)[:k]] = True
    theta = refit(gram, weight[0], chosen)
    gradient = problem.gradient(theta[None])[0]
    noise = 1e-9 * lipschitz * (np.abs(weight).max() + np.abs(theta).max())
    assume(not (np.abs(theta[chosen]) < 1e-6 * np.abs(weight).max()).any())
    assume(np.abs(gradient[chosen]).max(initial=0) <= noise)  # a singular C_SS may refuse
    gradient[np.abs(gradient) <= noise] = 0
    limit = theory.stationary_step(theta, gradient, k)
    step = share * (limit if 0 < limit < np.inf else 1 / lipschitz)
    after = step_row(problem, Sparse(RowSparse(k)), theta[None], step=step)[0]
    stayed = np.array_equal(after != 0, theta != 0) and np.allclose(after, theta, atol=step * noise)
    assert stayed == (step <= limit)
    event("stays" if stayed else "moves")


def test_a_row_that_is_not_refitted_is_never_fixed() -> None:
    assert theory.stationary_step(np.array([1.0, 0]), np.array([0.1, 0]), 1) == 0
    assert theory.stationary_step(np.array([1.0, 0]), np.array([0.0, 0.5]), 1) == 2
    assert (
        theory.stationary_step(np.array([1.0, 0]), np.array([0.0, 0.5]), 2) == 0
    )  # room left: g must vanish
    assert theory.stationary_step(np.zeros(2), np.array([1.0, 1]), 0) == np.inf


def best_row(gram: np.ndarray, row: np.ndarray, k: int) -> np.ndarray:
    rows = [refit(gram, row, np.isin(np.arange(len(row)), s)) for s in combinations(range(len(row)), k)]
    return min(rows, key=lambda theta: float((theta - row) @ gram @ (theta - row)))


@given(problems((1, 6)), st.integers(0, 6), st.sampled_from((0.5, 0.99)))
def test_the_best_sparse_row_is_fixed_below_one_over_l(problem: Problem, k: int, share: float) -> None:
    assume(problem.lipschitz() > 1e-12)
    best = best_row(problem.gram, problem.weight[0], k)[None]
    step = share / problem.lipschitz()
    after = step_row(problem, Sparse(RowSparse(k)), best, step=step)
    # Rounding may exchange equally good supports where eta L is close to 1; f cannot tell.
    f, size = problem.objective(best), problem.objective(np.zeros((1, 6))) + problem.objective(best)
    assert abs(problem.objective(after) - f) <= 1e-9 * size


@given(st.data())
def test_the_best_grid_row_is_fixed_below_one_over_l(data: st.DataObject) -> None:
    problem = data.draw(problems((1, 4)))
    assume(problem.lipschitz() > 1e-12)
    grid = IntGrid(2, 2).fit(problem.weight)
    rows = [np.array([row]) for row in product(*(grid_values(grid, 0, j) for j in range(4)))]
    best = min(rows, key=problem.objective)
    after = step_row(problem, Sparse(Dense(), grid), best, step=0.99 / problem.lipschitz())
    np.testing.assert_array_equal(after, best)


# ------------------------------------------------------------------------------------------------ one entry (d)
def largest_pair(gram: np.ndarray) -> float:
    pairs = combinations(range(len(gram)), 2)
    return max(float(np.linalg.eigvalsh(gram[np.ix_(pair, pair)])[-1]) for pair in pairs)


@given(grams(6), weights((1, 6), kinds=("normal", "ties", "heavy tails")), st.integers(1, 5), SEEDS)
def test_what_swaps_accept_descent_accepts(gram: np.ndarray, weight: np.ndarray, k: int, seed: int) -> None:
    assume(gram.any())
    start = np.zeros(6)
    start[np.random.default_rng(seed).permutation(6)[:k]] = 1
    theta = coordinate_minimum(gram, weight[0], start)
    gradient = gram @ (theta - weight[0])
    size = np.abs(gram).max() * (np.abs(theta).max() + np.abs(weight).max())
    gradient[np.abs(gradient) <= 1e-6 * size] = 0
    assert theory.stationary_step(theta, gradient, k) >= (1 - 1e-5) / largest_pair(gram)


def test_descent_accepts_far_worse_points(backend: str) -> None:
    for ratio in (2.0, 100.0, 1e6):
        problem = Problem(np.ones((1, 2)), np.diag([1.0, ratio]))
        for share in (0.1, 0.5, 0.99):
            start = np.array([[1.0, 0.0]])
            result = solve(
                problem, Sparse(RowSparse(1)), start=start, method=pgd(share / ratio), backend=backend
            )
            assert result.reason == "fixed point" and result.objective == ratio / 2
        swapped = coordinate_minimum(problem.gram, problem.weight[0], np.array([1.0, 0]))
        np.testing.assert_array_equal(swapped, [0, 1])
        assert problem.objective(swapped[None]) == 0.5


def test_swaps_help_on_ordinary_layers() -> None:
    # Informative: of 20 rows where descent has ended, swaps improve a quarter by more than a tenth.
    problem = normal(3, (20, 12))
    method, stop = pgd(0.9 / problem.lipschitz()), Stop(3000, tol=0)
    end = solve(problem, Sparse(RowSparse(4)), method=method, stop=stop, backend="numpy")
    assert end.reason == "fixed point"
    gains = []
    for weight, theta in zip(problem.weight, end.theta, strict=True):
        row = Problem(weight[None], problem.gram)
        better = coordinate_minimum(problem.gram, weight, theta)
        gains.append(row.objective(better[None]) / row.objective(theta[None]))
    assert max(gains) <= 1 + 1e-9 and np.mean(np.array(gains) < 0.9) >= 0.25


# ------------------------------------------------------------------------------------------------ grids (e), (f)
@st.composite
def grid_points(draw: st.DrawFn) -> tuple[Problem, BoundGrid, np.ndarray]:
    """Draw a layer, a bound grid and any point of it, ends of the range included."""
    problem = Problem(draw(weights((2, 6), kinds=NO_DECADES)), draw(grams(6)))
    grid = IntGrid(draw(st.sampled_from((2, 3))), draw(st.sampled_from((1, 2, 3, 6)))).fit(problem.weight)
    codes = np.random.default_rng(draw(SEEDS)).integers(0, grid.spec.top + 1, (2, 6)).astype(np.uint8)
    near = draw(st.booleans())
    return problem, grid, grid.round(problem.weight) if near else grid.decode(codes)


def inner(grid: BoundGrid, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes = grid.encode(theta)
    return codes > 0, codes < grid.spec.top


def steps(grid: BoundGrid) -> np.ndarray:
    return np.repeat(grid.scales, grid.spec.group_size, axis=1)


@given(drawn=grid_points(), share=st.sampled_from((0.5, 0.999, 1.001, 2)))
def test_a_grid_row_is_fixed_up_to_its_step(
    backend: str, drawn: tuple[Problem, BoundGrid, np.ndarray], share: float
) -> None:
    problem, grid, theta = drawn
    below, above = inner(grid, theta)
    gradient, s = problem.gradient(theta), steps(grid)
    limit = min(theory.grid_stationary_step(gradient[i], s[i], inner=(below[i], above[i])) for i in range(2))
    assume(1e-100 < limit < 1e100)
    result = solve(
        problem, Sparse(Dense(), grid), start=theta, method=pgd(share * limit), stop=ONCE, backend=backend
    )
    assert (result.reason == "fixed point") == (share < 1)


@given(grid_points())
def test_coordinate_minimality_is_a_bound_on_the_gradient(
    drawn: tuple[Problem, BoundGrid, np.ndarray],
) -> None:
    problem, grid, theta = drawn
    slack = theory.coordinate_slack(problem.gradient(theta), steps(grid), problem.gram.diagonal())
    below, above = inner(grid, theta)
    f = problem.objective(theta)
    noise = 1e-9 * (f + problem.objective(np.zeros_like(theta)))
    for i, j in np.argwhere(below & above):
        objectives = []
        for value in grid_values(grid, i, j):
            rival = theta.copy()
            rival[i, j] = value
            objectives.append(problem.objective(rival))
        least = min(objectives)
        if slack[i, j] >= 0:
            assert least >= f - noise
        else:
            assert least <= f + slack[i, j] * steps(grid)[i, j] * (1 - 1e-9) + noise


@given(drawn=grid_points())
def test_descent_stays_where_coordinate_descent_ends(
    backend: str, drawn: tuple[Problem, BoundGrid, np.ndarray]
) -> None:
    problem, grid, theta = drawn
    assume(problem.gram.any())
    end = descend_codes(problem, grid, theta)
    step = 0.999 / float(problem.gram.diagonal().max())
    result = solve(problem, Sparse(Dense(), grid), start=end, method=pgd(step), stop=ONCE, backend=backend)
    assert result.reason == "fixed point"


@given(problem=problems((2, 8)), bits=st.sampled_from((2, 4, 8)))
def test_rounding_to_nearest_is_a_trap(backend: str, problem: Problem, bits: int) -> None:
    assume(problem.gram.any())
    grid = IntGrid(bits, 8).fit(problem.weight)
    rounded = grid.round(problem.weight)
    step = 0.999 * theory.rounding_step(problem.gram)
    assert step * problem.lipschitz() <= 1
    result = solve(
        problem, Sparse(Dense(), grid), start=rounded, method=pgd(step), stop=ONCE, backend=backend
    )
    assert result.reason == "fixed point"


def test_coordinate_descent_gets_out_of_the_trap(backend: str) -> None:
    # Informative: from round-to-nearest the gradient method gains nothing, coordinate descent much.
    descents, coordinates = [], []
    for seed in range(10):
        problem = normal(seed, (2, 16))
        grid = IntGrid(3, 16).fit(problem.weight)
        rounded = grid.round(problem.weight)
        f = problem.objective(rounded)
        method = pgd(0.99 / problem.lipschitz())
        moved = solve(problem, Sparse(Dense(), grid), start=rounded, method=method, backend=backend)
        descents.append(moved.objective / f)
        coordinates.append(problem.objective(descend_codes(problem, grid, rounded)) / f)
    assert np.median(descents) > 0.9 and np.median(coordinates) < 0.5


@given(drawn=grid_points())
def test_the_packages_descent_ends_at_a_coordinate_wise_minimum(
    backend: str, drawn: tuple[Problem, BoundGrid, np.ndarray]
) -> None:
    problem, grid, theta = drawn
    assume(problem.gram.any())
    end = theta
    for _ in range(30):
        before = end
        end, grid = resolve(backend).descend(problem, end, grid)  # moves the scales too, one at a time
        if np.array_equal(before, end):
            break
    assert problem.objective(end) <= problem.objective(theta) * (1 + 1e-9) + 1e-12
    assume(np.array_equal(before, end))
    below, above = inner(grid, end)
    gradient, s = problem.gradient(end), steps(grid)
    pull = np.maximum(np.where(below, gradient, 0), np.where(above, -gradient, 0))
    reach = np.abs(problem.weight).max() + np.abs(end).max()
    slack = theory.coordinate_slack(pull, s, problem.gram.diagonal())
    assert (slack >= -1e-9 * np.abs(problem.gram).max() * reach).all()


# ------------------------------------------------------------------------------------------------ negative controls
def test_long_steps_leave_round_to_nearest() -> None:
    moved = 0
    for seed in range(20):
        problem = normal(seed, (2, 16))
        grid = IntGrid(4, 16).fit(problem.weight)
        rounded = grid.round(problem.weight)
        after = step_row(
            problem, Sparse(Dense(), grid), rounded, step=30 * theory.rounding_step(problem.gram)
        )
        moved += not np.array_equal(after, rounded)
    assert moved > 10


def test_the_optimum_can_be_left_above_one_over_l() -> None:
    problem = Problem(np.ones((1, 2)), np.eye(2))
    best = np.array([[1.0, 0.0]])
    assert not np.array_equal(step_row(problem, Sparse(RowSparse(1)), best, step=1.01), best)


def test_descent_does_not_accept_all_that_a_short_step_accepts() -> None:
    # The converse of (e): fixed at 1/L, yet one entry alone can lower f.
    gram = np.array([[1.0, 0.9], [0.9, 1.0]])
    problem = Problem(np.array([[0.45, 0.45]]), gram)
    grid = BoundGrid(IntGrid(2, 2), np.ones((1, 1)), np.zeros((1, 1), np.uint8))
    theta = np.zeros((1, 2))
    after = step_row(problem, Sparse(Dense(), grid), theta, step=1 / problem.lipschitz())
    np.testing.assert_array_equal(after, theta)
    assert problem.objective(np.array([[1.0, 0.0]])) < problem.objective(theta)
