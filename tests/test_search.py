"""The mask search, the refit behind it and awp-plus: what they reach, and what they must never do."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import F_TOLERANCE, assert_same_bits, require_native
from hypothesis import given
from hypothesis import strategies as st
from oracles import least_squares
from strategies import DTYPES, GRAM_KINDS, make_gram, make_weight, problems, supports

from awp_edge import (
    NM,
    BalancedBlock,
    BlockSparse,
    Problem,
    RowSparse,
    Sparse,
    native,
)
from awp_edge.backend import NativeBackend, NumpyBackend
from awp_edge.constraints import Support
from awp_edge.plus import swap_labels
from awp_edge.solvers.admm import (
    EXACT_TERMS,
    LEFT_LIMIT,
    RIGHT_LIMIT,
    STRIP,
    Admm,
    RoundedMatrix,
    admm,
    proximal_map,
    rounded_rows,
    scaled,
)
from awp_edge.solvers.refit import refit
from awp_edge.solvers.scaling import conditional_variance
from awp_edge.solvers.swap import Swaps, best_swaps, swap, swap_gains

NUMPY = NumpyBackend()
SUPPORTS: dict[str, Support] = {
    "row": RowSparse(24),
    "2:4": NM(2, 4),
    "balanced": BalancedBlock(8, 16),
    "block": BlockSparse(5, 8, 3),
}


def layer(dtype: str, gram: str = "samples", shape: tuple[int, int] = (35, 48)) -> Problem:
    return Problem(make_weight("heavy tails", shape, dtype, seed=3), make_gram(gram, shape[1], dtype, seed=4))


@given(problems((3, 6)), st.integers(0, 2**18 - 1))
def test_refit_reaches_the_least_squares_optimum(problem: Problem, bits: int) -> None:
    mask = (bits >> np.arange(18) & 1).astype(bool).reshape(3, 6)
    start = np.where(mask, problem.weight, 0.0)
    theta, rows = refit(problem, mask, start, steps=30, engine=NUMPY)
    assert not theta[~mask].any()
    size = problem.objective(np.zeros(problem.shape)) + problem.objective(start)
    assert rows.sum() == pytest.approx(problem.objective(theta), abs=1e-9 * size)
    for row in range(3):
        assert rows[row] <= least_squares(problem, row, mask[row]) + 1e-6 * size


@given(problems((3, 6)), st.integers(1, 6))
def test_refit_never_raises_f(problem: Problem, k: int) -> None:
    mask = RowSparse(k).select(np.abs(problem.weight))
    start = np.where(mask, problem.weight, 0.0)
    objectives = [refit(problem, mask, start, steps=steps, engine=NUMPY)[1] for steps in range(5)]
    slack = 1e-12 * problem.objective(np.zeros(problem.shape)) + 1e-12 * objectives[0].max()
    assert all((after <= before + slack).all() for before, after in itertools.pairwise(objectives))


# ------------------------------------------------------------------------------------------------ scaling
def test_variances_of_independent_inputs_are_their_own() -> None:
    gram = np.diag([1.0, 4.0, 0.25])
    np.testing.assert_allclose(conditional_variance(gram, 0.5, engine=NUMPY), np.diag(gram), rtol=1e-12)


def test_a_repeated_input_keeps_little_variance() -> None:
    inputs = np.random.default_rng(0).normal(size=(500, 4))
    inputs[:, 3] = inputs[:, 0] + 0.01 * inputs[:, 3]
    gram = inputs.T @ inputs / 500
    share = conditional_variance(gram, 0.3, engine=NUMPY) / np.diag(gram)
    assert share[0] < 0.3 and share[3] < 0.3 and share[1] > 0.9


@given(problems((2, 6)), st.floats(0, 1))
def test_variances_lie_between_nothing_and_the_diagonal(problem: Problem, sparsity: float) -> None:
    found = conditional_variance(problem.gram, sparsity, engine=NUMPY)
    assert (found > 0).all() and np.isfinite(found).all()
    live = np.diag(problem.gram) > 0
    assert (found[live] <= np.diag(problem.gram)[live] * (1 + 1e-9)).all()


def test_scaling_leaves_f_alone() -> None:
    problem = layer("float64")
    scale = np.linspace(0.5, 2, 48)
    theta = np.where(np.arange(48) % 2, problem.weight, 0)
    assert scaled(problem, scale).objective(theta * scale) == pytest.approx(
        problem.objective(theta), rel=1e-12
    )


# ------------------------------------------------------------------------------------------------ search
def test_the_proximal_matrix_is_the_proximal_map() -> None:
    problem, rho = layer("float64"), 0.7
    target = np.random.default_rng(1).normal(size=problem.shape)
    found = problem.weight - (problem.weight - target) @ proximal_map(
        problem.gram, method=Admm(penalty=rho), engine=NUMPY
    )
    gradient = problem.gradient(found) + rho * (found - target)
    assert np.abs(gradient).max() < 1e-12 * np.abs(problem.gram).max()


@given(supports((4, 12)), st.integers(0, 99))
def test_independent_inputs_are_solved_exactly(support: Support, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(4, 12))
    problem = Problem(weight, np.eye(12))
    found = admm(problem, support, method=Admm(steps=12), engine=NUMPY)
    assert_same_bits(found != 0, Sparse(support).project(weight) != 0)


@given(problems((4, 12)), st.data())
def test_the_search_ends_in_the_support(problem: Problem, data: st.DataObject) -> None:
    support = data.draw(supports((4, 12)))
    for steps in (1, 2, 7):
        assert Sparse(support).contains(admm(problem, support, method=Admm(steps=steps), engine=NUMPY))


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"penalty": 0.0}, {"relaxation": (2.1, 1.0)}, {"products": "bfloat16"}]
)
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Admm(**bad)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ swaps
def definite(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(3 * n, n)) @ rng.normal(size=(n, n))
    return inputs.T @ inputs / n, rng.normal(size=n)


def lowest(schur: np.ndarray, linear: np.ndarray, kept: np.ndarray) -> float:
    """Return min 1/2 y A y - b y over y on a support."""
    return -0.5 * float(linear[kept] @ np.linalg.solve(schur[np.ix_(kept, kept)], linear[kept]))


@given(st.integers(2, 7), st.data())
def test_gains_are_those_of_solving_again(n: int, data: st.DataObject) -> None:
    schur, linear = definite(n, data.draw(st.integers(0, 999)))
    k = data.draw(st.integers(1, n - 1))
    kept, absent = np.arange(k), np.arange(k, n)
    precision = np.linalg.inv(schur[:k, :k])
    gains = swap_gains(schur, linear, precision, kept=kept, absent=absent)
    before = lowest(schur, linear, kept)
    for p, u in itertools.product(range(n - k), range(k)):
        after = lowest(schur, linear, np.append(np.delete(kept, u), absent[p]))
        assert gains[p, u] == pytest.approx(before - after, rel=1e-6, abs=1e-9 * abs(before))


@given(st.integers(2, 7), st.data())
def test_no_swap_is_left(n: int, data: st.DataObject) -> None:
    schur, linear = definite(n, data.draw(st.integers(0, 999)))
    inside = np.arange(n) < data.draw(st.integers(1, n - 1))
    patience = data.draw(st.integers(0, 5))
    y = best_swaps(schur, linear, inside, labels=np.zeros(n, dtype=np.intp), patience=patience)
    kept, absent = np.flatnonzero(y), np.flatnonzero(y == 0)
    reached = lowest(schur, linear, kept)
    assert len(kept) == inside.sum() and reached <= lowest(schur, linear, np.flatnonzero(inside)) + 1e-12
    for p, u in itertools.product(absent, range(len(kept))):
        assert lowest(schur, linear, np.append(np.delete(kept, u), p)) >= reached * (1 + 1e-6)


def test_patience_leaves_supports_where_no_swap_gains() -> None:
    inside, labels, ends = np.arange(14) < 5, np.zeros(14, dtype=np.intp), []
    for seed in range(30):
        schur, linear = definite(14, seed)
        found = [
            lowest(
                schur, linear, np.flatnonzero(best_swaps(schur, linear, inside, labels=labels, patience=p))
            )
            for p in (0, 10)
        ]
        least = min(lowest(schur, linear, np.array(s)) for s in itertools.combinations(range(14), 5))
        assert least * (1 + 1e-9) <= found[1] <= found[0]
        ends.append([f <= least * (1 - 1e-9) for f in found])
    missed = 30 - np.sum(ends, axis=0)
    assert missed[1] < missed[0]


def test_labels_forbid_swaps() -> None:
    schur, linear = definite(6, 1)
    inside = np.arange(6) < 3
    for patience in (0, 3):
        y = best_swaps(schur, linear, inside, labels=np.array([0, 0, 0, 1, 1, 1]), patience=patience)
        assert_same_bits(y != 0, inside)


@pytest.mark.parametrize("gram", GRAM_KINDS)
def test_swaps_never_raise_f_and_stay_in_the_support(gram: str) -> None:
    problem = layer("float64", gram)
    for support in (RowSparse(24), NM(2, 4), BalancedBlock(8, 16)):
        labels = swap_labels(support, 48)
        assert labels is not None
        mask = support.select(np.square(problem.weight) * problem.gram.diagonal())
        theta, before = refit(problem, mask, problem.weight * mask, steps=60, engine=NUMPY)
        found = swap(
            problem, mask, theta, labels=labels, method=Swaps(8), least=np.zeros(len(mask)), engine=NUMPY
        )
        size = problem.objective(np.zeros(problem.shape))
        assert Sparse(support).contains(found)
        assert problem.objective(found) <= before.sum() + 1e-5 * size


def test_candidates_are_pairs_that_may_be_swapped() -> None:
    """The smallest kept weight and the largest gradient lie in different groups; only the second group gains."""
    weight = np.array([[1.0, 9.0, 0.5, 0.2, 8.0, 3.0, 4.0, 1.0]])
    mask = np.array([[True, True, False, False, True, True, False, False]])
    problem, labels = Problem(weight, np.eye(8)), swap_labels(NM(2, 4), 8)
    for engine in (NUMPY, NativeBackend()) if native.available() else (NUMPY,):
        found = engine.swap(problem, mask, weight * mask, labels=labels, method=Swaps(1), least=np.zeros(1))
        assert np.allclose(found, [[1, 9, 0, 0, 8, 0, 4, 0]], atol=1e-5)


def test_a_row_without_a_definite_matrix_stays() -> None:
    """Two inputs that are one and the same up to rounding, and a C whose rounding made it indefinite."""
    gram = np.array([[1.0, 1.01, 0.0], [1.01, 1.0, 0.0], [0.0, 0.0, 1.0]])
    weight, mask = np.array([[1.0, 0.5, 3.0]]), np.array([[True, True, False]])
    found = NUMPY.swap(
        Problem(weight, gram), mask, weight * mask, labels=np.zeros(3, dtype=np.intp), method=Swaps(2),
        least=np.zeros(1),
    )  # fmt: skip
    assert np.array_equal(found, weight * mask)


@pytest.mark.parametrize("engine", [NUMPY, *([NativeBackend()] if native.available() else [])])
def test_rows_that_promise_too_little_stay(engine: NumpyBackend | NativeBackend) -> None:
    """Rows 0 and 1 would both gain (16 - 1) / 2 by exchanging one weight; only row 0 is asked for no more than that."""
    weight = np.array([[1.0, 4.0, 0.0], [1.0, 4.0, 0.0]])
    mask = np.array([[True, False, False]] * 2)
    found = engine.swap(
        Problem(weight, np.eye(3)), mask, weight * mask,
        labels=np.zeros(3, dtype=np.intp), method=Swaps(1), least=np.array([7.5, 7.6]),
    )  # fmt: skip
    assert np.allclose(found, [[0, 4, 0], [1, 0, 0]], atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["row", "2:4", "balanced"])
@pytest.mark.parametrize("patience", [0, 12])
def test_swaps_agree(isa: str, name: str, dtype: str, patience: int) -> None:
    problem, tolerance, support = layer(dtype), F_TOLERANCE[dtype], SUPPORTS[name]
    mask = support.select(np.square(problem.weight) * problem.gram.diagonal())
    start = np.where(mask, problem.weight, problem.weight.dtype.type(0))
    theta, before = refit(problem, mask, start, steps=20, engine=NUMPY)
    options = {
        "labels": swap_labels(support, 48),
        "method": Swaps(10, patience),
        "least": np.zeros(len(mask)),
    }
    reference, *twins = (
        engine.swap(problem, mask, theta, **options)
        for engine in (NUMPY, *(NativeBackend(threads) for threads in (1, 2, 3)))
    )
    size = problem.objective(np.zeros_like(problem.weight))
    assert problem.objective(reference) < before.sum() - 1e-3 * size  # there was something to gain
    assert problem.objective(twins[0]) == pytest.approx(
        problem.objective(reference), abs=100 * tolerance * size
    )
    for twin in twins[1:]:
        assert_same_bits(twin, twins[0])


# ------------------------------------------------------------------------------------------------ twins
@pytest.mark.parametrize("n", [1, 2, 47, 49, 97, 200, 333])
def test_inverses_agree(isa: str, n: int) -> None:
    matrix = make_gram("spiked", n, "float64", seed=n) + 0.1 * np.eye(n)
    reference, *twins = (engine.inverse(matrix) for engine in (NUMPY, NativeBackend(1), NativeBackend(3)))
    for found in (reference, twins[0]):
        assert np.abs(matrix @ found - np.eye(n)).max() < 1e-6
        assert_same_bits(found, found.T)
    assert_same_bits(twins[1], twins[0])
    place = matrix.copy()
    assert NativeBackend(2).inverse(place, overwrite=True) is place  # no second matrix
    assert_same_bits(place, twins[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [60, 300])
def test_inverses_are_as_good_as_the_condition_allows(isa: str, n: int, dtype: str) -> None:
    """One direction holds nearly everything, as a few huge tokens do to C."""
    spike = np.random.default_rng(n).normal(size=n)
    matrix = (np.eye(n) + 1e4 / n * np.outer(spike, spike)).astype(dtype)
    exact = np.eye(n) - np.outer(spike, spike) / (n / 1e4 + spike @ spike)
    for engine in (NUMPY, NativeBackend(2)):
        found = engine.inverse(matrix)
        assert np.abs(found - exact).max() < 1e4 * np.finfo(dtype).eps
        assert found.diagonal().min() > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SUPPORTS)
def test_searches_and_refits_agree(isa: str, name: str, dtype: str) -> None:
    problem, tolerance = layer(dtype), F_TOLERANCE[dtype]
    inner = scaled(problem, np.sqrt(conditional_variance(problem.gram, 0.5, engine=NUMPY)))
    size = problem.objective(np.zeros_like(problem.weight))
    reference, *twins = (NumpyBackend(), *(NativeBackend(threads) for threads in (1, 2, 3)))
    found = reference.admm(inner, SUPPORTS[name], method=Admm(steps=9))
    ours = [twin.admm(inner, SUPPORTS[name], method=Admm(steps=9)) for twin in twins]
    assert_same_bits(ours[0] != 0, found != 0)
    np.testing.assert_allclose(ours[0], found, rtol=0, atol=1e3 * tolerance * np.abs(found).max())
    refitted, rows = reference.refit(inner, found != 0, found, steps=6)
    theta, others = twins[0].refit(inner, found != 0, found, steps=6)
    np.testing.assert_allclose(others, rows, rtol=0, atol=tolerance * size)
    assert inner.objective(theta) == pytest.approx(inner.objective(refitted), abs=tolerance * size)
    for twin, other in zip(twins[1:], ours[1:], strict=True):
        assert_same_bits(other, ours[0])
        assert_same_bits(twin.refit(inner, found != 0, found, steps=6)[0], theta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SUPPORTS)
def test_rounded_products_give_the_bits_of_the_reference(name: str, dtype: str, isa: str) -> None:
    """Sums of integers depend on no order: what is left is arithmetic of single numbers, the same everywhere."""
    problem = layer(dtype, shape=(65, 96))
    inner = scaled(problem, np.sqrt(conditional_variance(problem.gram, 0.5, engine=NUMPY)))
    method = Admm(steps=9, products="int8")
    found = NUMPY.admm(inner, SUPPORTS[name], method=method)
    matrix = proximal_map(inner.gram, method=method, engine=NUMPY)
    for threads in (1, 2, 3):
        assert_same_bits(native.admm(inner, SUPPORTS[name], matrix, method=method, threads=threads), found)


def test_rounded_products_find_as_good_a_support(isa: str) -> None:
    problem = layer("float32", shape=(64, 96))
    inner = scaled(problem, np.sqrt(conditional_variance(problem.gram, 0.5, engine=NUMPY)))
    ends = []
    for products in ("float32", "int8"):
        found = NativeBackend().admm(inner, RowSparse(48), method=Admm(products=products))
        ends.append(NativeBackend().refit(inner, found != 0, found, steps=10)[1].sum())
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


@pytest.mark.parametrize("d", [1, 7, STRIP, STRIP + 1])
def test_the_rounded_map_is_within_half_a_step(d: int) -> None:
    gram = layer("float64", shape=(4, d)).gram
    exact = proximal_map(gram, method=Admm(), engine=NUMPY)
    rounded = proximal_map(gram, method=Admm(products="int8"), engine=NUMPY)
    assert isinstance(rounded, RoundedMatrix) and isinstance(exact, np.ndarray)
    assert_same_bits(rounded.diagonal, exact.diagonal().copy())
    assert np.abs(rounded.codes).max() == (RIGHT_LIMIT if d > 1 else 0) and not rounded.codes.diagonal().any()
    values = rounded.codes * rounded.scale + np.diag(rounded.diagonal)
    assert (np.abs(values - exact) <= 0.5 * rounded.scale * (1 + 1e-12)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_rows_keep_every_row_in_its_range(dtype: str) -> None:
    """Rows of zeros and of numbers too small to be divided by, too; a long row needs more than one exact sum."""
    rows = make_weight("heavy tails", (5, 2 * EXACT_TERMS + 3), dtype, seed=0)
    rows[1], rows[2] = 0, np.finfo(dtype).smallest_subnormal
    codes = np.full((rows.shape[1], 3), RIGHT_LIMIT, dtype=np.int8)
    matrix = RoundedMatrix(codes, np.ones(3, dtype), np.zeros(3, dtype))
    left, unit = rounded_rows(rows)
    assert np.abs(left).max(axis=1).tolist() == [LEFT_LIMIT, 0, 0, LEFT_LIMIT, LEFT_LIMIT]
    exact = (left.astype(np.int64) @ codes.astype(np.int64)).astype(dtype) * unit
    # Only the square matrix of the search has a diagonal to add: here it is left out.
    np.testing.assert_array_equal(matrix.sums(left, engine=NUMPY) * unit, exact)


def test_the_bench_runs_the_peers_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first call that is nobody's time, then as many runs to choose from for one as for the other."""
    pytest.importorskip("torch")
    require_native()
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent / "bench")
    search, calls = importlib.import_module("search"), []

    def counted(peer: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: int) -> object:
            calls.append(peer.__name__)
            return peer(*arguments, **options)

        return call

    for name in ("torch_awp", "torch_admm"):
        monkeypatch.setattr(search, name, counted(getattr(search, name)))
    found = search.measure(layer("float32"), threads=1, runs=2)
    assert calls.count("torch_awp") == calls.count("torch_admm") == 3
    assert all(seconds > 0 and 0 < error < 1 for seconds, error in found.values())
    assert found.keys() == {"AWP, PyTorch", "ADMM, PyTorch", *(f"awp-plus {name}" for name in search.LADDER)}
