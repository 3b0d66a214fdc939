"""T06: a linear rate once the support is found, and what 200 steps leave (proofs/T06_linear_rate.md)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from oracles import refit
from strategies import ORDINARY, SEEDS, grams, make_gram, make_weight, weights

from awp_edge import NM, Dense, Problem, RowSparse, Sparse, Stop, pgd, solve, theory

NO_DECADES = tuple(kind for kind in ORDINARY if kind != "scales")


def restricted(gram: np.ndarray, row: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return C_SS and the refitted row on S: the least-squares problem that a settled support leaves."""
    return gram[np.ix_(kept, kept)], refit(gram, row, np.isin(np.arange(len(row)), kept))[kept]


@given(
    grams(7), weights((1, 7), kinds=NO_DECADES), st.integers(1, 7), SEEDS, st.sampled_from((0.2, 1.0, 1.9))
)
def test_the_excess_falls_at_the_rate(
    gram: np.ndarray, weight: np.ndarray, k: int, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.permutation(7)[:k])
    inner, best = restricted(gram, weight[0], kept)
    largest = float(np.linalg.eigvalsh(inner)[-1])
    assume(largest > 1e-9)
    step, theta = share / largest, rng.normal(size=k)
    problem = Problem(best[None], inner)  # f - f_S on the support
    rate = theory.linear_rate(inner, step=step)
    assert 0 <= rate < 1 + 1e-12
    excess = [problem.objective(theta[None])]
    for _ in range(12):
        theta = theta - step * problem.gradient(theta[None])[0]
        excess.append(problem.objective(theta[None]))
    noise = 1e-10 * largest * float(best @ best + theta @ theta + 1)
    assert all(after <= rate**2 * before + noise for before, after in pairwise(excess))
    event("informative" if rate < 0.99 else "slow")


@given(grams(7), weights((1, 7), kinds=NO_DECADES), SEEDS, st.integers(1, 30), st.sampled_from((0.3, 1.0)))
def test_the_residue_needs_no_condition_number(
    gram: np.ndarray, weight: np.ndarray, seed: int, n: int, share: float
) -> None:
    lipschitz = float(np.linalg.eigvalsh(gram)[-1])
    assume(lipschitz > 1e-9)
    problem, theta = Problem(weight, gram), np.random.default_rng(seed).normal(size=(1, 7))
    step, distance = share / lipschitz, float(np.sum((theta - weight) ** 2))
    for _ in range(n):
        theta = theta - step * problem.gradient(theta)
    bound = theory.excess_after(distance, step=step, n_steps=n)
    assert problem.objective(theta) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("n", [1, 10, 200])
def test_the_residue_is_reached(n: int, backend: str) -> None:
    # A direction of energy L / (2n + 1) next to one of energy L = 1.
    problem = Problem(np.array([[0.0, 1.0]]), np.diag([1.0, 1 / (2 * n + 1)]))
    result = solve(
        problem,
        Sparse(Dense()),
        start=np.zeros((1, 2)),
        method=pgd(1.0),
        stop=Stop(n, tol=0),
        backend=backend,
    )
    bound = theory.excess_after(1.0, step=1.0, n_steps=n)
    assert 0.8 * bound < result.objective <= bound


def test_two_hundred_steps_are_not_a_refit(backend: str) -> None:
    problem = Problem(np.array([[0.0, 1.0]]), np.diag([1.0, 1 / 400]))
    result = solve(
        problem,
        Sparse(Dense()),
        start=np.zeros((1, 2)),
        method=pgd(1.0),
        backend=backend,
        stop=Stop(200, tol=0),
    )
    assert result.objective / result.objectives[0] == pytest.approx(np.exp(-1), rel=0.01)
    assert theory.linear_rate(problem.gram, step=1.0) ** 400 == pytest.approx(np.exp(-1), rel=0.01)


