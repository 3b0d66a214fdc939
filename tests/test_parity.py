"""The native core against the reference, for every constraint, method and instruction set.

Selection, rounding, encoding and projection: every bit, on equal inputs. Solvers: within `F_TOLERANCE`, because sums
run in another order. Threads: never a different bit. A slow third oracle keeps the twins from being wrong together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import F_TOLERANCE, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from oracles import cheapest, exact_code, plain_pgd, sorted_mask
from strategies import DTYPES, GRAM_KINDS, WEIGHT_KINDS, cases, divisors, make_gram, make_weight, points

from awp_edge import (
    METHODS,
    NM,
    BalancedBlock,
    BlockSparse,
    CompressSpec,
    Dense,
    IntGrid,
    LowRank,
    Problem,
    Reals,
    RowSparse,
    Sparse,
    Stop,
    compress_layer,
    native,
    pgd,
    solve,
)
from awp_edge.backend import NATIVE_SUPPORTS, NativeBackend, NumpyBackend
from awp_edge.constraints import BITS, BoundGrid, Support

SIZES = range(1, 66)
ROWS = 6
FAMILIES = (Dense, RowSparse, NM, BalancedBlock, BlockSparse)


def family(kind: type, d: int) -> list[Support]:
    """Return supports of a family on ROWS x d: nothing, one, half, all but one and all kept."""
    if kind is Dense:
        return [Dense()]

    def ends(n: int) -> list[int]:
        return sorted({0, 1, n // 2, n - 1, n} & set(range(n + 1)))

    if kind is RowSparse:
        each = tuple(i * d // (ROWS - 1) for i in range(ROWS))
        return [*(RowSparse(k) for k in ends(d)), RowSparse(each)]
    if kind is BlockSparse:
        tiles = [(3, cols) for cols in divisors(d)[-3:-1]] + [(1, divisors(d)[-1])]
        return [BlockSparse(rows, cols, k) for rows, cols in tiles for k in ends(d // cols)]
    return [kind(k, m) for m in divisors(d) for k in ends(m)]


def overflowing(shape: tuple[int, int], dtype: str) -> np.ndarray:
    """Return weights of which some squares overflow and others underflow."""
    exponents = np.linspace(-0.7, 0.7, shape[0] * shape[1]) * np.log10(float(np.finfo(dtype).max))
    signs = np.where(np.arange(len(exponents)) % 2, 1.0, -1.0)
    order = np.random.default_rng(0).permutation(len(exponents))
    return (signs * 10.0**exponents)[order].reshape(shape).astype(dtype)


def inputs(shape: tuple[int, int], dtype: str) -> list[tuple[str, np.ndarray]]:
    """Return a third of all kinds of matrices, the next third for the next size."""
    made = [(kind, make_weight(kind, shape, dtype, seed=shape[1])) for kind in WEIGHT_KINDS]
    made += [("negative zeros", -made[5][1]), ("overflow", overflowing(shape, dtype))]
    return made[shape[1] % 3 :: 3]


# ------------------------------------------------------------------------------------------------ bit-exact primitives
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", FAMILIES, ids=lambda f: f.__name__)
def test_selection_and_projection_on_reals(isa: str, kind: type, dtype: str) -> None:
    with np.errstate(over="ignore", under="ignore"):
        for d in SIZES:
            for name, z in inputs((ROWS, d), dtype):
                for support in family(kind, d):
                    note = (support, name, d)
                    scores = np.nan_to_num(z * z)
                    assert_same_bits(
                        native.select(scores, support.descriptor(), threads=1), support.select(scores), note
                    )
                    constraint = Sparse(support)
                    assert_same_bits(native.project(z, constraint, threads=1), constraint.project(z), note)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_encoding_and_projection_on_grids(isa: str, bits: int, dtype: str) -> None:
    for d in (*range(1, 17), 24, 33, 48, 63, 64, 65):
        supports = [family(kind, d)[len(family(kind, d)) // 2] for kind in FAMILIES]
        for spec in grids_of(bits, d):
            for name, z in inputs((ROWS, d), dtype):
                grid = spec.fit(make_weight("heavy tails" if d % 2 else "ties", (ROWS, d), dtype, seed=1))
                assert_same_bits(native.encode(z, grid, threads=1), grid.encode(z), (spec, name, d))
                for support in supports:
                    constraint = Sparse(support, grid)
                    assert_same_bits(
                        native.project(z, constraint, threads=1),
                        constraint.project(z),
                        (spec, support, name, d),
                    )


def grids_of(bits: int, d: int) -> list[IntGrid]:
    """Return a short list of grids: one group, the finest groups, symmetric and half scales."""
    return [
        IntGrid(bits, d),
        IntGrid(bits, divisors(d)[len(divisors(d)) // 2], symmetric=True, half_scales=d % 2 == 1),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_of_halves(isa: str, dtype: str) -> None:
    # Every multiple of a quarter step, on scales that make the division exact and on scales that do not.
    z = np.arange(-80, 80, dtype=dtype)[None] / 4
    for scale in (1.0, 0.5, 3.0, 0.1, 1 / 3):
        for zero in (0, 7, 15):
            grid = BoundGrid(IntGrid(4, z.shape[1]), np.array([[scale]], dtype), np.array([[zero]], np.uint8))
            points = (z * z.dtype.type(scale)).astype(dtype)
            assert_same_bits(native.encode(points, grid, threads=1), grid.encode(points), (scale, zero))


@pytest.mark.parametrize("shape", [(1, 1), (1, 513), (97, 64), (193, 128), (48, 576), (200, 65)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_that_cross_tiles(isa: str, shape: tuple[int, int], dtype: str) -> None:
    ties = make_weight("ties", shape, dtype, seed=0)
    z = np.where(ties == 0, make_weight("normal", shape, dtype, seed=1), ties)
    block = max(divisors(shape[1])[:-1], default=1)
    for support in (RowSparse(shape[1] // 2), NM(block // 2, block), BalancedBlock(block // 2, block)):
        for values in (Reals(), IntGrid(4, shape[1], half_scales=True).fit(z)):
            constraint = Sparse(support, values)
            for threads in (1, 2, 3):
                theta = native.project(z, constraint, threads=threads)
                assert_same_bits(theta, constraint.project(z), (support, threads))


def test_every_native_support_is_tested() -> None:
    assert {family(kind, 8)[0].descriptor()[0] for kind in FAMILIES} == NATIVE_SUPPORTS


# ------------------------------------------------------------------------------------------------ the third oracle
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_native_projection_is_a_nearest_point(isa: str, data: st.DataObject, dtype: str) -> None:
    z, constraint = data.draw(points(dtype, max_in=6))
    theta = native.project(z, constraint, threads=1)
    distance, size = (float(np.sum((z.astype(np.float64) - t) ** 2)) for t in (theta, 0))
    slack = 8 * np.finfo(dtype).eps * size + z.size * np.finfo(dtype).tiny
    assert constraint.contains(theta) and distance <= cheapest(constraint, z) + slack


@given(data=st.data())
def test_native_selection_is_a_stable_sort(isa: str, data: st.DataObject) -> None:
    _, constraint = data.draw(points())
    shape = (constraint.values.scales.shape[0], 8) if isinstance(constraint.values, BoundGrid) else (ROWS, 8)
    support = constraint.support
    try:
        support.check(shape)
    except ValueError:
        support = RowSparse(3)
    scores = np.random.default_rng(data.draw(st.integers(0, 999))).integers(0, 4, shape).astype(np.float64)
    assert_same_bits(
        native.select(scores, support.descriptor(), threads=1), sorted_mask(support, scores), support
    )


@given(data=st.data())
def test_native_codes_are_exact(isa: str, data: st.DataObject) -> None:
    z, constraint = data.draw(points())
    if not isinstance(grid := constraint.values, BoundGrid):
        return
    codes = native.encode(z, grid, threads=1)
    for i, j in np.ndindex(z.shape):
        g = j // grid.spec.group_size
        assert codes[i, j] == exact_code(z[i, j], grid.scales[i, g], int(grid.zeros[i, g]), top=grid.spec.top)


@given(case=cases(max_out=3, max_in=8, gram_kinds=("samples", "few samples", "ill scaled")))
def test_native_iterates_are_those_of_algorithm_1(isa: str, case: tuple[Problem, Sparse]) -> None:
    problem, constraint = case
    step = 0.9 / problem.lipschitz()
    result = solve(
        problem, constraint, method=pgd(step), start=problem.weight, stop=Stop(2, tol=0), backend="native"
    )
    iterates = plain_pgd(problem, constraint, constraint.project(problem.weight), step=step, n=2)
    size = problem.objective(np.zeros(problem.shape)) + result.objectives[0]
    for t, objective in enumerate(result.objectives):
        z = iterates[max(t - 1, 0)] - step * problem.gradient(iterates[max(t - 1, 0)])
        if t and not np.allclose(z, problem.weight) and near_tie(constraint, z):
            return
        assert objective == pytest.approx(problem.objective(iterates[t]), abs=1e-11 * size)


def near_tie(constraint: Sparse, z: np.ndarray) -> bool:
    """Return whether a change in the last bits of Z changes its projection by more than that."""
    theta = constraint.project(z)
    nudged = [
        constraint.project(z * (1 + sign * 1e-12 * noise)) for sign in (-1, 1) for noise in tie_noise(z)
    ]
    return any(not np.allclose(theta, other, rtol=1e-9, atol=1e-9 * np.abs(z).max()) for other in nudged)


def tie_noise(z: np.ndarray) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.choice([-1.0, 1.0], z.shape) for _ in range(8))


# ------------------------------------------------------------------------------------------------ solvers and methods
PGD_SETS = {
    "dense": Sparse(Dense(), IntGrid(4, 16)),
    "row": Sparse(RowSparse(24)),
    "row x grid": Sparse(RowSparse(24), IntGrid(3, 16)),
    "2:4": Sparse(NM(2, 4)),
    "balanced x grid": Sparse(BalancedBlock(8, 16), IntGrid(4, 48)),
    "block": Sparse(BlockSparse(5, 8, 3)),
}


def layer(dtype: str, gram: str = "samples") -> Problem:
    return Problem(make_weight("heavy tails", (35, 48), dtype, seed=3), make_gram(gram, 48, dtype, seed=4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ramp", [0, 7])
@pytest.mark.parametrize("name", PGD_SETS)
def test_solvers_agree(isa: str, name: str, ramp: int, dtype: str) -> None:
    problem, tolerance = layer(dtype), F_TOLERANCE[dtype]
    options = {"method": pgd(ramp=ramp), "stop": Stop(max_iter=25)}
    reference = solve(problem, PGD_SETS[name], backend="numpy", **options)
    results = [
        solve(problem, PGD_SETS[name], backend="native", threads=threads, **options) for threads in (1, 2, 3)
    ]
    size = problem.objective(np.zeros(problem.shape))
    assert (results[0].n_iter, results[0].reason) == (reference.n_iter, reference.reason)
    np.testing.assert_allclose(results[0].objectives, reference.objectives, atol=tolerance * size, rtol=0)
    assert abs(results[0].objective - reference.objective) <= tolerance * size
    assert problem.objective(results[0].theta) == pytest.approx(results[0].objective, abs=tolerance * size)
    for other in results[1:]:
        assert_same_bits(other.theta, results[0].theta)
        assert_same_bits(other.objectives, results[0].objectives)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gram", GRAM_KINDS)
def test_solvers_agree_on_every_spectrum(isa: str, gram: str, dtype: str) -> None:
    problem, tolerance = layer(dtype, gram), F_TOLERANCE[dtype]
    for constraint in (Sparse(RowSparse(24)), Sparse(NM(2, 4), IntGrid(4, 16)), LowRank(9), LowRank(0)):
        first, second = (
            solve(problem, constraint, stop=Stop(8), backend=name) for name in ("numpy", "native")
        )
        size = problem.objective(np.zeros(problem.shape)) + first.objectives[0]
        assert abs(first.objective - second.objective) <= tolerance * size
        assert first.encoding.codes is None or second.encoding.codes.shape == problem.shape


def test_solvers_agree_on_a_layer_of_many_tiles(isa: str) -> None:
    problem = Problem(
        make_weight("heavy tails", (130, 576), "float32", seed=1), make_gram("spiked", 576, "float32", seed=2)
    )
    size = problem.objective(np.zeros_like(problem.weight))
    for constraint in (Sparse(RowSparse(288)), Sparse(BalancedBlock(32), IntGrid(4, 64, half_scales=True))):
        first, second, third = (
            solve(problem, constraint, stop=Stop(12), backend=name, threads=threads)
            for name, threads in (("numpy", None), ("native", 2), ("native", 3))
        )
        np.testing.assert_allclose(second.objectives, first.objectives, atol=1e-8 * size, rtol=0)
        assert_same_bits(third.theta, second.theta)


def test_bfloat16_products_end_as_good(isa: str) -> None:
    problem = layer("float32")
    start = solve(problem, Sparse(RowSparse(24)), stop=Stop(0), backend="native").objective
    exact, rounded = (
        solve(problem, Sparse(RowSparse(24)), method=pgd(products=products), stop=Stop(60), backend="native")
        for products in ("float32", "bfloat16")
    )
    assert rounded.objective < start - 0.8 * (start - exact.objective)
    assert rounded.objective == pytest.approx(problem.objective(rounded.theta), rel=1e-4)


SPECS = {
    "pruning": {"sparsity": 0.5},
    "2:4": {"pattern": "2:4"},
    "32/64": {"pattern": "32/64"},
    "quantization": {"bits": 4, "group_size": 32},
    "joint": {"bits": 4, "group_size": 32, "sparsity": 0.5},
    "low rank": {"rank": 7},
}
KIND = {"2:4": "pruning", "32/64": "pruning"}
METHOD_SPECS = [(m, name) for m in METHODS for name in SPECS if METHODS[m].handles(KIND.get(name, name))]
#: Methods whose result follows from selection and rounding alone, so that the twins owe each other every bit.
EXACT_METHODS = ("magnitude", "wanda", "rtn")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("method", "name"), METHOD_SPECS)
def test_methods_agree(isa: str, method: str, name: str, dtype: str) -> None:
    weight, gram = (
        make_weight("heavy tails", (20, 64), dtype, seed=5),
        make_gram("samples", 64, dtype, seed=6),
    )
    spec = CompressSpec(method=method, **SPECS[name])
    reference, *twins = (compress_layer(weight, gram, spec, backend="numpy"), *(
        compress_layer(weight, gram, spec, backend="native", threads=threads) for threads in (1, 2, 3)
    ))  # fmt: skip
    if method in EXACT_METHODS:
        assert_same_bits(twins[0].theta, reference.theta)
    size = Problem(weight, gram).objective(np.zeros_like(weight))
    assert abs(twins[0].objective - reference.objective) <= 10 * F_TOLERANCE[dtype] * size
    assert (twins[0].reason, twins[0].converged) == (reference.reason, reference.converged)
    for twin in twins[1:]:
        assert_same_bits(twin.theta, twins[0].theta)


# ------------------------------------------------------------------------------------------------ errors
BAD_CALLS = {
    "k too large": lambda e: e.project(Sparse(RowSparse(9)), np.ones((2, 8))),
    "pattern that does not divide": lambda e: e.project(Sparse(NM(2, 3)), np.ones((2, 8))),
    "blocks that do not tile": lambda e: e.select(BlockSparse(2, 4, 1), np.ones((3, 8))),
    "select with k too large": lambda e: e.select(RowSparse(9), np.ones((2, 8))),
    "unbound grid": lambda e: e.project(Sparse(Dense(), IntGrid(4, 4)), np.ones((2, 8))),
    "grid of another shape": lambda e: e.encode(IntGrid(4, 4).fit(np.ones((2, 8))), np.ones((3, 8))),
    "projection on a grid of another shape": lambda e: e.project(
        Sparse(Dense(), IntGrid(4, 4).fit(np.ones((2, 8)))), np.ones((3, 8))
    ),
    "rank too large": lambda e: e.factors(Problem(np.ones((2, 8)), np.eye(8)), LowRank(3)),
    "ramp longer than the run": lambda e: solve(
        Problem(np.ones((2, 8)), np.eye(8)),
        Sparse(RowSparse(2)),
        method=pgd(ramp=9),
        stop=Stop(3),
        backend=e.name,
    ),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_both_backends_raise_the_same(isa: str, call: str) -> None:
    caught = []
    for engine in (NumpyBackend(), NativeBackend()):
        with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ValueError) as error:
            BAD_CALLS[call](engine)
        caught.append((type(error.value), str(error.value)))
    assert caught[0] == caught[1] and "\n" not in caught[0][1]
