"""Projected gradient descent and the loop around it: iterates, best iterate, stop rules, ramp, starts."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import F_TOLERANCE
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import best_sparse_objective, plain_pgd
from strategies import cases, grams, make_weight, problems, sparse_sets, weights

from awp_edge import (
    NM,
    BalancedBlock,
    BlockSparse,
    Dense,
    IntGrid,
    LowRank,
    Problem,
    RowSparse,
    Sparse,
    Stop,
    pgd,
    solve,
)
from awp_edge.backend import NumpyBackend
from awp_edge.baselines import magnitude, wanda
from awp_edge.constraints import BoundGrid
from awp_edge.solvers.base import State, minimise, stop_reason
from awp_edge.solvers.pgd import iterate, ramped, step_size

ANY = Sparse(Dense())

ENGINE = NumpyBackend()
NEVER = Stop(max_iter=12, tol=0)
#: Smaller examples than the default: every one runs a solver.
SMALL = {"max_out": 3, "max_in": 8}


def norm(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix))


# ------------------------------------------------------------------------------------------------ the iteration
@given(cases(**SMALL), st.sampled_from([None, 0.5, 1.0, 1.9]))
def test_iterates_are_those_of_algorithm_1(case: tuple[Problem, Sparse], times: float | None) -> None:
    problem, constraint = case
    lipschitz = problem.lipschitz()
    assume(lipschitz > 0)
    step = step_size(problem, constraint, method=pgd(None if times is None else times / lipschitz))
    states = iterate(problem, constraint, constraint.project(problem.weight), method=pgd(step), engine=ENGINE)
    expected = plain_pgd(problem, constraint, constraint.project(problem.weight), step=step, n=4)
    previous = next(states)
    np.testing.assert_array_equal(previous.theta, expected[0])
    for state, theta in zip(states, expected[1:], strict=False):
        if not np.allclose(state.theta, theta, rtol=1e-9, atol=1e-9 * np.abs(problem.weight).max()):
            # Two points may be equally near: then the oracle's last bits choose another one. Nothing else may differ.
            z = previous.theta + step * (problem.weight - previous.theta) @ problem.gram
            assert norm(z - state.theta) == pytest.approx(norm(z - theta), rel=1e-9)
            return
        previous = state


@given(cases(**SMALL))
def test_states_describe_their_iterate(case: tuple[Problem, Sparse]) -> None:
    problem, constraint = case
    states = iterate(problem, constraint, constraint.project(problem.weight), method=pgd(), engine=ENGINE)
    previous = None
    for state, _ in zip(states, range(5), strict=False):
        assert state.objective == problem.objective(state.theta)
        gradient = norm(problem.gradient(state.theta))
        assert state.residual == pytest.approx(gradient / norm(problem.weight) if gradient else 0.0)
        assert state.feasible and constraint.contains(state.theta)
        assert state.settled == (previous is not None and np.array_equal(state.theta, previous.theta))
        previous = state


def test_default_steps_are_those_of_the_paper() -> None:
    problem = Problem(np.ones((1, 2)), np.array([[3.0, 0.0], [0.0, 4.0]]))
    assert step_size(problem, Sparse(RowSparse(1)), method=pgd()) == pytest.approx(2 / 5)
    grid = Sparse(Dense(), IntGrid(4, 2)).bind(problem.weight)
    assert step_size(problem, grid, method=pgd()) == pytest.approx(1.5 / 5)
    assert step_size(problem, grid, method=pgd(0.25)) == 0.25
    assert step_size(Problem(np.ones((1, 2)), np.zeros((2, 2))), grid, method=pgd()) == 0


@given(st.data())
def test_the_ramp_shrinks_the_support(data: st.DataObject) -> None:
    problem = data.draw(problems((2, 8)))
    constraint = data.draw(sparse_sets(problem.shape)).bind(problem.weight)
    ramp = data.draw(st.integers(1, 4))
    states = iterate(problem, constraint, problem.weight, method=pgd(ramp=ramp), engine=ENGINE)
    for t, state in zip(range(ramp + 2), states, strict=False):
        assert state.feasible == (t >= ramp)
        assert not state.settled or t > ramp
        if t > 0:
            assert ramped(constraint, problem, step=t, ramp=ramp).contains(state.theta)
    assert constraint.contains(state.theta)


# ------------------------------------------------------------------------------------------------ the loop
def states_of(*objectives: float, feasible: int = 0) -> list[State]:
    thetas = [np.full((1, 1), float(t)) for t in range(len(objectives))]
    return [State(*pair, residual=1.0, constraint=ANY, feasible=t >= feasible) for t, pair in
            enumerate(zip(thetas, objectives, strict=True))]  # fmt: skip


def test_the_best_iterate_is_returned_not_the_last() -> None:
    run = minimise(iter(states_of(3.0, 1.0, 2.0, 1.0)), Stop(max_iter=3))
    assert (run.objective, run.theta[0, 0], run.n_iter, run.reason) == (1.0, 1.0, 3, "iterations")
    np.testing.assert_array_equal(run.objectives, [3, 1, 2, 1])
    np.testing.assert_array_equal(run.residuals, np.ones(4))


def test_only_feasible_iterates_count() -> None:
    run = minimise(iter(states_of(0.0, 0.1, 2.0, 3.0, feasible=2)), Stop(max_iter=3))
    assert (run.objective, run.theta[0, 0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no feasible iterate: allow more iterations than the ramp takes"):
        minimise(iter(states_of(0.0, 0.1, 2.0, feasible=2)), Stop(max_iter=1))
    with pytest.raises(ValueError, match="no feasible iterate: use a smaller step"):
        minimise(iter(states_of(0.0, float("inf"), 2.0, feasible=2)), Stop(max_iter=9))


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State(np.zeros((1, 1)), float("inf"), 0.0, ANY), "diverged"),
        (State(np.zeros((1, 1)), float("nan"), 1.0, ANY), "diverged"),
        (State(np.zeros((1, 1)), 1.0, 0.009, ANY), "gradient"),
        (State(np.zeros((1, 1)), 1.0, 0.01, ANY), None),
        (State(np.zeros((1, 1)), 1.0, 0.009, ANY, feasible=False), None),
        (State(np.zeros((1, 1)), 1.0, 1.0, ANY, settled=True), "fixed point"),
        (State(np.zeros((1, 1)), 1.0, 1.0, ANY, feasible=False, settled=True), None),
    ],
)
def test_stop_rules(state: State, reason: str | None) -> None:
    assert stop_reason(state, Stop(max_iter=5, tol=0.01), step=4) == reason
    assert stop_reason(state, Stop(max_iter=5, tol=0.01), step=5) == (reason or "iterations")


@pytest.mark.parametrize("bad", [{"max_iter": -1}, {"tol": -1e-9}])
def test_stop_refuses_negative_limits(bad: dict) -> None:
    with pytest.raises(ValueError, match="max_iter and tol must not be negative"):
        Stop(**bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pgd(0.0), "the step must be positive, got 0.0"),
        (lambda: pgd(float("nan")), "the step must be positive, got nan"),
        (lambda: pgd(ramp=-1), "the ramp must not be negative, got -1"),
        (lambda: pgd(products="int8"), "products must be one of float32, bfloat16, got 'int8'"),
    ],
)
def test_pgd_refuses_bad_options(make: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------ solve
@given(case=cases(**SMALL), ramp=st.sampled_from([0, 3]))
def test_result_is_feasible_and_consistent(backend: str, case: tuple[Problem, Sparse], ramp: int) -> None:
    problem, constraint = case
    before = problem.weight.copy(), problem.gram.copy()
    result = solve(problem, constraint, method=pgd(ramp=ramp), stop=NEVER, backend=backend)
    np.testing.assert_array_equal(problem.weight, before[0])
    np.testing.assert_array_equal(problem.gram, before[1])
    assert constraint.contains(result.theta) and result.theta.flags.c_contiguous
    assert result.theta.dtype == problem.weight.dtype and not np.shares_memory(result.theta, problem.weight)
    size = problem.objective(np.zeros(problem.shape)) + result.objectives[0]
    assert abs(problem.objective(result.theta) - result.objective) <= 1e-12 * size
    assert result.objective == result.objectives[ramp:].min()
    assert len(result.objectives) == result.n_iter + 1 <= NEVER.max_iter + 1
    assert result.converged == (result.reason != "iterations")


@given(case=cases(**SMALL), seed=st.integers(0, 99))
def test_never_worse_than_the_start(backend: str, case: tuple[Problem, Sparse], seed: int) -> None:
    problem, constraint = case
    start = np.random.default_rng(seed).normal(size=problem.shape)
    result = solve(problem, constraint, start=start, stop=NEVER, backend=backend)
    f = problem.objective(constraint.project(start))
    assert result.objective <= f * (1 + 1e-12)
    assert result.objectives[0] == pytest.approx(f, rel=1e-12, abs=1e-300)


@given(st.data())
def test_start_is_wandas_choice_or_the_projection(data: st.DataObject) -> None:
    problem = data.draw(problems((3, 8)))
    k = data.draw(st.integers(0, 8))
    for constraint in (Sparse(RowSparse(k)), Sparse(RowSparse(k), IntGrid(4, 4))):
        first = solve(problem, constraint, stop=Stop(max_iter=0), backend="numpy")
        np.testing.assert_array_equal(first.theta, wanda(problem, constraint, engine=ENGINE))
        assert first.n_iter == 0
    dense = Sparse(Dense(), IntGrid(4, 4))
    first = solve(problem, dense, stop=Stop(max_iter=0), backend="numpy")
    np.testing.assert_array_equal(first.theta, magnitude(problem, dense, engine=ENGINE))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_encoding_decodes_to_theta(backend: str, data: st.DataObject, dtype: str) -> None:
    problem, constraint = data.draw(cases(dtype, **SMALL))
    result = solve(problem, constraint, stop=Stop(max_iter=3), backend=backend)
    encoding, grid = result.encoding, constraint.values
    assert (encoding.mask is None) == isinstance(constraint.support, Dense)
    if encoding.mask is not None:
        np.testing.assert_array_equal(encoding.mask, result.theta != 0)
    if isinstance(grid, BoundGrid):
        np.testing.assert_array_equal(grid.decode(encoding.codes), result.theta)
        np.testing.assert_array_equal(encoding.scales, grid.scales)
    else:
        assert encoding.codes is None and encoding.scales is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_low_rank_is_solved_in_closed_form(backend: str, data: st.DataObject, dtype: str) -> None:
    problem = data.draw(problems((4, 6), dtype))
    rank = data.draw(st.integers(0, 4))
    result = solve(problem, LowRank(rank), backend=backend)
    assert (result.reason, result.n_iter, result.converged) == ("closed form", 0, True)
    assert result.encoding.left.shape == (4, rank) and result.encoding.right.shape == (rank, 6)
    np.testing.assert_array_equal(result.theta, result.encoding.left @ result.encoding.right)
    plain = problem.objective(LowRank(rank).project(problem.weight))
    assert result.objective <= plain + F_TOLERANCE[dtype] * problem.objective(np.zeros_like(problem.weight))


def test_stops_where_nothing_can_move(backend: str) -> None:
    problem = Problem(np.array([[1.0, 2.0]]), np.eye(2))
    dense = solve(problem, Sparse(Dense()), backend=backend)
    assert (dense.reason, dense.n_iter, dense.objective, dense.converged) == ("gradient", 0, 0.0, True)
    sparse = solve(problem, Sparse(RowSparse(1)), method=pgd(1.0), backend=backend)
    assert (sparse.reason, sparse.n_iter, sparse.converged) == ("fixed point", 1, True)
    nothing = solve(problem, Sparse(RowSparse(0)), backend=backend)
    assert (nothing.reason, nothing.objective) == ("fixed point", 2.5)


def test_degenerate_layers(backend: str) -> None:
    # C = 0: every point is optimal. W = 0: so is the start.
    flat = solve(Problem(np.ones((2, 4)), np.zeros((4, 4))), Sparse(NM(2, 4)), backend=backend)
    assert flat.objective == 0 and np.count_nonzero(flat.theta) == 4
    empty = solve(Problem(np.zeros((2, 4)), np.eye(4)), Sparse(NM(2, 4), IntGrid(4, 4)), backend=backend)
    assert empty.objective == 0 and not empty.theta.any()


def test_divergence_is_noticed_and_the_best_iterate_kept(backend: str) -> None:
    problem = Problem(
        np.array([[1.0, 1.0, 0.9]]), np.array([[2.0, 1.0, 0.5], [1.0, 2.0, 1.0], [0.5, 1.0, 2.0]])
    )
    with np.errstate(over="ignore", invalid="ignore"):
        result = solve(problem, Sparse(RowSparse(2)), method=pgd(1e10), backend=backend)
    assert (result.reason, result.converged) == ("diverged", False)
    assert result.objective == result.objectives[0] and result.n_iter < 200


def test_a_refitted_grid_that_a_long_step_drives_past_float16_ends_the_run() -> None:
    problem = Problem(make_weight("normal", (4, 16), "float64", seed=0), 100 * np.eye(16))
    grid = Sparse(Dense(), IntGrid(4, 16, half_scales=True))
    result = solve(problem, grid, method=pgd(1.0, refit=True), backend="numpy")
    assert (result.reason, result.converged) == ("diverged", False)
    assert result.objective == min(result.objectives)


CLASHES = {
    "k (nonzeros per row) must lie between 0 and 4": (Sparse(RowSparse(5)), {}),
    "rank must lie in 0..2": (LowRank(3), {}),
    "start has shape (2, 3)": (Sparse(RowSparse(2)), {"start": np.ones((2, 3))}),
    "start holds nan": (Sparse(RowSparse(2)), {"start": np.full((2, 4), np.nan)}),
    "no feasible iterate": (Sparse(RowSparse(2)), {"method": pgd(ramp=9), "stop": Stop(5)}),
}


@pytest.mark.parametrize("message", CLASHES)
def test_clashing_arguments(backend: str, message: str) -> None:
    constraint, options = CLASHES[message]
    with pytest.raises(ValueError) as caught:
        solve(Problem(np.ones((2, 4)), np.eye(4)), constraint, backend=backend, **options)
    assert str(caught.value).startswith(message)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend must be auto, numpy or native, got 'fast'"):
        solve(Problem(np.ones((2, 4)), np.eye(4)), Sparse(RowSparse(2)), backend="fast")


# ------------------------------------------------------------------------------------------------ IHT
@given(st.data())
def test_small_steps_decrease_the_objective_every_time(data: st.DataObject) -> None:
    problem = data.draw(problems((3, 8)))
    lipschitz = problem.lipschitz()
    assume(lipschitz > 0)
    constraint = data.draw(sparse_sets(problem.shape)).bind(problem.weight)
    result = solve(problem, constraint, method=pgd(0.99 / lipschitz), stop=NEVER, backend="numpy")
    size = problem.objective(np.zeros(problem.shape)) + result.objectives[0]
    assert (np.diff(result.objectives) <= 1e-12 * size).all()


@given(st.data())
def test_iht_lies_between_the_optimum_and_wanda(data: st.DataObject) -> None:
    weight = data.draw(weights((2, 7), kinds=("normal", "heavy tails", "ties")))
    problem = Problem(weight, data.draw(grams(7, kinds=("samples", "singular", "spiked", "log spectrum"))))
    k = data.draw(st.integers(0, 7))
    result = solve(problem, Sparse(RowSparse(k)), backend="numpy")
    best = best_sparse_objective(problem, k)
    size = problem.objective(np.zeros(problem.shape))
    assert best - 1e-9 * size <= result.objective
    assert result.objective <= problem.objective(wanda(problem, Sparse(RowSparse(k)), engine=ENGINE))


def test_iht_finds_the_optimum_of_well_conditioned_layers() -> None:
    rng = np.random.default_rng(0)
    gaps, starts = [], []
    for _ in range(20):
        inputs = rng.normal(size=(400, 8))
        problem = Problem(rng.normal(size=(1, 8)), inputs.T @ inputs / 400)
        best = best_sparse_objective(problem, 4)
        gaps.append(solve(problem, Sparse(RowSparse(4)), backend="numpy").objective / best)
        starts.append(problem.objective(wanda(problem, Sparse(RowSparse(4)), engine=ENGINE)) / best)
    assert np.median(gaps) < 1.0005 and max(gaps) < 1.1
    assert np.median(starts) > 1.005  # the start was not the optimum already


@pytest.mark.parametrize(
    "support", [RowSparse(16), NM(2, 4), BalancedBlock(4, 8), BlockSparse(2, 4, 4), Dense()], ids=str
)
@pytest.mark.parametrize("bits", [None, 4])
def test_pgd_beats_its_start_on_correlated_inputs(backend: str, support: object, bits: int | None) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(256, 32)) @ rng.normal(size=(32, 32))
    problem = Problem(rng.normal(size=(8, 32)), inputs.T @ inputs / 256)
    constraint = Sparse(support) if bits is None else Sparse(support, IntGrid(bits, 16))
    result = solve(problem, constraint, backend=backend)
    if support != Dense():  # rounding to nearest is a fixed point of short steps
        assert 0 < result.objective < 0.95 * result.objectives[0]


@pytest.mark.parametrize("kept", [8, 16])
def test_refitting_the_grid_leaves_round_to_nearest_where_a_frozen_grid_does_not(
    backend: str, kept: int
) -> None:
    """A frozen grid holds descent at its start here; a refitted one moves on, and says on which grid it ended."""
    rng = np.random.default_rng(7)
    inputs = rng.standard_normal((64, 16)) * np.geomspace(0.3, 3, 16)
    problem = Problem(rng.standard_normal((24, 16)), inputs.T @ inputs / 64)
    constraint = Sparse(RowSparse(kept), IntGrid(3, 8))
    frozen = solve(problem, constraint, start=problem.weight, stop=Stop(20), backend=backend)
    refitted = solve(
        problem, constraint, method=pgd(refit=True), start=problem.weight, stop=Stop(20), backend=backend
    )
    assert refitted.objective < 0.99 * frozen.objective
    spec = IntGrid(3, 8)
    assert refitted.encoding.scales is not None and refitted.encoding.zeros is not None
    grid = BoundGrid(spec, refitted.encoding.scales, refitted.encoding.zeros)
    assert np.array_equal(grid.decode(refitted.encoding.codes), refitted.theta)
    assert np.count_nonzero(refitted.theta, axis=1).max() <= kept


def test_a_grid_of_another_precision_than_the_weights_holds_what_is_found(backend: str) -> None:
    weight = make_weight("normal", (6, 32), "float32", seed=0)
    grid = IntGrid(4, 8).fit(weight.astype(np.float64))
    problem, constraint = Problem(weight, np.eye(32, dtype=np.float32)), Sparse(RowSparse(12), grid)
    found = solve(problem, constraint, stop=Stop(8), backend=backend)
    assert constraint.contains(found.theta)
    assert found.objective == pytest.approx(problem.objective(found.theta), rel=1e-5)
