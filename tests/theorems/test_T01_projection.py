"""T01: the projection onto support x values, and onto bounded rank, is exact (proofs/T01_projection.md)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from oracles import cheapest
from strategies import DTYPES, points, shapes, weights

from awp_edge import BalancedBlock, IntGrid, LowRank, RowSparse, Sparse, theory
from awp_edge.backend import resolve
from awp_edge.constraints import gain

Drawn = tuple[np.ndarray, Sparse]


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_no_point_of_the_set_is_nearer(backend: str, data: st.DataObject, dtype: str) -> None:
    z, constraint = data.draw(points(dtype, max_in=6))
    theta = resolve(backend).project(constraint, z)
    assert constraint.contains(theta)
    distance, best = float(np.sum((z.astype(np.float64) - theta) ** 2)), cheapest(constraint, z)
    underflow = z.size * float(np.finfo(dtype).tiny)
    assert best * (1 - 1e-12) <= distance <= best + theory.projection_slack(z) + underflow
    total = float(np.sum(z.astype(np.float64) ** 2))
    event("informative" if best + theory.projection_slack(z) < total else "nothing can be kept")


@given(points())
def test_the_distance_is_what_the_gains_leave(drawn: Drawn) -> None:
    z, constraint = drawn
    theta = constraint.project(z)
    kept = float(np.sum(gain(z, theta)))  # a dropped entry has gain 0
    distance = float(np.sum((z - theta) ** 2))
    assert abs(distance - theory.projection_distance(z, kept)) <= 1e-13 * float(np.sum(z * z))


@given(points())
def test_gains_are_not_negative(drawn: Drawn) -> None:
    z, constraint = drawn
    rounded = constraint.restrict(z, np.ones(z.shape, bool))
    assert (gain(z, rounded) >= 0).all()


@given(shapes(5, 7), st.data())
def test_truncated_svd_is_nearest(shape: tuple[int, int], data: st.DataObject) -> None:
    z, rank = (
        data.draw(weights(shape, kinds=("normal", "ties", "sparse"))),
        data.draw(st.integers(0, min(shape))),
    )
    theta = LowRank(rank).project(z)
    singular, size = np.linalg.svd(z, compute_uv=False), float(np.sum(z * z))
    best = theory.low_rank_distance(singular, rank)
    assert abs(float(np.sum((z - theta) ** 2)) - best) <= 1e-12 * size
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for _ in range(10):
        basis = np.linalg.qr(theta @ theta.T + rng.normal(size=(shape[0],) * 2) * 0.1)[0][:, :rank]
        rival = basis @ (basis.T @ z)  # the nearest matrix with these columns
        assert float(np.sum((z - rival) ** 2)) >= best - 1e-12 * size


# ------------------------------------------------------------------------------------------------ negative controls
def test_selecting_by_magnitude_on_a_grid_is_not_exact() -> None:
    # The largest entry rounds badly: keeping it saves 1.5^2 - 0.5^2 = 2, keeping the other 1.45^2 - 0.02^2 = 2.1.
    z = np.array([[1.5, 1.45]])
    grid = IntGrid(4, 1).fit(np.array([[15.0, 15 * 1.47]]))
    exact = Sparse(RowSparse(1), grid).project(z)
    by_magnitude = Sparse(RowSparse(1), grid).restrict(z, RowSparse(1).select(np.abs(z)))
    assert np.sum((z - exact) ** 2) < 0.96 * np.sum((z - by_magnitude) ** 2)


def test_without_zero_among_the_values_the_rule_fails() -> None:
    # Values {1, 2}: a dropped entry is 0 only because it may be; gains go negative and "keep the most" is wrong.
    z, values = np.array([0.1, 0.2]), np.array([1.0, 2.0])
    rounded = values[np.abs(z[:, None] - values).argmin(axis=1)]
    assert (gain(z, rounded) < 0).all()


def test_groups_that_overlap_are_not_separable() -> None:
    # One of every two neighbours, overlapping: the greedy choice 3, then 2, is beaten by 2 + 2.
    z = np.array([2.0, 3.0, 2.0])
    greedy, best = 9.0, 8.0
    allowed = [mask for mask in np.ndindex(2, 2, 2) if mask[0] + mask[1] <= 1 and mask[1] + mask[2] <= 1]
    assert max(float(np.dot(mask, z * z)) for mask in allowed) == max(greedy, best)
    z = np.array([2.5, 3.0, 2.5])
    assert max(float(np.dot(mask, z * z)) for mask in allowed) == 12.5 > greedy


def test_the_bound_is_informative() -> None:
    z = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    distance = float(np.sum((z - Sparse(BalancedBlock(32)).project(z)) ** 2))
    assert 0 < theory.projection_slack(z) < 1e-4 * distance < distance < 0.2 * float(np.sum(z * z))