@given(
    gram=grams(7),
    weight=weights((1, 7), kinds=("normal", "heavy tails", "positive")),
    k=st.integers(1, 6),
    seed=SEEDS,
    far=st.booleans(),
)
def test_near_a_strict_fixed_point_the_support_is_found(
    gram: np.ndarray, weight: np.ndarray, k: int, seed: int, *, far: bool
) -> None:
    lipschitz = float(np.linalg.eigvalsh(gram)[-1])
    assume(lipschitz > 1e-9)
    rng, problem = np.random.default_rng(seed), Problem(weight, gram)
    theta = refit(gram, weight[0], np.isin(np.arange(7), rng.permutation(7)[:k]))
    gradient = problem.gradient(theta[None])[0]
    assume(np.count_nonzero(theta) == k)
    assume(np.abs(gradient[theta != 0]).max() <= 1e-9 * lipschitz * np.abs(theta).max())
    step = 0.9 / lipschitz
    radius = theory.identification_radius(theta, gradient, step=step)
    assume(radius > 1e-6 * np.abs(theta).max())
    start = theta + (1 if far else 1e-3) * 0.99 * radius * unit(rng.normal(size=7))
    start = Sparse(RowSparse(k)).project(start[None])
    assume(float(np.linalg.norm(start - theta)) < radius)
    constraint = Sparse(RowSparse(k))
    for _ in range(5):
        start = constraint.project(start - step * problem.gradient(start))
        np.testing.assert_array_equal(start[0] != 0, theta != 0)
        assert float(np.linalg.norm(start - theta)) < radius


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("support", [RowSparse(6), NM(2, 4)], ids=str)
def test_whole_runs_settle_and_then_obey_the_rate(backend: str, support: object) -> None:
    # Informative: from the point where the support settles, the rate is nearly attained.
    weight, gram = (
        make_weight("normal", (1, 12), "float64", seed=4),
        make_gram("samples", 12, "float64", seed=4),
    )
    problem, constraint = Problem(weight, gram), Sparse(support)
    step = 0.9 / problem.lipschitz()
    full = solve(problem, constraint, method=pgd(step), stop=Stop(4000, tol=0), backend=backend)
    kept = np.flatnonzero(full.theta[0])
    inner, _ = restricted(gram, weight[0], kept)
    best = problem.objective(refit(gram, weight[0], full.theta[0] != 0)[None])
    rate = theory.linear_rate(inner, step=step)
    middle = solve(problem, constraint, method=pgd(step), stop=Stop(60, tol=0), backend=backend)
    np.testing.assert_array_equal(np.flatnonzero(middle.theta[0]), kept)
    excess = middle.objectives[60] - best
    later = full.objectives[80] - best
    assert later <= rate**40 * excess * (1 + 1e-6) + 1e-13
    assert later >= 0.5 * rate**40 * excess


# ------------------------------------------------------------------------------------------------ negative controls
def test_beyond_two_over_l_it_diverges() -> None:
    gram = np.diag([1.0, 0.1])
    assert theory.linear_rate(gram, step=2.1) > 1
    problem, theta = Problem(np.zeros((1, 2)), gram), np.ones((1, 2))
    after = theta - 2.1 * problem.gradient(theta)
    assert problem.objective(after) > problem.objective(theta)


def test_dead_directions_do_not_slow_it_but_counting_them_would_void_it() -> None:
    gram = np.diag([1.0, 0.5, 0.0])
    assert theory.linear_rate(gram, step=1.0) == 0.5
    assert theory.linear_rate(np.zeros((0, 0)), step=1.0) == 0


def test_outside_the_radius_another_support_may_win() -> None:
    problem, theta = Problem(np.ones((1, 2)), np.eye(2)), np.array([[1.0, 0.0]])
    radius = theory.identification_radius(theta[0], problem.gradient(theta)[0], step=0.5)
    assert radius == 0.25
    start = np.array([[0.0, 1.0]])  # the other solution, at distance sqrt 2
    after = Sparse(RowSparse(1)).project(start - 0.5 * problem.gradient(start))
    np.testing.assert_array_equal(after, start)
