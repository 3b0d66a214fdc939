"""The peers with a solver of their own: exact small cases, identities, and the order that is published for them."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import best_sparse_objective, sorted_mask
from strategies import (
    DTYPES,
    ORDINARY,
    cases,
    divisors,
    grams,
    make_gram,
    make_weight,
    problems,
    supports,
    weights,
)

from awp_edge import (
    NM,
    BalancedBlock,
    CompressSpec,
    Dense,
    IntGrid,
    LowRank,
    Problem,
    Reals,
    RowSparse,
    Sparse,
    compress_layer,
)
from awp_edge.backend import resolve
from awp_edge.baselines import Gptq, alps, awq, gptq, magnitude, rtn, sparsegpt, svd, wanda
from awp_edge.baselines.alps import refit
from awp_edge.baselines.asvd import asvd, junction
from awp_edge.baselines.gptq import ORDERS
from awp_edge.baselines.sweep import Sweep, inverse_factor

SHAPE = (3, 8)
NUMPY = resolve("numpy")
#: C that correlates inputs, as layers do.
CORRELATED = ("samples", "log spectrum", "spiked", "ill scaled")


def layer(shape: tuple[int, int] = (24, 160), *, gram: str = "samples", dtype: str = "float64") -> Problem:
    return Problem(make_weight("heavy tails", shape, dtype, seed=1), make_gram(gram, shape[1], dtype, seed=2))


def diagonal(problem: Problem) -> Problem:
    return Problem(problem.weight, np.diag(problem.gram.diagonal()))


def damped(problem: Problem, damping: float = 0.01) -> np.ndarray:
    ridge = damping * problem.gram.diagonal().mean() or 1.0
    return problem.gram + ridge * np.eye(problem.shape[1])


# ------------------------------------------------------------------------------------------------ every one of them
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("peer", [sparsegpt, gptq, alps], ids=lambda f: f.__name__)
@given(data=st.data())
def test_peers_are_feasible_and_pure(backend: str, data: st.DataObject, dtype: str, peer: object) -> None:
    problem, constraint = data.draw(cases(dtype))
    if peer is gptq:
        constraint = Sparse(Dense(), constraint.values)
    if peer is alps:
        constraint = Sparse(constraint.support)
    before = problem.weight.copy(), problem.gram.copy()
    theta = peer(problem, constraint, engine=resolve(backend))
    assert theta.dtype == dtype and theta.flags.c_contiguous and np.isfinite(theta).all()
    assert constraint.contains(theta)
    np.testing.assert_array_equal(problem.weight, before[0])
    np.testing.assert_array_equal(problem.gram, before[1])


@given(weight=weights(SHAPE, kinds=("normal", "heavy tails")), support=supports(SHAPE))
def test_on_white_inputs_sparsegpt_is_magnitude(weight: np.ndarray, support: object) -> None:
    problem, constraint = Problem(weight, np.eye(8)), Sparse(support)
    expected = magnitude(problem, constraint, engine=NUMPY)
    np.testing.assert_array_equal(sparsegpt(problem, constraint, engine=NUMPY), expected)


def test_an_indefinite_c_gets_one_line() -> None:
    gram = np.array([[1.0, 2.0], [2.0, 1.0]])
    for peer, values in ((gptq, IntGrid(4, 2)), (sparsegpt, Reals())):
        with pytest.raises(ValueError, match=r"gram is not positive semidefinite even with 0\.01 added"):
            peer(Problem(np.ones((1, 2)), gram), Sparse(Dense(), values), engine=NUMPY)


# ------------------------------------------------------------------------------------------------ the sweep
@given(problem=problems(), data=st.data())
def test_the_factor_inverts_c(problem: Problem, data: st.DataObject) -> None:
    order = np.array(data.draw(st.permutations(range(problem.shape[1]))))
    upper = inverse_factor(problem, order, damping=0.01)
    np.testing.assert_array_equal(upper, np.triu(upper))
    product = (upper.T @ upper) @ damped(problem)[np.ix_(order, order)]
    np.testing.assert_allclose(product, np.eye(problem.shape[1]), atol=1e-9)


def test_a_wide_factor_is_inverted_by_halves() -> None:
    problem = layer((1, 391), gram="spiked")
    upper = inverse_factor(problem, np.arange(391), damping=0.01)
    np.testing.assert_array_equal(upper, np.triu(upper))
    np.testing.assert_allclose((upper.T @ upper) @ damped(problem), np.eye(391), atol=1e-8)


@pytest.mark.parametrize("block", [1, 5, 128])
@given(problem=problems((3, 10), gram_kinds=CORRELATED), seed=st.integers(0, 99))
def test_what_a_sweep_leaves_adds_up(block: int, problem: Problem, seed: int) -> None:
    """tr(R H R^T) = sum_j ||r_j||^2 / U_jj^2, whatever the columns are settled at (proof: H = (U^T U)^-1)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(10)
    sweep = Sweep(order, inverse_factor(problem, order, damping=0.01), block)
    total = 0.0

    def settle(z: np.ndarray, j: int) -> np.ndarray:
        nonlocal total
        value = rng.normal(size=3)
        total += float(np.sum((z[j] - value) ** 2)) / sweep.upper[j, j] ** 2
        return value

    residual = problem.weight - sweep.run(problem.weight, settle, engine=NUMPY)
    assert np.trace(residual @ damped(problem) @ residual.T) == pytest.approx(total, rel=1e-8)


