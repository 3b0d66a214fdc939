"""T10: GPTQ's error is a weighted sum of squares, also with a mask (proofs/T10_rounding_with_feedback.md)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from oracles import grid_values, refit, round_with_feedback
from strategies import SEEDS, grams, make_gram, weights

from awp_edge import Dense, IntGrid, Problem, Sparse, theory
from awp_edge.backend import resolve
from awp_edge.baselines import gptq

D = 6
KINDS = ("normal", "heavy tails", "ties", "sparse", "positive", "constant")


def damped(gram: np.ndarray, share: float = 1e-3) -> np.ndarray:
    """Return C + lambda I: C itself may be singular."""
    return gram + (share * float(np.trace(gram)) / len(gram) + 1e-9) * np.eye(len(gram))


def grid(step: float, *, reach: int = 400) -> list[float]:
    return [n * step for n in range(-reach, reach + 1)]


def error(gram: np.ndarray, row: np.ndarray, q: np.ndarray) -> float:
    return Problem(row[None], gram).objective(q[None])


@given(grams(D), weights((1, D), kinds=KINDS), st.permutations(range(D)), st.sampled_from((0.05, 0.5, 2.0)))
def test_the_error_is_what_the_rounding_errors_weigh(
    gram: np.ndarray, weight: np.ndarray, order: list[int], step: float
) -> None:
    row, gram = np.clip(weight[0], -9, 9), damped(gram)
    q, errors = round_with_feedback(gram, row, values=[grid(step)] * D, order=order)
    weighting = theory.rounding_weights(gram, order)
    f, size = error(gram, row, q), float(np.trace(gram)) * step**2
    assert f == pytest.approx(float(np.sum(weighting * errors[order] ** 2)) / 2, rel=1e-6, abs=1e-9 * size)
    if np.abs(errors).max() <= step / 2 * (1 + 1e-9):  # else a code was out of reach
        bound = theory.rounding_bound(weighting, np.full(D, step))
        assert f <= bound * (1 + 1e-9) + 1e-12 * size
        event("informative" if f > bound / 10 else "loose")
    else:
        event("clipped")


@given(grams(D), st.permutations(range(D)))
def test_the_weights(gram: np.ndarray, order: list[int]) -> None:
    gram = damped(gram)
    weighting = theory.rounding_weights(gram, order)
    ordered = gram[np.ix_(order, order)]
    assert (weighting <= ordered.diagonal() * (1 + 1e-9)).all() and weighting[-1] == pytest.approx(
        ordered[-1, -1]
    )
    for i in range(D):
        assert weighting[i] == pytest.approx(1 / np.linalg.inv(ordered[i:, i:])[0, 0], rel=1e-6)
    _, logarithm = np.linalg.slogdet(gram)
    assert weighting.sum() >= D * np.exp(logarithm / D) * (1 - 1e-9)


@given(
    grams(D),
    weights((1, D), kinds=("normal", "heavy tails")),
    st.permutations(range(D)),
    st.integers(1, D),
    SEEDS,
)
def test_pruned_first_is_refit_then_rounding(
    gram: np.ndarray, weight: np.ndarray, order: list[int], k: int, seed: int
) -> None:
    row, gram = np.clip(weight[0], -9, 9), damped(gram)
    kept = np.isin(np.arange(D), np.random.default_rng(seed).permutation(D)[:k])
    order = [j for j in order if not kept[j]] + [j for j in order if kept[j]]
    values = [grid(0.25) if kept[j] else [0.0] for j in range(D)]
    q, errors = round_with_feedback(gram, row, values=values, order=order)
    inside, last = np.flatnonzero(kept), [j for j in order if kept[j]]
    target = refit(gram, row, kept)
    sub = gram[np.ix_(inside, inside)]
    alone, _ = round_with_feedback(
        sub, target[inside], values=[grid(0.25)] * k, order=[list(inside).index(j) for j in last]
    )
    size = error(gram, row, np.zeros(D))
    if np.abs(np.abs(errors[last]) - 0.125).min() > 1e-6:  # no ties
        np.testing.assert_allclose(q[inside], alone, atol=1e-9)
    weighting = theory.rounding_weights(sub, [list(inside).index(j) for j in last])
    expected = error(gram, row, target) + float(np.sum(weighting * errors[last] ** 2)) / 2
    assert error(gram, row, q) == pytest.approx(expected, rel=1e-6, abs=1e-9 * size)
    np.testing.assert_allclose(weighting, theory.rounding_weights(gram, order)[-k:], rtol=1e-6)


@given(
    grams(D, kinds=("singular", "few samples", "dead inputs", "zero")),
    weights((1, D), kinds=KINDS),
    st.permutations(range(D)),
)
def test_damping_serves_a_singular_gram(gram: np.ndarray, weight: np.ndarray, order: list[int]) -> None:
    row, definite = np.clip(weight[0], -9, 9), damped(gram, 0.01)
    q, errors = round_with_feedback(definite, row, values=[grid(0.5)] * D, order=order)
    bound = theory.rounding_bound(theory.rounding_weights(definite, order), np.full(D, 0.5))
    assert error(gram, row, q) <= error(definite, row, q) * (1 + 1e-9) + 1e-12
    if np.abs(errors).max() <= 0.25 * (1 + 1e-9):
        assert error(definite, row, q) <= bound * (1 + 1e-9) + 1e-12


@given(
    gram=grams(D), weight=weights((2, D), kinds=("normal", "heavy tails")), order=st.permutations(range(D)),
    bits=st.sampled_from((2, 4)),
)  # fmt: skip
def test_the_packages_rounding_is_the_one_of_the_statement(
    backend: str, gram: np.ndarray, weight: np.ndarray, order: list[int], bits: int
) -> None:
    gram, grid, engine = damped(gram, 0.01), IntGrid(bits, D).fit(weight), resolve(backend)
    upper = engine.factor(gram, np.array(order))
    np.testing.assert_allclose(upper.diagonal() ** 2, theory.rounding_weights(gram, order), rtol=1e-6)
    found = engine.nearest_plane(weight, upper, np.array(order), grid=grid)
    for i, row in enumerate(weight):
        values = [grid_values(grid, i, j) for j in range(D)]
        expected, errors = round_with_feedback(gram, row, values=values, order=order)
        ties = np.abs(np.abs(errors) / grid.scales[i, 0] - 0.5).min() < 1e-6
        if not ties:
            np.testing.assert_allclose(found[i], expected, atol=1e-9)
        inside = np.abs(errors).max() <= grid.scales[i, 0] / 2
        bound = theory.rounding_bound(theory.rounding_weights(gram, order), np.full(D, grid.scales[i, 0]))
        assert ties or not inside or error(gram, row, found[i]) <= bound * (1 + 1e-6)


@given(gram=grams(D), weight=weights((2, D), kinds=("normal", "heavy tails")))
def test_the_peer_gptq_obeys_the_bound(backend: str, gram: np.ndarray, weight: np.ndarray) -> None:
    problem = Problem(weight, gram)
    assume(gram.any())
    grid = IntGrid(8, D).fit(8 * weight)  # wide enough that no code clips
    found = gptq(problem, Sparse(Dense(), grid), engine=resolve(backend))
    lifted = gram + 0.01 * float(np.mean(gram.diagonal())) * np.eye(D)
    lifted[np.diag_indices(D)] += np.where(gram.diagonal() > 0, 0, 1)  # inputs that are always zero
    steps = np.full(D, float(grid.scales.max()))
    bound = theory.rounding_bound(theory.rounding_weights(lifted, range(D)), steps)
    for row, q in zip(weight, found, strict=True):
        assert error(gram, row, q) <= bound * (1 + 1e-6)


def test_the_average_is_predicted_before_any_rounding() -> None:
    # Informative: the bound is three times the average, and tr D / tr C is the gain over rounding to nearest.
    gram, rng, order = make_gram("samples", D, "float64", seed=5), np.random.default_rng(0), list(range(D))
    weighting, step = theory.rounding_weights(gram, order), np.full(D, 0.5)
    found, plain = [], []
    for row in rng.uniform(-5, 5, (800, D)):
        q, _ = round_with_feedback(gram, row, values=[grid(0.5)] * D, order=order)
        found.append(error(gram, row, q))
        plain.append(error(gram, row, 0.5 * np.rint(row / 0.5)))
    assert np.mean(found) == pytest.approx(theory.expected_rounding_error(weighting, step), rel=0.1)
    assert np.mean(plain) == pytest.approx(theory.expected_rounding_error(gram.diagonal(), step), rel=0.1)
    assert max(found) <= theory.rounding_bound(weighting, step)
    assert np.mean(found) / np.mean(plain) == pytest.approx(weighting.sum() / gram.trace(), rel=0.15)
    assert weighting.sum() < 0.6 * gram.trace() and max(found) > 0.6 * theory.rounding_bound(weighting, step)


def test_the_order_decides_what_pruning_costs() -> None:
    # Pruned columns last: their whole weight is a rounding error that nothing absorbs.
    gram, rng = make_gram("samples", D, "float64", seed=7), np.random.default_rng(1)
    first, last = [], []
    for row in rng.normal(size=(40, D)):
        values = [[0.0] if j % 2 else grid(0.25) for j in range(D)]
        for order, errors in (([1, 3, 5, 0, 2, 4], first), ([0, 2, 4, 1, 3, 5], last)):
            errors.append(error(gram, row, round_with_feedback(gram, row, values=values, order=order)[0]))
    assert np.mean(first) < 0.7 * np.mean(last)


# ------------------------------------------------------------------------------------------------ negative controls
def test_clipping_breaks_the_bound_but_not_the_identity() -> None:
    gram, row = np.eye(2), np.array([10.0, 0.3])
    q, errors = round_with_feedback(gram, row, values=[[-1.0, 0, 1]] * 2, order=[0, 1])
    weighting = theory.rounding_weights(gram, [0, 1])
    assert error(gram, row, q) > theory.rounding_bound(weighting, np.ones(2))
    assert error(gram, row, q) == pytest.approx(float(np.sum(weighting * errors**2)) / 2)


def test_without_feedback_the_bound_fails() -> None:
    gram = np.full((D, D), 0.99) + 0.01 * np.eye(D)
    row = np.full(D, 0.49)
    bound = theory.rounding_bound(theory.rounding_weights(gram, list(range(D))), np.ones(D))
    assert error(gram, row, np.rint(row)) > 5 * bound


def test_a_singular_gram_needs_damping() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        theory.rounding_weights(np.zeros((2, 2)), [0, 1])
