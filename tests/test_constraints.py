"""Constraints: exact projections, the laws their traits promise, ties, grids, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from oracles import allowed_masks, cheapest, sorted_mask
from strategies import DTYPES, constraints, grids, points, shapes, sparse_sets, supports, weights

from awp_edge import NM, BalancedBlock, BlockSparse, Dense, IntGrid, LowRank, Reals, RowSparse, Sparse
from awp_edge.constraints import BoundGrid, Constraint, gain, top_k

Drawn = tuple[np.ndarray, Sparse]


def bound(constraint: Constraint, weight: np.ndarray) -> Constraint:
    return constraint.bind(weight) if isinstance(constraint, Sparse) else constraint


def checked_projection(constraint: Constraint, z: np.ndarray) -> np.ndarray:
    """Project and check what every projection owes: the input untouched, the dtype kept, C order, no -0."""
    before = z.copy()
    theta = constraint.project(z)
    np.testing.assert_array_equal(z.view(np.uint8), before.view(np.uint8))
    assert theta.dtype == z.dtype and theta.shape == z.shape and theta.flags.c_contiguous
    assert not np.shares_memory(theta, z)
    if isinstance(constraint, Sparse):
        assert not np.signbit(theta[theta == 0]).any()
    return theta


def squares_underflow(theta: np.ndarray) -> bool:
    """Return whether the square of a nonzero entry is below the smallest normal number."""
    smallest = np.abs(theta[theta != 0]).min(initial=1)
    return bool(smallest**2 < np.finfo(theta.dtype).tiny)


# ------------------------------------------------------------------------------------------------ every projection
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_projection_is_feasible_and_idempotent(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(shapes(4, 12))
    z, weight = data.draw(weights(shape, dtype)), data.draw(weights(shape, dtype))
    constraint = bound(data.draw(constraints(shape)), weight)
    if isinstance(constraint, LowRank):  # subnormal entries cannot hold a matrix of low rank
        assume(np.abs(z).max() >= np.finfo(dtype).tiny or not z.any())
    theta = checked_projection(constraint, z)
    assert constraint.contains(theta)
    again = checked_projection(constraint, theta)
    assume(not squares_underflow(theta))  # their gains tie at 0: another point, equally near up to rounding
    if isinstance(constraint, Sparse):
        np.testing.assert_array_equal(again, theta)
    else:
        np.testing.assert_allclose(again, theta, atol=20 * np.finfo(dtype).eps * np.abs(z).max())


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_projection_is_a_nearest_point(data: st.DataObject, dtype: str) -> None:
    z, constraint = data.draw(points(dtype, max_in=6))
    theta = checked_projection(constraint, z)
    distance = float(np.sum((z.astype(np.float64) - theta) ** 2))
    best, size = cheapest(constraint, z), float(np.sum(z.astype(np.float64) ** 2))
    event(f"exactly {'on' if distance == 0 else 'off'} the set")
    assert (
        best * (1 - 1e-12)
        <= distance
        <= best + 8 * np.finfo(dtype).eps * size + z.size * np.finfo(dtype).tiny
    )


@given(points())
def test_no_mask_of_the_family_beats_the_choice(drawn: Drawn) -> None:
    z, constraint = drawn
    z = z[:1] if not isinstance(constraint.support, BlockSparse) else z[: constraint.support.rows]
    assume(z.shape == drawn[0].shape)
    distance = np.sum((z - constraint.project(z)) ** 2)
    for mask in allowed_masks(constraint.support, z.shape):
        other = constraint.restrict(z, mask)
        assert constraint.contains(other)
        assert distance <= np.sum((z - other) ** 2) * (1 + 1e-12)


@given(st.data())
def test_projection_obeys_its_traits(data: st.DataObject) -> None:
    shape = data.draw(shapes(4, 8))
    z = data.draw(weights(shape, kinds=("normal", "ties", "sparse", "zero rows", "heavy tails")))
    constraint = bound(data.draw(constraints(shape)), z)
    traits, theta = constraint.traits, constraint.project(z)
    size = np.abs(z).max() ** 2
    if traits.cone:
        np.testing.assert_allclose(
            constraint.project(4 * z), 4 * theta, rtol=1e-12, atol=1e-12 * np.abs(z).max()
        )
    if traits.union_of_subspaces:
        assert abs(np.sum((z - theta) * theta)) <= 1e-12 * z.size * size
    if traits.row_separable:
        for i in range(shape[0]):
            alone = project_row(constraint, z, i)
            np.testing.assert_array_equal(alone, theta[i : i + 1])


def project_row(constraint: Sparse, z: np.ndarray, i: int) -> np.ndarray:
    """Project one row with its own scales."""
    grid = constraint.values
    if isinstance(grid, BoundGrid):
        grid = BoundGrid(grid.spec, grid.scales[i : i + 1], grid.zeros[i : i + 1])
    return Sparse(constraint.support, grid).project(z[i : i + 1])


def test_traits_say_no_where_the_law_fails() -> None:
    # The traits are not vacuous: an integer grid is no cone, and the blocks of two rows are not separable.
    z = np.array([[1.0, 0.2], [0.1, 3.0]])
    grid = Sparse(Dense(), IntGrid(2, 2)).bind(z)
    assert not grid.traits.cone and not grid.traits.union_of_subspaces
    assert not np.array_equal(grid.project(4 * z), 4 * grid.project(z))
    blocks = Sparse(BlockSparse(2, 1, 1))
    assert not blocks.traits.row_separable
    assert not np.array_equal(blocks.project(z)[:1], Sparse(BlockSparse(1, 1, 1)).project(z[:1]))


# ------------------------------------------------------------------------------------------------ supports
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_selection_is_a_stable_sort(data: st.DataObject, dtype: str) -> None:
    support, scores = draw_selection(data, dtype)
    support.check(scores.shape)
    before = scores.copy()
    mask = support.select(scores)
    np.testing.assert_array_equal(scores, before)
    assert mask.dtype == np.bool_ and mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, sorted_mask(support, scores))


def draw_selection(data: st.DataObject, dtype: str) -> tuple[object, np.ndarray]:
    shape = data.draw(shapes(4, 12))
    scores = np.abs(data.draw(weights(shape, dtype)))
    support = data.draw(supports(shape))
    if isinstance(support, BlockSparse):  # sums are compared exactly: keep them exact
        scores = np.rint(scores * 16).clip(0, 2**16).astype(dtype)
    event("ties" if len(np.unique(scores)) < scores.size else "no ties")
    return support, scores


@pytest.mark.parametrize(
    ("support", "expected"),
    [
        (RowSparse(2), [1, 1, 0, 0, 0, 0, 0, 0]),
        (NM(1, 4), [1, 0, 0, 0, 1, 0, 0, 0]),
        (BalancedBlock(2, 4), [1, 1, 1, 1, 0, 0, 0, 0]),  # blocks are the even and the odd inputs
        (BlockSparse(1, 2, 1), [1, 1, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_ties_go_to_the_lowest_index(support: object, expected: list[int]) -> None:
    np.testing.assert_array_equal(support.select(np.ones((1, 8))), [np.array(expected, bool)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_at_the_threshold_only_fill_what_is_missing(dtype: str) -> None:
    scores = np.array([[1, 3, 1, 2, 1, 3]], dtype)
    for k, kept in enumerate([[], [1], [1, 5], [1, 3, 5], [0, 1, 3, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]):
        assert np.flatnonzero(top_k(scores, k)).tolist() == kept


def test_interleaved_blocks() -> None:
    # Block b of n = 2 holds the inputs b, b + 2, b + 4, ...: the three largest scores all lie in block 0.
    scores = np.array([[9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 0.0, 0.0]])
    np.testing.assert_array_equal(np.flatnonzero(BalancedBlock(2, 4).select(scores)), [0, 2, 3, 5])


@given(st.data())
def test_ramp_goes_from_dense_to_the_support(data: st.DataObject) -> None:
    shape = data.draw(shapes(4, 12))
    support = data.draw(supports(shape))
    scores = np.random.default_rng(0).permutation(shape[0] * shape[1]).reshape(shape).astype(float)
    assert support.at(0.0, shape).select(scores).all()
    assert support.at(1.0, shape) == support
    previous = np.ones(shape, bool)
    for fraction in (0.25, 0.5, 0.75, 1.0):
        relaxed = support.at(fraction, shape)
        relaxed.check(shape)
        mask = relaxed.select(scores)
        assert not (mask & ~previous).any()  # each mask is inside the one before
        previous = mask


def test_ramp_rounds_half_up() -> None:
    assert RowSparse(1).at(0.5, (1, 4)) == RowSparse(3)
    assert NM(2, 4).at(0.25, (1, 8)) == NM(4, 4)
    assert BalancedBlock(32).at(0.5, (1, 64)) == BalancedBlock(48)
    assert BlockSparse(2, 4, 1).at(0.5, (4, 8)) == BlockSparse(2, 4, 2)


@pytest.mark.parametrize(
    ("support", "shape", "message"),
    [
        (RowSparse(5), (2, 4), "k (nonzeros per row) must lie between 0 and 4, got 5"),
        (RowSparse(-1), (2, 4), "k (nonzeros per row) must lie between 0 and 4, got -1"),
        (NM(2, 4), (2, 6), "pattern 2:4 needs m = 4 to divide d_in = 6"),
        (NM(5, 4), (2, 8), "n of 5:4 must lie between 0 and 4, got 5"),
        (NM(0, 0), (2, 8), "pattern 0:0 needs m = 0 to divide d_in = 8"),
        (BalancedBlock(32), (2, 96), "pattern 32/64 needs 64 to divide d_in = 96"),
        (BalancedBlock(65), (2, 64), "k of 65/64 must lie between 0 and 64, got 65"),
        (BlockSparse(2, 4, 1), (3, 8), "blocks of 2x4 do not tile a 3x8 matrix"),
        (BlockSparse(1, 0, 1), (3, 8), "blocks of 1x0 do not tile a 3x8 matrix"),
        (BlockSparse(1, 4, 3), (3, 8), "k (blocks per strip) must lie between 0 and 2, got 3"),
    ],
)
def test_supports_refuse_what_does_not_fit(support: object, shape: tuple[int, int], message: str) -> None:
    constraint = Sparse(support)
    for call in (support.check, constraint.check):
        with pytest.raises(ValueError) as caught:
            call(shape)
        assert str(caught.value) == message
    with pytest.raises(ValueError):
        constraint.project(np.zeros(shape))
    with pytest.raises(ValueError):
        constraint.contains(np.zeros(shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntGrid(5), "bits = 5 is not offered: choose one of 2, 3, 4, 8"),
        (lambda: IntGrid(4, 0), "group size must be at least 1, got 0"),
        (lambda: IntGrid(4, 3).fit(np.ones((2, 4))), "group size 3 does not divide d_in = 4"),
        (lambda: Sparse(Dense(), IntGrid(4, 3)).check((2, 4)), "group size 3 does not divide d_in = 4"),
        (
            lambda: Sparse(Dense(), IntGrid(4, 2)).project(np.ones((2, 4))),
            "the integer grid has no scales yet",
        ),
        (
            lambda: Sparse(Dense(), IntGrid(4, 2)).contains(np.ones((2, 4))),
            "the integer grid has no scales yet",
        ),
        (
            lambda: IntGrid(4, 2).fit(np.ones((2, 4))).round(np.ones((3, 4))),
            "the grid was fitted to a (2, 4) matrix",
        ),
        (lambda: IntGrid(4, 2, half_scales=True).fit(np.full((1, 2), 1e7)), "a group needs the scale"),
        (
            lambda: IntGrid(4, 2).fit(np.array([[-3e38, 3e38]], np.float32)),
            "a group spans more than 3.403e+38, the largest float32",
        ),
        (lambda: LowRank(3).check((2, 4)), "rank must lie in 0..2 for a 2x4 matrix, got 3"),
        (lambda: LowRank(-1).project(np.ones((2, 4))), "rank must lie in 0..2 for a 2x4 matrix, got -1"),
    ],
)
def test_values_refuse_what_does_not_fit(make: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ support x values
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_gain_is_never_negative(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(shapes(3, 8))
    z = data.draw(weights(shape, dtype))
    rounded = data.draw(grids(shape)).fit(data.draw(weights(shape, dtype))).round(z)
    assert (gain(z, rounded) >= 0).all()
    exact = z.astype(np.float64) ** 2 - (z.astype(np.float64) - rounded) ** 2
    np.testing.assert_allclose(gain(z, z), z * z)
    slack = 4 * np.finfo(dtype).eps * float(np.abs(z).max()) ** 2 + np.finfo(dtype).tiny
    assert np.abs(gain(z, rounded) - exact).max() <= slack


def test_gain_keeps_the_order_of_clipped_entries() -> None:
    # z^2 - (z - Q)^2 as written loses these in float32: all round to the same gain.
    z = np.array([[10000, 10001, 10002, 10003, 9999]], np.float32)
    grid = IntGrid(2, 5).fit(np.array([[1, 0.5, -0.5, 0.2, 0.1]], np.float32))
    np.testing.assert_array_equal(np.flatnonzero(Sparse(RowSparse(2), grid).project(z)), [2, 3])


@given(st.data())
def test_contains_says_no(data: st.DataObject) -> None:
    shape = data.draw(shapes(3, 8))
    constraint = data.draw(sparse_sets(shape)).bind(np.arange(1.0, 1 + shape[0] * shape[1]).reshape(shape))
    z = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=shape)
    theta = constraint.project(z)
    assert constraint.contains(theta) and constraint.contains(np.zeros(shape))
    if isinstance(constraint.values, BoundGrid):
        assert not constraint.contains(theta + 0.3 * np.min(constraint.values.scales))
    full = np.where(theta == 0, 1.0, theta) if isinstance(constraint.values, Reals) else theta
    dropped = not sorted_mask(constraint.support, np.ones(shape)).all()
    assert constraint.contains(full) == (not dropped or not isinstance(constraint.values, Reals))


def test_restrict_rounds_inside_and_zeroes_outside() -> None:
    weight = np.array([[0.4, -0.9, 3.0, 0.1]])
    constraint = Sparse(RowSparse(2), IntGrid(2, 4)).bind(np.array([[0.0, 1.0, 2.0, 3.0]]))
    restricted = constraint.restrict(weight, np.array([[True, True, True, False]]))
    np.testing.assert_array_equal(restricted, [[0, 0, 3, 0]])
    assert not np.signbit(restricted).any()


def test_bind_leaves_reals_and_bound_grids_alone() -> None:
    real = Sparse(RowSparse(1))
    fitted = Sparse(RowSparse(1), IntGrid(4, 2)).bind(np.ones((1, 2)))
    assert real.bind(np.ones((1, 2))) is real and fitted.bind(np.zeros((1, 2))) is fitted


# ------------------------------------------------------------------------------------------------ low rank
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_low_rank_projection_is_eckart_young(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(shapes(5, 8))
    z = data.draw(weights(shape, dtype, ("normal", "ties", "sparse", "zero rows")))
    constraint = LowRank(data.draw(st.integers(0, min(shape))))
    theta = checked_projection(constraint, z)
    singular = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    eps = float(np.finfo(dtype).eps) * max(float(singular[0]), 1.0)
    assert np.linalg.norm(z.astype(np.float64) - theta) == pytest.approx(
        np.linalg.norm(singular[constraint.rank :]), abs=50 * eps
    )
    left, right = constraint.factors(z)
    assert left.shape == (shape[0], constraint.rank) and right.shape == (constraint.rank, shape[1])


def test_low_rank_contains_says_no() -> None:
    assert LowRank(2).contains(np.diag([1.0, 1.0, 0.0]))
    assert not LowRank(1).contains(np.diag([1.0, 1.0, 0.0]))
