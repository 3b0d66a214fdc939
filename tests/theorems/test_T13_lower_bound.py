"""T13: no weight in the set is better than the bound (proofs/T13_lower_bound.md)."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from oracles import allowed_masks, best_sparse_objective, grid_values, refit
from strategies import ORDINARY, SEEDS, gentle_grams, grams, make_gram, make_weight, weights

from awp_edge import NM, BalancedBlock, IntGrid, Problem, RowSparse, Sparse, solve
from awp_edge.lower_bound import (
    Cardinality,
    FixedGrid,
    Relaxed,
    cardinality,
    dual_bound,
    is_definite,
    separate,
)

D = 8
KINDS = tuple(kind for kind in ORDINARY if kind != "scales")


def bound(gram: np.ndarray, weight: np.ndarray, relaxed: Relaxed, *, steps: int = 12) -> np.ndarray:
    part = separate(gram)
    if part is None:
        return np.zeros(len(weight))
    return dual_bound(weight, np.zeros_like(weight), part=part, relaxed=relaxed, steps=steps)


@given(grams(D), weights((1, D), kinds=KINDS), st.integers(0, D))
def test_no_sparse_row_is_better(gram: np.ndarray, weight: np.ndarray, k: int) -> None:
    found = float(bound(gram, weight, cardinality(RowSparse(k), D))[0])
    problem = Problem(weight, gram)
    best, size = best_sparse_objective(problem, k), problem.objective(np.zeros_like(weight))
    assert 0 <= found <= best * (1 + 1e-7) + 1e-9 * size
    event("informative" if found > 0.2 * best > 1e-9 * size else "weak")


@given(grams(D), weights((1, D), kinds=KINDS), st.sampled_from((NM(2, 4), NM(1, 2), BalancedBlock(2, 4))))
def test_no_row_of_a_pattern_is_better(
    gram: np.ndarray, weight: np.ndarray, support: NM | BalancedBlock
) -> None:
    found = float(bound(gram, weight, cardinality(support, D))[0])
    problem = Problem(weight, gram)
    rows = [refit(gram, weight[0], mask[0]) for mask in allowed_masks(support, (1, D))]
    best = min(problem.objective(row[None]) for row in rows)
    assert found <= best * (1 + 1e-7) + 1e-9 * problem.objective(np.zeros_like(weight))


@given(grams(5), weights((1, 5), kinds=KINDS), st.sampled_from((1, 5)), SEEDS)
def test_no_codes_at_these_scales_are_better(
    gram: np.ndarray, weight: np.ndarray, group: int, seed: int
) -> None:
    other = weight + 0.3 * np.random.default_rng(seed).normal(size=weight.shape)  # so that some entries clip
    grid = IntGrid(2, group).fit(other)
    problem = Problem(weight, gram)
    best = min(
        problem.objective(np.array([row])) for row in product(*(grid_values(grid, 0, j) for j in range(5)))
    )
    found = float(bound(gram, weight, FixedGrid(grid))[0])
    assert found <= best * (1 + 1e-7) + 1e-9 * problem.objective(np.zeros_like(weight))
    event("informative" if found > 0.2 * best else "weak")


@given(grams(D))
def test_what_is_taken_from_c_leaves_a_gram(gram: np.ndarray) -> None:
    part = separate(gram)
    assume(part is not None)
    assert (part.diagonal > 0).all() and is_definite(gram - np.diag(part.diagonal))
    scale = 10.0 ** np.linspace(-1, 1, D)
    scaled = separate(scale[:, None] * gram * scale)
    np.testing.assert_allclose(scaled.diagonal, part.diagonal * scale**2, rtol=0.15)
    if np.linalg.cond(gram) < 1e6:
        assert (
            np.linalg.eigvalsh(gram - np.diag(part.diagonal))[0] < 0.1 * part.diagonal.max()
        )  # not much is left


@given(gentle_grams(D, 3.0), weights((1, D), kinds=("normal", "ties", "positive")), st.integers(1, D - 1))
def test_stationarity_at_long_steps_proves_optimality(gram: np.ndarray, weight: np.ndarray, k: int) -> None:
    part, problem = separate(gram), Problem(weight, gram)
    theta = solve(problem, Sparse(RowSparse(k)), backend="numpy").theta[0]
    theta = refit(gram, weight[0], theta != 0)
    on, pull = theta != 0, np.abs(problem.gradient(theta[None])[0])
    assume(on.sum() == k)
    reach = np.sqrt(part.diagonal)
    if (pull[~on] / reach[~on]).max(initial=0) <= (np.abs(theta[on]) * reach[on]).min():
        best = best_sparse_objective(problem, k)
        assert problem.objective(theta[None]) <= best * (1 + 1e-9) + 1e-12
        event("proved optimal")
    else:
        event("not proved")


@pytest.mark.parametrize("kind", ["singular", "few samples", "zero"])
def test_a_singular_gram_promises_nothing(kind: str) -> None:
    assert bound(make_gram(kind, D, "float64", seed=0), np.ones((1, D)), cardinality(RowSparse(4), D)) <= 1e-9


def tightness(gram_of: object, *, steps: int) -> float:
    shares = []
    for seed in range(3):
        gram, weight = gram_of(seed), make_weight("normal", (10, 10), "float64", seed=seed)
        found = bound(gram, weight, cardinality(RowSparse(5), 10), steps=steps)
        best = [best_sparse_objective(Problem(row[None], gram), 5) for row in weight]
        shares += list(found / best)
    return float(np.mean(shares))


def gentle(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    return (basis * rng.uniform(1, 3, 10)) @ basis.T


def tokens(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(100, 10)) @ (np.eye(10) + 0.1 * rng.normal(size=(10, 10)))
    return inputs.T @ inputs / 100


def correlated(seed: int) -> np.ndarray:
    return make_gram("samples", 10, "float64", seed=seed)


@pytest.mark.parametrize(
    ("gram_of", "plain", "tilted"),
    [(gentle, 0.63, 0.94), (tokens, 0.47, 0.85), (correlated, 0.12, 0.31)],
    ids=["condition 3", "condition 7", "condition 1000"],
)
def test_how_tight_it_is(gram_of: object, plain: float, tilted: float) -> None:
    # Informative: the table of the proof file.
    assert tightness(gram_of, steps=0) == pytest.approx(plain, abs=0.03)
    assert tightness(gram_of, steps=12) == pytest.approx(tilted, abs=0.03)


# ------------------------------------------------------------------------------------------------ negative controls
def test_taking_more_than_c_has_breaks_it() -> None:
    broken = 0
    for seed in range(10):
        gram, weight = (
            make_gram("samples", D, "float64", seed=seed),
            make_weight("normal", (1, D), "float64", seed=seed),
        )
        cost = np.sort(gram.diagonal() * weight[0] ** 2)[: D // 2].sum() / 2  # D = the whole diagonal
        broken += cost > best_sparse_objective(Problem(weight, gram), D // 2) * (1 + 1e-9)
    assert broken >= 5


def test_free_scales_escape_the_bound_for_given_ones() -> None:
    gram, weight = np.eye(4), np.array([[0.3, -0.3, 0.3, 0.6]])
    given_scales = IntGrid(2, 4).fit(weight * 1.4)
    found = float(bound(gram, weight, FixedGrid(given_scales))[0])
    better = IntGrid(2, 4).fit(weight).round(weight)
    assert found > 0.001 and Problem(weight, gram).objective(better) < found / 10


def test_a_smaller_budget_is_not_covered_by_a_larger_ones_bound() -> None:
    gram, weight = (
        make_gram("samples", D, "float64", seed=0),
        make_weight("normal", (1, D), "float64", seed=0),
    )
    columns = np.arange(D)[None]
    assert bound(gram, weight, Cardinality(columns, 2)) > best_sparse_objective(Problem(weight, gram), 7)