def test_the_block_is_a_matter_of_speed() -> None:
    problem = layer()
    order = np.arange(160)
    upper = inverse_factor(problem, order, damping=0.01)
    first, second = (
        Sweep(order, upper, block).run(problem.weight, lambda z, j: np.round(z[j]), engine=NUMPY)
        for block in (1, 64)
    )
    np.testing.assert_array_equal(first, second)


# ------------------------------------------------------------------------------------------------ GPTQ
@pytest.mark.parametrize("order", ORDERS)
@given(data=st.data())
def test_gptq_on_independent_inputs_is_rtn(backend: str, order: str, data: st.DataObject) -> None:
    problem = diagonal(data.draw(problems(SHAPE)))
    constraint = Sparse(
        Dense(), IntGrid(data.draw(st.sampled_from((2, 3, 4, 8))), data.draw(st.sampled_from((2, 8))))
    )
    engine = resolve(backend)
    np.testing.assert_array_equal(
        gptq(problem, constraint, engine=engine, options=Gptq(order)), rtn(problem, constraint, engine=engine)
    )


def test_gptq_settles_the_strongest_inputs_first() -> None:
    # Two equal inputs: the second makes up for the first. The first settled is rounded as it is.
    gram = np.array([[1.0, 0.999], [0.999, 1.1]])
    grid = Sparse(Dense(), IntGrid(2, 2)).bind(np.array([[0.0, 3.0]]))
    problem = Problem(np.array([[1.4, 1.4]]), gram)
    natural, activation = (gptq(problem, grid, engine=NUMPY, options=Gptq(order)) for order in ORDERS)
    np.testing.assert_array_equal(natural, [[1, 2]])
    np.testing.assert_array_equal(activation, [[2, 1]])


@pytest.mark.parametrize("gram", CORRELATED)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_beats_rtn_on_correlated_inputs(gram: str, bits: int) -> None:
    problem, constraint = layer(gram=gram), Sparse(Dense(), IntGrid(bits, 32))
    error = problem.objective(rtn(problem, constraint, engine=NUMPY))
    for order in ORDERS:
        assert problem.objective(gptq(problem, constraint, engine=NUMPY, options=Gptq(order))) < 0.9 * error


