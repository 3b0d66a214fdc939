"""T02: a step below 1/L decreases f and the moves die out, on any closed set (proofs/T02_descent.md)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from strategies import cases, problems

from awp_edge import NM, IntGrid, LowRank, Problem, RowSparse, Sparse, Stop, pgd, solve, theory
from awp_edge.constraints import Constraint

Case = tuple[Problem, Sparse]
SMALL = {"max_out": 3, "max_in": 8}
SHARES = st.sampled_from((0.3, 0.9, 0.999))


def step_below(problem: Problem, share: float) -> float:
    """Return share / L; skip C = 0, where every step is as good."""
    lipschitz = problem.lipschitz()
    assume(lipschitz > 1e-200)
    return share / lipschitz


def thetas(problem: Problem, constraint: Constraint, *, step: float, n: int) -> list[np.ndarray]:
    """Return the iterates of the projected gradient method, straight from its definition."""
    found = [constraint.project(problem.weight)]
    for _ in range(n):
        found.append(constraint.project(found[-1] - step * problem.gradient(found[-1])))
    return found


def rounding(problem: Problem, first: np.ndarray) -> float:
    return 1e-12 * (problem.objective(np.zeros(problem.shape)) + problem.objective(first))


@given(cases(**SMALL), SHARES)
def test_every_step_decreases_enough(case: Case, share: float) -> None:
    problem, constraint = case
    step = step_below(problem, share)
    path = thetas(problem, constraint, step=step, n=6)
    check_decrease(problem, path, step=step)


@given(problems((3, 5)), st.integers(0, 3), SHARES)
def test_low_rank_sets_are_closed_too(problem: Problem, rank: int, share: float) -> None:
    step = step_below(problem, share)
    check_decrease(problem, thetas(problem, LowRank(rank), step=step, n=6), step=step)


def check_decrease(problem: Problem, path: list[np.ndarray], *, step: float) -> None:
    lipschitz, slack = problem.lipschitz(), rounding(problem, path[0])
    for before, after in itertools.pairwise(path):
        moved = after - before
        fell = problem.objective(before) - problem.objective(after)
        exact = theory.exact_decrease(moved, problem.gram, step=step)
        assert fell >= exact - slack
        assert exact >= theory.sufficient_decrease(moved, step=step, lipschitz=lipschitz) - slack
        if moved.any():
            event("tight within 4" if fell <= 4 * exact else "loose")


@given(cases(**SMALL), st.sampled_from((0.5, 1.0, 1.5, 1.9, 5.0)))
def test_the_exact_form_holds_for_every_step(case: Case, share: float) -> None:
    problem, constraint = case
    step = step_below(problem, share)
    path = thetas(problem, constraint, step=step, n=4)
    for before, after in itertools.pairwise(path):
        fell = problem.objective(before) - problem.objective(after)
        slack = 1e-11 * (problem.objective(before) + problem.objective(after)) + rounding(problem, path[0])
        assert fell >= theory.exact_decrease(after - before, problem.gram, step=step) - slack


@given(cases(**SMALL), SHARES, st.integers(1, 12))
def test_the_smallest_move_obeys_the_rate(case: Case, share: float, n: int) -> None:
    problem, constraint = case
    step, lipschitz = step_below(problem, share), problem.lipschitz()
    path = thetas(problem, constraint, step=step, n=n)
    moves = [float(np.sum((after - before) ** 2)) for before, after in itertools.pairwise(path)]
    gap = problem.objective(path[0]) + rounding(problem, path[0])  # inf f >= 0
    assert min(moves) <= theory.smallest_move(gap, step=step, lipschitz=lipschitz, n_steps=n) * (1 + 1e-9)


@given(case=cases(**SMALL), share=SHARES)
def test_solve_is_monotone_on_both_backends(backend: str, case: Case, share: float) -> None:
    problem, constraint = case
    result = solve(
        problem, constraint, method=pgd(step_below(problem, share)), stop=Stop(10, tol=0), backend=backend
    )
    slack = 1e-12 * (problem.objective(np.zeros(problem.shape)) + result.objectives[0])
    assert (np.diff(result.objectives) <= slack).all()
    assert result.objective <= result.objectives[-1] + slack  # the last iterate is as good as the best


def correlated(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(40, 12)) @ rng.normal(size=(12, 12))
    return Problem(rng.normal(size=(4, 12)), inputs.T @ inputs / 40)


def test_the_bounds_are_informative() -> None:
    ratios, shrunk = [], []
    for seed in range(20):
        problem = correlated(seed)
        step, lipschitz = 0.9 / problem.lipschitz(), problem.lipschitz()
        path = thetas(problem, Sparse(RowSparse(6)), step=step, n=200)
        fell = problem.objective(path[0]) - problem.objective(path[1])
        ratios.append(theory.exact_decrease(path[1] - path[0], problem.gram, step=step) / fell)
        bound = theory.smallest_move(problem.objective(path[0]), step=step, lipschitz=lipschitz, n_steps=200)
        shrunk.append(bound / float(np.sum((path[1] - path[0]) ** 2)))
    assert max(ratios) <= 1 and np.median(ratios) > 0.3  # a third of the decrease is promised in advance
    assert np.median(shrunk) < 1  # the rate says more than that moves are bounded


def test_the_rate_is_within_four_of_the_truth_somewhere() -> None:
    # C = I, nothing constrained, eta = 1/2, one step: ||D||^2 = f_0 / 2 where the bound says 2 f_0.
    problem = Problem(np.array([[3.0, -1.0]]), np.eye(2))
    gap = problem.objective(np.zeros((1, 2)))
    moved = -0.5 * problem.gradient(np.zeros((1, 2)))
    bound = theory.smallest_move(gap, step=0.5, lipschitz=1.0, n_steps=1)
    assert bound / 4.01 < float(np.sum(moved * moved)) <= bound


@pytest.mark.parametrize("share", [1.4, 1.9])
def test_steps_above_one_over_l_break_it(share: float) -> None:
    # Negative control: the same check fails somewhere as soon as eta > 1/L.
    rises = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        problem = Problem(rng.normal(size=(4, 4)), np.eye(4) + 0.1 * np.ones((4, 4)))
        for constraint in (Sparse(RowSparse(2)), Sparse(NM(1, 2), IntGrid(2, 4)).bind(problem.weight)):
            path = thetas(problem, constraint, step=share / problem.lipschitz(), n=6)
            objectives = [problem.objective(theta) for theta in path]
            rises += any(b > a * (1 + 1e-9) for a, b in itertools.pairwise(objectives))
    assert rises >= 10
    with pytest.raises(ValueError, match="not below 1/L"):
        theory.smallest_move(1.0, step=share, lipschitz=1.0, n_steps=5)


def test_an_inexact_projection_breaks_it() -> None:
    # Negative control: keep the smallest entries instead of the largest and f rises although eta < 1/L.
    problem = Problem(np.array([[3.0, 1.0]]), np.eye(2))
    theta = np.array([[3.0, 0.0]])
    z = theta - 0.5 * problem.gradient(theta)
    wrong = np.where(np.abs(z) == np.abs(z).min(), z, 0)
    assert problem.objective(wrong) > problem.objective(theta)
