"""T12: C estimated from n tokens, and what damping buys (proofs/T12_estimated_gram.md)."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from oracles import best_sparse_objective, refit
from strategies import SEEDS, make_weight, weights

from awp_edge import Problem, theory

D = 4
KINDS = ("normal", "ties", "sparse", "positive", "zero rows")


def population(seed: int, m: int, d: int = D) -> np.ndarray:
    """Return m equally likely inputs with one strong direction."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, d)) * (1 + 4 * (np.arange(d) == 0)) + rng.normal(size=(m, 1))


def moment(inputs: np.ndarray) -> np.ndarray:
    return inputs.T @ inputs / len(inputs)


def fourth(inputs: np.ndarray) -> float:
    return float(np.mean(np.sum(inputs**2, axis=1) ** 2))


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b, 2))


@given(SEEDS, st.integers(1, 4), st.integers(1, 4), weights((2, D), kinds=KINDS))
def test_mean_and_variance_over_all_samples(seed: int, m: int, n: int, weight: np.ndarray) -> None:
    inputs = population(seed, m)
    gram = moment(inputs)
    estimates = [moment(inputs[list(drawn)]) for drawn in product(range(m), repeat=n)]  # all equally likely
    np.testing.assert_allclose(np.mean(estimates, axis=0), gram, atol=1e-9)
    squares = [float(np.sum((c - gram) ** 2)) for c in estimates]
    predicted = theory.gram_mean_square_error(fourth(inputs), gram, n)
    assert np.mean(squares) == pytest.approx(predicted, rel=1e-9, abs=1e-9)
    for probability in (0.5, 0.1):
        limit = theory.gram_error(predicted, probability)
        assert np.mean(np.sqrt(squares) > limit * (1 + 1e-9) + 1e-9) <= probability
    errors = [Problem(weight, c).objective(np.zeros((2, D))) for c in estimates]
    single = [Problem(weight, moment(x[None])).objective(np.zeros((2, D))) for x in inputs]
    assert np.var(errors) == pytest.approx(np.var(single) / n, rel=1e-6, abs=1e-9)


@given(SEEDS, st.integers(1, 60), weights((2, D), kinds=KINDS), SEEDS)
def test_the_objective_is_off_by_no_more(seed: int, n: int, weight: np.ndarray, other: int) -> None:
    inputs = population(seed, 200)
    true, estimate = moment(inputs), moment(inputs[:n])
    theta = np.random.default_rng(other).normal(size=(2, D))
    off = abs(Problem(weight, true).objective(theta) - Problem(weight, estimate).objective(theta))
    bound = theory.objective_error(gap(true, estimate), float(np.sum((weight - theta) ** 2)))
    assert off <= bound * (1 + 1e-9)
    event("informative" if off > bound / 20 else "loose")


@given(SEEDS, st.integers(1, 60), weights((1, D), kinds=("normal", "ties", "positive")), st.integers(1, D))
def test_damping_as_large_as_the_error_is_safe(seed: int, n: int, weight: np.ndarray, k: int) -> None:
    inputs = population(seed, 200)
    true, estimate = moment(inputs), moment(inputs[:n])
    damping = gap(true, estimate)
    damped = estimate + damping * np.eye(D)
    problem = Problem(weight, true)
    rows = [
        refit(damped, weight[0], np.array(mask))
        for mask in product((False, True), repeat=D)
        if sum(mask) <= k
    ]
    found = min(rows, key=lambda theta: Problem(weight, damped).objective(theta[None]))
    assert (
        problem.objective(found[None]) <= Problem(weight, damped).objective(found[None]) * (1 + 1e-9) + 1e-9
    )
    best = [
        refit(true, weight[0], np.array(mask)) for mask in product((False, True), repeat=D) if sum(mask) <= k
    ]
    target = min(best, key=lambda theta: problem.objective(theta[None]))
    excess = problem.objective(found[None]) - problem.objective(target[None])
    assert excess <= theory.damped_excess(damping, float(np.sum((weight - target) ** 2))) + 1e-9
    values = np.linalg.eigvalsh(estimate)
    assert np.linalg.cond(damped) <= (values[-1] + damping) / (max(values[0], 0) + damping) * (1 + 1e-6)


