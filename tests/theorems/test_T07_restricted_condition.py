"""T07: a restricted condition number below 2 comes near the best row (proofs/T07_restricted_condition.md)."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from oracles import best_sparse_objective
from strategies import GRAM_KINDS, ORDINARY, gentle_grams, grams, make_gram, make_weight, weights

from awp_edge import Problem, RowSparse, Sparse, Stop, pgd, solve, theory

KINDS = tuple(kind for kind in ORDINARY if kind != "scales")


def one_step(problem: Problem, theta: np.ndarray, k: int, *, step: float) -> np.ndarray:
    return Sparse(RowSparse(k)).project(theta - step * problem.gradient(theta))


@given(grams(7), weights((1, 7), kinds=KINDS), st.integers(0, 7), st.sampled_from((0.5, 1.0)))
def test_one_step_on_any_gram(gram: np.ndarray, weight: np.ndarray, k: int, share: float) -> None:
    alpha, beta = theory.restricted_eigenvalues(gram, 2 * k)
    assume(beta > 1e-9 and alpha > 1e-9 * beta and k > 0)
    problem, step = Problem(weight, gram), share / beta
    best = best_sparse_objective(problem, k)
    theta = Sparse(RowSparse(k)).project(weight)
    size = problem.objective(np.zeros_like(weight))
    for _ in range(4):
        after = one_step(problem, theta, k, step=step)
        f = problem.objective(theta)
        bound = theory.grades_bound(f, best, kappa=1 / (step * alpha))
        assert problem.objective(after) <= bound + 1e-10 * (size + f)
        event("informative" if bound < f else "void")
        theta = after


@given(gram=gentle_grams(8, 1.8), weight=weights((1, 8), kinds=KINDS), k=st.integers(1, 7))
def test_the_limit_is_near_the_best(backend: str, gram: np.ndarray, weight: np.ndarray, k: int) -> None:
    alpha, beta = theory.restricted_eigenvalues(gram, 2 * k)
    problem = Problem(weight, gram)
    result = solve(
        problem, Sparse(RowSparse(k)), method=pgd(1 / beta), stop=Stop(300, tol=0), backend=backend
    )
    best, size = best_sparse_objective(problem, k), problem.objective(np.zeros_like(weight))
    limit = theory.grades_limit(best, kappa=beta / alpha)
    assert best - 1e-9 * size <= result.objectives[-1] <= limit * (1 + 1e-6) + 1e-9 * size
    event("informative" if limit < size else "void")


@given(gram=gentle_grams(8, 1.8), weight=weights((1, 8), kinds=("normal", "ties")), k=st.integers(1, 4))
def test_an_exactly_sparse_row_is_found(backend: str, gram: np.ndarray, weight: np.ndarray, k: int) -> None:
    planted = Sparse(RowSparse(k)).project(weight)
    alpha, beta = theory.restricted_eigenvalues(gram, 2 * k)
    problem, start = Problem(planted, gram), np.zeros_like(planted)
    method, stop = pgd(1 / beta), Stop(8, tol=0)
    result = solve(problem, Sparse(RowSparse(k)), start=start, method=method, stop=stop, backend=backend)
    factor = beta / alpha - 1
    for before, after in pairwise(result.objectives):
        assert after <= factor * before + 1e-12 * result.objectives[0]


@given(grams(6), st.integers(0, 6))
def test_restricted_eigenvalues_by_hand(gram: np.ndarray, size: int) -> None:
    alpha, beta = theory.restricted_eigenvalues(gram, size)
    for chosen in combinations(range(6), size):
        values = np.linalg.eigvalsh(gram[np.ix_(chosen, chosen)]) if size else np.array([])
        assert all(alpha * (1 - 1e-9) - 1e-12 <= v <= beta * (1 + 1e-9) + 1e-12 for v in values if v > 0)
    if size >= 2 and alpha > 1e-9 * beta:
        assert beta >= theory.restricted_condition_floor(gram) * alpha * (1 - 1e-6)


@pytest.mark.parametrize("kind", sorted(GRAM_KINDS.keys() - {"identity", "zero"}))
def test_at_half_sparsity_it_is_the_condition_of_all_of_c(kind: str) -> None:
    gram = make_gram(kind, 8, "float64", seed=1)
    alpha, beta = theory.restricted_eigenvalues(gram, 8)  # k = d/2
    values = np.linalg.eigvalsh(gram)
    assert alpha == pytest.approx(max(values[0], 0), abs=1e-12) and beta == pytest.approx(values[-1])
    condition = beta / alpha if alpha > 0 else np.inf
    assert condition > 2 and theory.grades_limit(1.0, kappa=condition) == np.inf  # void on every kind
    assert theory.restricted_condition_floor(gram) > 2  # already from the pairs: void for k = 1 too


def test_the_bounds_are_informative() -> None:
    # White inputs, many tokens: the limit is promised within a factor, and one step cuts f.
    ratios = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        inputs = rng.normal(size=(3000, 8))
        problem = Problem(make_weight("heavy tails", (1, 8), "float64", seed=seed), inputs.T @ inputs / 3000)
        alpha, beta = theory.restricted_eigenvalues(problem.gram, 4)
        best = best_sparse_objective(problem, 2)
        result = solve(problem, Sparse(RowSparse(2)), method=pgd(1 / beta), backend="numpy")
        limit = theory.grades_limit(best, kappa=beta / alpha)
        assert limit < 3 * best and beta / alpha < 1.3
        ratios.append(result.objectives[-1] / best)
        start = np.zeros((1, 8))
        after = problem.objective(one_step(problem, start, 2, step=1 / beta))
        f = problem.objective(start)
        assert after <= theory.grades_bound(f, best, kappa=beta / alpha)
    assert max(ratios) < 1.1


# ------------------------------------------------------------------------------------------------ negative controls
def test_the_bound_is_within_five_of_the_truth_somewhere() -> None:
    # C = diag(1, kappa), one weight on the flat input, from zero: f falls to (1 - 1/kappa)^2 f; bound: (kappa - 1) f.
    kappa = 1.9
    problem, constraint = Problem(np.array([[1.0, 0.0]]), np.diag([1.0, kappa])), Sparse(RowSparse(1))
    start = np.zeros((1, 2))
    after = problem.objective(constraint.project(start - problem.gradient(start) / kappa))
    bound = theory.grades_bound(problem.objective(start), 0.0, kappa=kappa)
    assert bound / 5 < after <= bound


def test_longer_steps_break_it() -> None:
    problem, best = Problem(np.ones((1, 2)), np.eye(2)), 0.5
    theta = np.array([[1.0, 0.0]])
    after = problem.objective(one_step(problem, theta, 1, step=1.9))
    assert after > theory.grades_bound(0.5, best, kappa=1.0)  # kappa_2 = 1, but eta = 1.9 / beta_2


def test_an_ill_conditioned_gram_breaks_the_limit() -> None:
    # The trap of T04 (d): with kappa = M the limit is M times the best; no bound that ignores kappa can hold.
    problem = Problem(np.ones((1, 2)), np.diag([1.0, 50.0]))
    end = solve(
        problem, Sparse(RowSparse(1)), start=np.array([[1.0, 0]]), method=pgd(1 / 50), backend="numpy"
    ).objectives[-1]
    assert end == pytest.approx(25) and end > theory.grades_limit(0.5, kappa=1.7)
    assert theory.grades_limit(0.5, kappa=50.0) == np.inf
