"""T09: activation-aware SVD is the optimum of low rank, singular C included (proofs/T09_weighted_low_rank.md)."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import F_TOLERANCE
from hypothesis import event, given
from hypothesis import strategies as st
from strategies import DTYPES, GRAM_KINDS, make_gram, make_weight, problems

from awp_edge import CompressSpec, LowRank, Problem, compress_layer, solve, theory
from awp_edge.certificate import certify_layer, gram_facts

SHAPE = (5, 7)
RANKS = st.integers(0, 5)


def size_of(problem: Problem) -> float:
    return problem.objective(np.zeros(problem.shape))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_the_error_is_the_tail_of_the_spectrum(backend: str, data: st.DataObject, dtype: str) -> None:
    problem, rank = data.draw(problems(SHAPE, dtype)), data.draw(RANKS)
    result = solve(problem, LowRank(rank), backend=backend)
    best = theory.low_rank_optimum(problem.weight, problem.gram, rank)
    exact = Problem(problem.weight.astype(np.float64), problem.gram.astype(np.float64))
    f = exact.objective(result.theta.astype(np.float64))
    assert abs(f - best) <= F_TOLERANCE[dtype] * size_of(exact)
    event("informative" if 0.01 * size_of(exact) < best < 0.99 * size_of(exact) else "trivial")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outlier", [1.0, 1e2, 1e4])
def test_an_outlier_input_costs_no_accuracy(backend: str, outlier: float, dtype: str) -> None:
    # One input 100 times larger than the rest, as in real layers: nothing else may be taken for zero.
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(1024, 128))
    inputs[:, 3] *= outlier**0.5 * 10
    problem = Problem(rng.normal(size=(48, 128)).astype(dtype), (inputs.T @ inputs / 1024).astype(dtype))
    exact = Problem(problem.weight.astype(np.float64), problem.gram.astype(np.float64))
    theta = solve(problem, LowRank(16), backend=backend).theta.astype(np.float64)
    best = theory.low_rank_optimum(problem.weight, problem.gram, 16)
    assert exact.objective(theta) == pytest.approx(best, rel=1e-4 if dtype == "float32" else 1e-9)


@given(data=st.data())
def test_no_rival_of_that_rank_is_better(backend: str, data: st.DataObject) -> None:
    problem, rank = data.draw(problems(SHAPE)), data.draw(RANKS)
    theta = solve(problem, LowRank(rank), backend=backend).theta
    f, slack = problem.objective(theta), 1e-11 * size_of(problem)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    rivals = [LowRank(rank).project(problem.weight)]
    for scale in (1.0, 0.1, 1e-3):
        basis = np.linalg.qr(theta @ theta.T + scale * rng.normal(size=(5, 5)))[0][:, :rank]
        rivals += [
            basis @ (basis.T @ problem.weight),
            LowRank(rank).project(theta + scale * rng.normal(size=SHAPE)),
        ]
    assert all(problem.objective(rival) >= f - slack for rival in rivals)


@pytest.mark.parametrize("kind", ["singular", "few samples", "dead inputs"])
def test_shifts_in_the_null_space_change_nothing(backend: str, kind: str) -> None:
    problem = Problem(make_weight("normal", SHAPE, "float64", seed=0), make_gram(kind, 7, "float64", seed=1))
    result = solve(problem, LowRank(2), backend=backend)
    values, vectors = np.linalg.eigh(problem.gram)
    null = vectors[:, values < 1e-12 * values[-1]]
    assert null.size
    shift = np.random.default_rng(2).normal(size=(2, null.shape[1])) @ null.T
    shifted = result.encoding.left @ (result.encoding.right + shift)  # same columns, so the rank stays
    assert np.linalg.norm(shifted - result.theta) > 0.1
    assert problem.objective(shifted) == pytest.approx(result.objective, rel=1e-9)


@given(problems(SHAPE), st.integers(1, 5))
def test_junction_form_stores_the_same_weight(problem: Problem, rank: int) -> None:
    encoding = solve(problem, LowRank(rank), backend="numpy").encoding
    pivots = pivot_columns(encoding.right)
    block = encoding.right[:, pivots]
    if len(pivots) < rank or np.linalg.cond(block) > 1e6:
        return
    left, right = encoding.left @ block, np.linalg.solve(block, encoding.right)
    np.testing.assert_allclose(
        left @ right, encoding.left @ encoding.right, atol=1e-8 * np.abs(encoding.right).max()
    )
    np.testing.assert_allclose(right[:, pivots], np.eye(rank), atol=1e-8)
    assert left.size + right.size - rank**2 == theory.junction_parameters(SHAPE, rank)


def pivot_columns(matrix: np.ndarray) -> list[int]:
    """Return independent columns: the largest remaining one again and again."""
    rest, chosen = matrix.copy(), []
    for _ in range(len(matrix)):
        norms = np.linalg.norm(rest, axis=0)
        if norms.max() <= 1e-9 * np.linalg.norm(matrix):
            break
        chosen.append(int(norms.argmax()))
        direction = rest[:, chosen[-1]] / norms.max()
        rest = rest - np.outer(direction, direction @ rest)
    return chosen


# ------------------------------------------------------------------------------------------------ negative controls
def test_the_plain_svd_is_not_the_optimum(backend: str) -> None:
    losses = []
    for kind in sorted(GRAM_KINDS.keys() - {"identity", "zero", "few samples"}):
        problem = Problem(
            make_weight("normal", SHAPE, "float64", seed=0), make_gram(kind, 7, "float64", seed=1)
        )
        best = solve(problem, LowRank(2), backend=backend).objective
        losses.append(problem.objective(LowRank(2).project(problem.weight)) / best)
    assert min(losses) > 1 and np.median(losses) > 1.2


def test_the_weights_matter() -> None:
    # The optimum of another C is not the optimum of this one.
    weight = make_weight("normal", SHAPE, "float64", seed=0)
    here, there = (make_gram(kind, 7, "float64", seed=1) for kind in ("samples", "ill scaled"))
    theta = solve(Problem(weight, there), LowRank(2), backend="numpy").theta
    assert Problem(weight, here).objective(theta) > 1.05 * theory.low_rank_optimum(weight, here, 2)


def test_the_certificate_knows_how_far_the_plain_svd_is_from_it() -> None:
    weight, gram = (
        make_weight("normal", (48, 64), "float64", seed=0),
        make_gram("spiked", 64, "float64", seed=1),
    )
    best = theory.low_rank_optimum(weight, gram, 8)
    for method in ("svd", "asvd"):
        spec = CompressSpec(method=method, rank=8)
        result = compress_layer(weight, gram, spec)
        found = certify_layer(weight, result, facts=gram_facts(gram), spec=spec)
        assert found.at_most == pytest.approx(result.objective / best, rel=1e-6)
        assert (found.at_most > 1.2) == (method == "svd")