@given(SEEDS, weights((1, D), kinds=("normal", "positive")), st.integers(1, D - 1))
def test_a_relative_error_costs_a_factor(seed: int, weight: np.ndarray, k: int) -> None:
    true, estimate = moment(population(seed, 400)), moment(population(seed, 400)[:300])
    root = np.linalg.inv(np.linalg.cholesky(true))
    values = np.linalg.eigvalsh(root @ estimate @ root.T)
    e = max(1 - values[0], values[-1] - 1)
    rows = [
        refit(estimate, weight[0], np.array(mask))
        for mask in product((False, True), repeat=D)
        if sum(mask) == k
    ]
    found = min(rows, key=lambda theta: Problem(weight, estimate).objective(theta[None]))
    problem = Problem(weight, true)
    assert e < 1
    assert problem.objective(found[None]) <= (1 + e) / (1 - e) * best_sparse_objective(problem, k) * (
        1 + 1e-9
    )


def test_the_bounds_are_informative() -> None:
    # The Frobenius prediction is met, and the error falls as 1 / sqrt n.
    inputs = population(1, 4000, d=12)
    gram, rng = moment(inputs), np.random.default_rng(0)
    for n in (100, 400):
        found = [np.linalg.norm(moment(inputs[rng.integers(0, 4000, n)]) - gram) for _ in range(60)]
        predicted = theory.gram_mean_square_error(fourth(inputs), gram, n)
        assert np.sqrt(np.mean(np.square(found))) == pytest.approx(np.sqrt(predicted), rel=0.15)
        assert np.mean(np.array(found) > theory.gram_error(predicted, 0.1)) <= 0.1


def test_the_cited_tail() -> None:
    inputs = population(2, 500)
    gram, rng = moment(inputs), np.random.default_rng(0)
    largest, bound = float(np.linalg.eigvalsh(gram)[-1]), float(np.sum(inputs**2, axis=1).max())
    gaps = np.array([gap(moment(inputs[rng.integers(0, 500, 2000)]), gram) for _ in range(200)])
    for deviation in (0.1 * largest, 0.3 * largest, 0.5 * largest):
        tail = theory.bernstein_tail(deviation, n_tokens=2000, bound=bound, lipschitz=largest, d=D)
        assert np.mean(gaps >= deviation) <= tail
    assert theory.bernstein_tail(0.5 * largest, n_tokens=2000, bound=bound, lipschitz=largest, d=D) < 1e-3


# ------------------------------------------------------------------------------------------------ negative controls
def test_without_damping_few_tokens_promise_anything() -> None:
    inputs, weight = population(3, 500, d=8), make_weight("normal", (1, 8), "float64", seed=0)
    true, estimate = moment(inputs), moment(inputs[:4])
    support = np.arange(8) >= 4  # as many inputs as tokens: the fit is perfect on them
    undamped = refit(estimate, weight[0], support)
    measured = Problem(weight, estimate).objective(undamped[None])
    assert measured < 1e-9 and Problem(weight, true).objective(undamped[None]) > 0.1
    damping = gap(true, estimate)
    damped = refit(estimate + damping * np.eye(8), weight[0], support)
    assert Problem(weight, true).objective(damped[None]) < Problem(weight, true).objective(undamped[None])


def test_damping_below_the_error_may_understate() -> None:
    inputs = population(5, 500)
    true, estimate = moment(inputs), moment(inputs[:3])
    values, vectors = np.linalg.eigh(true - estimate)
    weight, theta = vectors[:, -1][None], np.zeros((1, D))  # the direction that the sample missed most
    low = estimate + 0.5 * values[-1] * np.eye(D)
    assert Problem(weight, true).objective(theta) > Problem(weight, low).objective(theta)


def test_dependent_tokens_count_less() -> None:
    # Every token twice: n doubles, the error does not fall.
    inputs, rng = population(1, 1000), np.random.default_rng(0)
    gram, squares = moment(inputs), []
    for _ in range(100):
        drawn = inputs[rng.integers(0, 1000, 50)]
        squares.append(float(np.sum((moment(np.repeat(drawn, 2, axis=0)) - gram) ** 2)))
    assert np.mean(squares) > 1.5 * theory.gram_mean_square_error(fourth(inputs), gram, 100)