def test_bad_variants_are_refused() -> None:
    for options in ({"order": "random"}, {"damping": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Gptq(**options)


# ------------------------------------------------------------------------------------------------ SparseGPT
@pytest.mark.parametrize(
    "support", [RowSparse(70), NM(2, 4), BalancedBlock(5, 16), Dense(), RowSparse(0)], ids=str
)
def test_sparsegpt_on_independent_inputs_keeps_the_largest(backend: str, support: object) -> None:
    problem = diagonal(layer())
    theta = sparsegpt(problem, Sparse(support), engine=resolve(backend))
    gain = problem.weight**2 * damped(problem).diagonal()
    np.testing.assert_array_equal(theta, np.where(sorted_mask(support, gain), problem.weight, 0))


@pytest.mark.parametrize("support", [RowSparse(80), NM(2, 4), NM(4, 8), BalancedBlock(8, 16)], ids=str)
@pytest.mark.parametrize("gram", CORRELATED)
def test_pruners_in_the_published_order(backend: str, gram: str, support: object) -> None:
    problem, constraint, engine = layer(gram=gram), Sparse(support), resolve(backend)
    errors = [problem.objective(f(problem, constraint, engine=engine)) for f in (wanda, sparsegpt, alps)]
    assert errors[0] > errors[2]
    # SparseGPT's damping is a share of the mean energy: it drowns inputs that are fainter by orders of magnitude.
    assert gram == "ill scaled" or errors[0] > errors[1] > errors[2]
    theta = sparsegpt(problem, constraint, engine=engine)
    assert np.count_nonzero(theta) == np.count_nonzero(wanda(problem, constraint, engine=engine))


def test_joint_sparsegpt_makes_up_for_rounding_too() -> None:
    problem = layer()
    joint = Sparse(RowSparse(80), IntGrid(3, 32)).bind(problem.weight)
    pruned = sparsegpt(problem, Sparse(RowSparse(80)), engine=NUMPY)
    afterwards = joint.restrict(pruned, pruned != 0)
    assert problem.objective(sparsegpt(problem, joint, engine=NUMPY)) < 0.9 * problem.objective(afterwards)


@given(weight=weights(SHAPE), gram=grams(8))
def test_sparsegpt_that_keeps_all_changes_nothing(weight: np.ndarray, gram: np.ndarray) -> None:
    np.testing.assert_array_equal(
        sparsegpt(Problem(weight, gram), Sparse(RowSparse(8)), engine=NUMPY), weight
    )


# ------------------------------------------------------------------------------------------------ ALPS
def test_alps_comes_near_the_best_support() -> None:
    ratios = []
    for seed in range(20):
        weight = make_weight("normal", (3, 8), "float64", seed=seed)
        problem = Problem(weight, make_gram("samples", 8, "float64", seed=seed))
        k = 1 + seed % 7
        best = best_sparse_objective(problem, k)
        found = problem.objective(alps(problem, Sparse(RowSparse(k)), engine=NUMPY))
        assert found >= best * (1 - 1e-9)
        ratios.append(found / best)
    assert np.median(ratios) < 1.2 and np.mean(ratios) < 1.5


def test_alps_ends_where_nothing_is_to_choose() -> None:
    problem = layer((4, 12))
    np.testing.assert_allclose(alps(problem, Sparse(RowSparse(12)), engine=NUMPY), problem.weight)
    np.testing.assert_array_equal(alps(problem, Sparse(RowSparse(0)), engine=NUMPY), 0)


@given(case=cases(max_out=4, max_in=8), steps=st.integers(0, 12))
def test_a_refit_never_raises_f(case: tuple[Problem, Sparse], steps: int) -> None:
    problem = case[0]
    start = magnitude(problem, Sparse(case[1].support), engine=NUMPY)
    theta = refit(problem, start != 0, start, engine=NUMPY, steps=steps)
    assert not theta[start == 0].any()
    size = problem.objective(np.zeros(problem.shape))
    assert problem.objective(theta) <= problem.objective(start) + 1e-10 * size


def test_a_refit_ends_at_least_squares() -> None:
    problem = layer((5, 24))
    mask = wanda(problem, Sparse(RowSparse(12)), engine=NUMPY) != 0
    theta = refit(problem, mask, problem.weight, engine=NUMPY, steps=60)
    for row, kept in enumerate(mask):
        block = problem.gram[np.ix_(kept, kept)]
        exact = np.linalg.solve(block, problem.gram[kept] @ problem.weight[row])
        np.testing.assert_allclose(theta[row, kept], exact, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ AWQ
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_awq_is_never_worse_than_rtn(backend: str, data: st.DataObject, dtype: str) -> None:
    problem = data.draw(problems(SHAPE, dtype))
    spec = IntGrid(data.draw(st.sampled_from((2, 3, 4))), data.draw(st.sampled_from(divisors(8))))
    constraint, engine = Sparse(Dense(), spec), resolve(backend)
    found = awq(problem, constraint, engine=engine)
    assert found.theta.dtype == dtype and (found.input_scales > 0).all()
    assert found.constraint.contains(found.scaled)
    np.testing.assert_array_equal(found.theta, found.scaled / found.input_scales)
    assert not found.theta[problem.weight == 0].any()
    bound = problem.objective(rtn(problem, constraint, engine=engine))
    assert problem.objective(found.theta) <= bound * (1 + 1e-5) + 1e-6 * problem.objective(0 * found.theta)


def test_awq_spares_the_inputs_that_matter() -> None:
    # One input carries nearly all energy: scaled up, its weights are rounded on a finer grid than the rest.
    weight = make_weight("normal", (16, 32), "float64", seed=0)
    problem = Problem(weight, np.diag([1e4] + [1.0] * 31))
    constraint = Sparse(Dense(), IntGrid(3, 32))
    found = awq(problem, constraint, engine=NUMPY)
    assert found.input_scales[0] > 2 * found.input_scales[1]
    assert problem.objective(found.theta) < 0.5 * problem.objective(rtn(problem, constraint, engine=NUMPY))


def test_awq_clips_what_only_stretches_the_grid() -> None:
    # White inputs leave nothing to scale. An outlier of 2 stretches the grid of 63 weights near +-0.5.
    weight = np.where(np.arange(64) % 2, 0.5, -0.5)[None] * np.linspace(0.9, 1.1, 64)
    weight[0, 0] = 1.0
    problem, constraint = Problem(weight, np.eye(64)), Sparse(Dense(), IntGrid(2, 64))
    found = awq(problem, constraint, engine=NUMPY)
    np.testing.assert_array_equal(found.input_scales, 1)
    assert found.constraint.values.scales[0, 0] < IntGrid(2, 64).fit(weight).scales[0, 0]
    assert problem.objective(found.theta) < problem.objective(rtn(problem, constraint, engine=NUMPY))


# ------------------------------------------------------------------------------------------------ low rank
@given(weight=weights(SHAPE, kinds=ORDINARY), gram=grams(8), rank=st.integers(0, 3))
def test_svd_is_the_projection_and_never_below_asvd(weight: np.ndarray, gram: np.ndarray, rank: int) -> None:
    problem, constraint = Problem(weight, gram), LowRank(rank)
    left, right = svd(problem, constraint, engine=NUMPY)
    np.testing.assert_allclose(
        left @ right, constraint.project(weight), atol=1e-12 * np.abs(weight).max(initial=1)
    )
    weighted = asvd(problem, constraint, engine=NUMPY)
    size = problem.objective(np.zeros(SHAPE))
    assert problem.objective(weighted[0] @ weighted[1]) <= problem.objective(left @ right) + 1e-12 * size


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_the_junction_form_is_exact(data: st.DataObject, dtype: str) -> None:
    shape = (6, 10)
    problem = Problem(data.draw(weights(shape, dtype, ORDINARY)), data.draw(grams(10, dtype)))
    left, right = asvd(problem, LowRank(data.draw(st.integers(0, 6))), engine=NUMPY)
    joined, reduced, pivots = junction(left, right)
    assert joined.dtype == reduced.dtype == dtype and len(set(pivots.tolist())) == len(pivots) <= len(right)
    np.testing.assert_array_equal(reduced[:, pivots], np.eye(len(pivots)))
    limit = 1e-9 if dtype == "float64" else 1e-3
    size = float(np.abs(left @ right).max(initial=0.0)) + float(np.abs(left).max(initial=0)) * float(
        np.abs(right).max(initial=0)
    )
    np.testing.assert_allclose(joined @ reduced, left @ right, atol=limit * size, rtol=0)


# ------------------------------------------------------------------------------------------------ inputs without a use
def some_dead(times: float) -> tuple[Problem, np.ndarray]:
    """Return a layer of weak inputs with dead ones among them, whose weights are `times` as large as they were."""
    whole = layer((16, 128))
    dead = np.arange(128) % 8 == 3
    gram = np.where(dead | dead[:, None], 0, whole.gram) * 1e-4
    return Problem(np.where(dead, times * whole.weight, whole.weight), gram), dead


@pytest.mark.parametrize("kind", ["duplicates", "constants", "few tokens"])
def test_alps_takes_no_steps_in_noise(kind: str, backend: str) -> None:
    engine = resolve(backend)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        inputs = rng.normal(size=(3 if kind == "few tokens" else 128, 32))
        if kind == "duplicates":
            inputs[:, :16] = inputs[:, 16:]
        elif kind == "constants":
            inputs[:, :8] = 1
        gram = (inputs.T @ inputs / len(inputs)).astype(np.float32)
        problem = Problem(rng.normal(size=(32, 32)).astype(np.float32), gram)
        found = alps(problem, Sparse(RowSparse(3)), engine=engine)
        assert problem.relative_error(found) < 1 and np.abs(found).max() < 1000


def test_alps_keeps_no_dead_input_while_live_ones_go() -> None:
    problem, dead = some_dead(1.0)
    kept = alps(problem, Sparse(RowSparse(64)), engine=NUMPY) != 0
    assert not kept[:, dead].any()


@pytest.mark.parametrize("method", ["gptq", "gptq-actorder", "sparsegpt", "awp-plus"])
def test_dead_inputs_do_not_stretch_the_grid(method: str) -> None:
    options = {"bits": 4, "group_size": 32, **({"sparsity": 0.5} if method == "sparsegpt" else {})}
    errors = []
    for times in (0.0, 20.0):
        problem, _ = some_dead(times)
        theta = compress_layer(problem.weight, problem.gram, CompressSpec(method=method, **options)).theta
        errors.append(problem.objective(theta))
    assert errors[1] <= errors[0] * 1.02


def test_a_group_of_n_to_m_that_fits_no_block_is_chosen_when_the_sweep_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, constraint = layer((8, 192)), Sparse(NM(48, 96))
    found = sparsegpt(problem, constraint, engine=NUMPY)
    module = import_module("awp_edge.baselines.sparsegpt")  # the package gives this name to the function
    monkeypatch.setattr(
        module, "Sweep", lambda order, upper, *_: Sweep(order, upper, len(order))
    )  # never lazy
    np.testing.assert_allclose(found, sparsegpt(problem, constraint, engine=NUMPY), rtol=1e-9, atol=1e-12)
