"""Integer grids fitted to the objective: range search, nearest plane, coordinate descent, and the stages together."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from conftest import F_TOLERANCE, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from oracles import grid_values
from strategies import DTYPES, GRAM_KINDS, divisors, make_gram, make_weight, problems

from awp_edge import Dense, IntGrid, Problem, Reals, RowSparse, Sparse, native
from awp_edge.backend import Backend, NativeBackend, NumpyBackend, resolve
from awp_edge.constraints import BITS, BoundGrid
from awp_edge.solvers.descent import descend
from awp_edge.solvers.nearest_plane import factor, masked_nearest_plane, nearest_plane
from awp_edge.solvers.quantize import DAMPING, quantize, rounding_order
from awp_edge.solvers.ranges import candidates, cheapest_range

REFERENCE = NumpyBackend()
ORDERS = ("natural", "energy", "redundancy")


def layer(dtype: str = "float64", *, shape: tuple[int, int] = (70, 96), gram: str = "samples") -> Problem:
    """Return a definite problem; the rows and columns cross the tiles and blocks of the native core."""
    weight, matrix = (
        make_weight("heavy tails", shape, dtype, seed=1),
        make_gram(gram, shape[1], dtype, seed=2),
    )
    return Problem(weight, matrix).damped(DAMPING)


def half_mask(shape: tuple[int, int]) -> np.ndarray:
    mask = np.random.default_rng(3).random(shape) < 0.5
    mask[0], mask[-1] = False, True
    return mask


def row_objectives(problem: Problem, theta: np.ndarray) -> np.ndarray:
    residual = (problem.weight - theta).astype(np.float64)
    return 0.5 * np.einsum("ij,ij->i", residual @ problem.gram.astype(np.float64), residual)


# ------------------------------------------------------------------------------------------------ ranges
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_ranges_agree_in_every_bit(isa: str, bits: int, dtype: str) -> None:
    for d in (1, 6, 33, 64):
        weight = make_weight("heavy tails" if d % 2 else "ties", (7, d), dtype, seed=d)
        importance = np.random.default_rng(d).random(d).astype(dtype)
        for spec in (IntGrid(bits, d), IntGrid(bits, divisors(d)[-1] // divisors(d)[-2:][0], half_scales=True),
                     IntGrid(bits, d, symmetric=True)):  # fmt: skip
            found = candidates(spec, weight)
            expected = cheapest_range(weight, importance, found)
            for threads in (1, 3):
                assert_same_bits(native.cheapest_range(weight, importance, found, threads=threads), expected)


@given(seed=st.integers(0, 10**6), bits=st.sampled_from(BITS), symmetric=st.booleans())
def test_the_chosen_range_is_the_cheapest(*, seed: int, bits: int, symmetric: bool) -> None:
    weight, importance = make_weight("heavy tails", (3, 8), "float64", seed=seed), np.arange(8.0)
    found = candidates(IntGrid(bits, 4, symmetric=symmetric), weight)
    grid = found.choose(cheapest_range(weight, importance, found))

    def costs(grid: BoundGrid) -> np.ndarray:
        return (importance * (weight - grid.round(weight)) ** 2).reshape(3, 2, 4).sum(axis=2)

    for k in range(len(found.scales)):
        other = found.choose(np.full((3, 2), k, dtype=np.int32))
        assert (costs(grid) <= costs(other) * (1 + 1e-12)).all()
    assert_same_bits(found.choose(np.zeros((3, 2), dtype=np.int32)).scales, found.spec.fit(weight).scales)


def test_a_searched_range_clips_an_outlier_that_costs_little() -> None:
    weight = np.ones((1, 16)) * np.linspace(-1, 1, 16)
    weight[0, 3] = 9.0
    importance = np.where(np.arange(16) == 3, 1e-6, 1.0)
    found = candidates(IntGrid(3, 16), weight)
    assert found.choose(cheapest_range(weight, importance, found)).scales[0, 0] < 0.6 * found.scales[0, 0, 0]


# ------------------------------------------------------------------------------------------------ nearest plane
@pytest.mark.parametrize("d", [1, 2, 31, 32, 33, 130, 530])
def test_factors_agree(isa: str, d: int) -> None:
    gram = Problem(np.ones((1, d)), make_gram("few samples", d, "float64", seed=d)).damped(DAMPING).gram
    order = np.random.default_rng(d).permutation(d)
    upper = native.factor(gram, order, threads=1)
    assert_same_bits(native.factor(gram, order, threads=3), upper)
    assert not np.tril(upper, -1).any()
    np.testing.assert_allclose(upper @ upper.T, gram[np.ix_(order, order)], atol=1e-12 * np.abs(gram).max())
    np.testing.assert_allclose(upper, factor(gram, order), atol=1e-9 * np.abs(gram).max() ** 0.5)


def test_an_indefinite_matrix_gives_a_finite_factor(isa: str) -> None:
    gram = np.ones((60, 60), dtype=np.float32)  # rank 1: every later pivot is rounding error
    assert np.isfinite(native.factor(gram, np.arange(60))).all()


def test_a_matrix_without_a_finite_factor_is_refused(backend: str) -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(96, 96)))[0]
    gram = (basis * np.linspace(-1, 1, 96)) @ basis.T
    with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
        resolve(backend).factor(gram, np.arange(96))
    if backend == "native":
        with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
            native.inverse(gram)


def plain_nearest_plane(problem: Problem, grid: BoundGrid, order: np.ndarray) -> np.ndarray:
    """Fix one column after another at the grid point nearest to the real optimum of all columns still free."""
    theta = np.zeros(problem.shape)
    for row in range(problem.shape[0]):
        fixed: list[int] = [j for j in range(problem.shape[1]) if j not in order]
        for j in order:
            free = [i for i in order if i not in fixed]
            error = theta[row, fixed] - problem.weight[row, fixed]
            pull = problem.gram[np.ix_(free, fixed)] @ error
            best = problem.weight[row, free] - np.linalg.solve(problem.gram[np.ix_(free, free)], pull)
            wanted = best[free.index(j)]
            theta[row, j] = min(grid_values(grid, row, j), key=lambda value: abs(value - wanted))
            fixed.append(int(j))
    return theta


@given(problems((2, 6), gram_kinds=("samples", "log spectrum", "spiked")), st.permutations(range(6)))
def test_rounding_is_to_the_conditional_optimum(problem: Problem, order: list[int]) -> None:
    problem = problem.damped(DAMPING)
    grid = IntGrid(3, 3).fit(problem.weight)
    theta = nearest_plane(problem.weight, factor(problem.gram, np.array(order)), np.array(order), grid=grid)
    expected = plain_nearest_plane(problem, grid, np.array(order))
    if not np.allclose(theta, expected):  # two grid points may be equally near
        size = problem.objective(np.zeros(problem.shape))
        assert problem.objective(theta) == pytest.approx(
            problem.objective(expected), rel=0.2, abs=1e-9 * size
        )
    mask = np.isin(np.arange(6), order[:4])[None].repeat(2, axis=0)
    masked = masked_nearest_plane(problem, problem.weight * mask, mask, order=np.array(order), grid=grid)
    assert not masked[~mask].any()
    np.testing.assert_allclose(
        problem.objective(masked),
        problem.objective(plain_nearest_plane(problem, grid, np.array(order[:4]))),
        rtol=0.2,
    )


def test_errors_add_up_to_the_squares_of_the_factor() -> None:
    # C14: without clipping f = 1/2 sum U_ii^2 r_i^2 with |r_i| <= s / 2.
    problem = layer()
    for name in ORDERS:
        order = rounding_order(name, problem.gram, np.linspace(1, 2, 96))
        upper = factor(problem.gram, order)
        scales = np.full((70, 1), 0.1)
        grid = BoundGrid(IntGrid(8, 96), scales, np.full((70, 1), 128, np.uint8))
        weight = np.clip(problem.weight, -2, 2)
        theta = nearest_plane(weight, upper, order, grid=grid)
        bound = 0.1**2 / 8 * np.sum(np.square(upper.diagonal()))
        measured = row_objectives(Problem(weight, problem.gram), theta)
        assert (measured <= bound * (1 + 1e-9)).all() and measured.max() > bound / 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gram", ["samples", "spiked", "ill scaled"])
def test_nearest_planes_agree(isa: str, gram: str, dtype: str) -> None:
    for shape in ((70, 96), (3, 150), (1, 1)):
        problem, mask = layer(dtype, shape=shape, gram=gram), half_mask(shape)
        grid = IntGrid(3, shape[1]).fit(problem.weight)
        order = rounding_order("energy", problem.gram)
        upper = factor(problem.gram, order)
        start = np.where(mask, problem.weight, 0)
        expected = (
            nearest_plane(problem.weight, upper, order, grid=grid),
            masked_nearest_plane(problem, start, mask, order=order, grid=grid),
        )
        for threads in (1, 2, 3):
            found = (
                native.nearest_plane(problem.weight, upper, order, grid=grid, threads=threads),
                native.masked_nearest_plane(problem, start, mask, order=order, grid=grid, threads=threads),
            )
            for theta, reference in zip(found, expected, strict=True):
                check_agreement(problem, theta, reference)
            assert not found[1][~mask].any()
            if threads == 1:
                single = found
            assert_same_bits(found[0], single[0])
            assert_same_bits(found[1], single[1])


def check_agreement(problem: Problem, theta: np.ndarray, reference: np.ndarray) -> None:
    """Fail unless two roundings agree: in every code in float64; in f where float32 may tip a few codes."""
    if theta.dtype == np.float64:
        np.testing.assert_allclose(theta, reference, rtol=1e-12)
    else:
        assert np.mean(theta != reference) < 0.02
        assert problem.objective(theta) == pytest.approx(problem.objective(reference), rel=0.02)


# ------------------------------------------------------------------------------------------------ descent
ENGINES = st.sampled_from(("numpy", "native"))


@given(
    problem=problems((3, 8)),
    bits=st.sampled_from((2, 3, 4)),
    half=st.booleans(),
    masked=st.booleans(),
    backend=ENGINES,
)
def test_descent_ends_where_no_single_move_helps(
    *, problem: Problem, bits: int, half: bool, masked: bool, backend: str
) -> None:
    mask = half_mask(problem.shape) if masked else None
    grid = IntGrid(bits, 4, half_scales=half).fit(problem.weight)
    start = grid.round(problem.weight) * (1 if mask is None else mask)
    kept = start.copy()
    theta, moved = engine_of(backend).descend(problem, start, grid, mask=mask)
    assert_same_bits(start, kept)
    assert problem.objective(theta) <= problem.objective(start) * (1 + 1e-12)
    np.testing.assert_array_equal(moved.round(theta), theta)
    assert mask is None or not theta[~mask].any()
    if half:
        assert_same_bits(moved.scales.astype(np.float16).astype(np.float64), moved.scales)
    best = row_objectives(problem, theta)
    slack = 1e-9 * (row_objectives(problem, np.zeros(problem.shape)) + row_objectives(problem, start))
    for i, j in np.ndindex(problem.shape):
        if mask is not None and not mask[i, j]:
            continue
        for value in grid_values(moved, i, j):
            other = theta.copy()
            other[i, j] = value
            assert row_objectives(problem, other)[i] >= best[i] - slack[i]


def engine_of(name: str) -> Backend:
    return NumpyBackend() if name == "numpy" or not native.available() else NativeBackend(1)


@given(problems((3, 8)), ENGINES)
def test_scales_end_at_their_least_squares(problem: Problem, backend: str) -> None:
    grid = IntGrid(3, 4).fit(problem.weight)
    theta, moved = engine_of(backend).descend(problem, grid.round(problem.weight), grid)
    gradient = problem.gradient(theta).reshape(3, 2, 4)
    steps = (theta.reshape(3, 2, 4) / moved.scales[..., None]).round()
    slopes = np.abs(np.sum(gradient * steps, axis=2)) * moved.scales
    size = row_objectives(problem, np.zeros(problem.shape)) + row_objectives(
        problem, grid.round(problem.weight)
    )
    # The limit on passes may stop the last digits; a wrong formula would leave slopes near f itself.
    assert (slopes <= 0.05 * size[:, None] + 1e-12).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gram", ["samples", "spiked", "dead inputs", "zero"])
@pytest.mark.parametrize("half", [False, True])
def test_descents_agree(isa: str, *, half: bool, gram: str, dtype: str) -> None:
    problem = Problem(make_weight("heavy tails", (70, 96), dtype, seed=1), make_gram(gram, 96, dtype, seed=2))
    grid = IntGrid(3, 32, half_scales=half).fit(problem.weight)
    size = problem.objective(np.zeros_like(problem.weight))
    for mask in (None, half_mask(problem.shape)):
        start = np.where(True if mask is None else mask, grid.round(problem.weight), 0).astype(dtype)
        for rescale in (False, True):
            first, _ = descend(problem, start, grid, mask=mask, passes=1, rescale=rescale)
            twin, _ = native.descend(problem, start, grid, mask=mask, passes=1, rescale=rescale, threads=1)
            assert abs(problem.objective(twin) - problem.objective(first)) <= 1e3 * F_TOLERANCE[dtype] * size
        (one, scales), (three, _) = (
            native.descend(problem, start, grid, mask=mask, threads=threads) for threads in (1, 3)
        )
        assert_same_bits(three, one)
        np.testing.assert_array_equal(scales.round(one), one)


# ------------------------------------------------------------------------------------------------ all stages
def enumerated(problem: Problem, grid: BoundGrid) -> np.ndarray:
    """Return the smallest f of every row over all points of its grid."""
    best = []
    for row in range(problem.shape[0]):
        values = [grid_values(grid, row, j) for j in range(problem.shape[1])]
        error = np.array(list(product(*values))) - problem.weight[row]
        best.append(0.5 * np.einsum("ij,jk,ik->i", error, problem.gram, error).min())
    return np.array(best)


def test_little_is_left_to_the_optimum(backend: str) -> None:
    problem = Problem(
        make_weight("normal", (24, 6), "float64", seed=1), make_gram("samples", 6, "float64", seed=2)
    )
    run = quantize(problem, Sparse(Dense(), IntGrid(2, 6)), engine=resolve(backend))
    grid = run.constraint.values
    assert isinstance(grid, BoundGrid)
    best, found = enumerated(problem, grid), row_objectives(problem, run.theta)
    assert (found >= best * (1 - 1e-9)).all()
    assert np.median(found / best) < 1.05 and found.sum() < 1.15 * best.sum()


@given(problem=problems(), bits=st.sampled_from((2, 3, 4)), masked=st.booleans(), backend=ENGINES)
def test_no_row_is_worse_than_rounding_to_nearest(
    *, problem: Problem, bits: int, masked: bool, backend: str
) -> None:
    mask = half_mask(problem.shape) if masked else None
    constraint = Sparse(Dense(), IntGrid(bits, problem.shape[1], half_scales=True))
    run = quantize(problem, constraint, mask=mask, engine=engine_of(backend))
    start = problem.weight * (1 if mask is None else mask)
    plain = IntGrid(bits, problem.shape[1], half_scales=True).fit(start).round(start) * (
        1 if mask is None else mask
    )
    rounded, found = row_objectives(problem, plain), row_objectives(problem, run.theta)
    assert (found <= rounded * (1 + 1e-9) + 1e-300).all()
    assert run.constraint.contains(run.theta) and (mask is None or not run.theta[~mask].any())
    assert (np.diff(run.objectives) <= 0).all()
    assert run.objective == pytest.approx(found.sum(), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_stages_pay(backend: str, bits: int) -> None:
    problem = Problem(
        make_weight("normal", (40, 64), "float32", seed=1), make_gram("samples", 64, "float32", seed=2)
    )
    run = quantize(problem, Sparse(Dense(), IntGrid(bits, 32, half_scales=True)), engine=resolve(backend))
    assert run.objective < 0.45 * run.objectives[0]
    mask = half_mask(problem.shape)
    fast, most = (
        quantize(
            problem,
            Sparse(RowSparse(64), IntGrid(bits, 32)),
            mask=mask,
            engine=resolve(backend),
            effort=effort,
        )
        for effort in ("fast", "max")
    )
    assert most.objective <= fast.objective < 0.6 * fast.objectives[0]


@pytest.mark.parametrize("gram", GRAM_KINDS)
def test_backends_end_equally_good(isa: str, gram: str) -> None:
    problem = Problem(
        make_weight("heavy tails", (35, 48), "float32", seed=3), make_gram(gram, 48, "float32", seed=4)
    )
    for mask in (None, half_mask(problem.shape)):
        constraint = Sparse(Dense(), IntGrid(4, 16, half_scales=True))
        runs = [
            quantize(problem, constraint, mask=mask, engine=engine)
            for engine in (REFERENCE, NativeBackend(1), NativeBackend(3))
        ]
        size = 1e-6 * problem.objective(np.zeros_like(problem.weight))
        assert runs[1].objective == pytest.approx(runs[0].objective, rel=0.03, abs=size)
        assert_same_bits(runs[2].theta, runs[1].theta)


@pytest.mark.parametrize("bits", BITS)
def test_scales_at_the_end_of_float16_are_served(backend: str, bits: int) -> None:
    weight = make_weight("normal", (8, 64), "float64", seed=0)
    weight *= 0.95 * float(np.finfo(np.float16).max) * (2**bits - 1) / np.ptp(weight, axis=1, keepdims=True)
    problem = Problem(weight, make_gram("samples", 64, "float64", seed=0))
    spec = IntGrid(bits, 64, half_scales=True)
    found = quantize(problem, Sparse(Dense(), spec), engine=resolve(backend))
    assert found.constraint.contains(found.theta)
    assert found.objective <= problem.objective(spec.fit(weight).round(weight))


def test_real_values_are_refused() -> None:
    with pytest.raises(ValueError, match="integer grid"):
        quantize(layer(), Sparse(Dense(), Reals()), engine=REFERENCE)


class Failing(NumpyBackend):
    """Rounds the first row to nothing finite."""

    def nearest_plane(self, *parts: Any, **options: Any) -> np.ndarray:
        theta = super().nearest_plane(*parts, **options)
        theta[0] = np.nan
        return theta


def test_a_row_that_comes_to_nothing_finite_keeps_its_point_and_its_f() -> None:
    problem = layer()
    run = quantize(problem, Sparse(Dense(), IntGrid(4, 32)), engine=Failing())
    assert np.isfinite(run.theta).all()
    assert run.objective == pytest.approx(problem.objective(run.theta))
