"""Integer grids: fitting, rounding, codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import exact_code, fitted_group, grid_values
from strategies import DTYPES, grids, shapes, weights

from awp_edge import Dense, IntGrid, Sparse
from awp_edge.backend import resolve
from awp_edge.constraints import BITS, BoundGrid


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_fit_follows_the_formula(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(shapes(3, 12))
    weight, spec = data.draw(weights(shape, dtype)), data.draw(grids(shape))
    grid = spec.fit(weight)
    n_groups = shape[1] // spec.group_size
    assert grid.scales.shape == grid.zeros.shape == (shape[0], n_groups)
    assert grid.scales.dtype == dtype and grid.zeros.dtype == np.uint8
    assert (grid.scales > 0).all() and np.isfinite(grid.scales).all() and (grid.zeros <= spec.top).all()
    if spec.half_scales:
        np.testing.assert_array_equal(grid.scales.astype(np.float16).astype(dtype), grid.scales)
        return
    for i in range(shape[0]):
        for g in range(n_groups):
            scale, zero = fitted_group(spec, weight[i, g * spec.group_size : (g + 1) * spec.group_size])
            if scale >= np.finfo(dtype).tiny:
                assert (grid.scales[i, g], grid.zeros[i, g]) == (scale, zero)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_rounding_is_exact_division_half_to_even(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(shapes(2, 8))
    spec = data.draw(grids(shape))
    grid, z = spec.fit(data.draw(weights(shape, dtype))), data.draw(weights(shape, dtype))
    codes = grid.encode(z)
    assert codes.dtype == np.uint8 and codes.shape == shape and codes.flags.c_contiguous
    for i, j in np.ndindex(shape):
        g = j // spec.group_size
        code = exact_code(z[i, j], grid.scales[i, g], int(grid.zeros[i, g]), top=spec.top)
        assert codes[i, j] == code
        assert grid.round(z)[i, j] == grid_values(grid, i, j)[code]


@given(st.data())
def test_rounding_is_to_a_nearest_value(data: st.DataObject) -> None:
    shape = data.draw(shapes(2, 8))
    grid, z = data.draw(grids(shape)).fit(data.draw(weights(shape))), data.draw(weights(shape))
    rounded = grid.round(z)
    for i, j in np.ndindex(shape):
        values = np.array(grid_values(grid, i, j))
        slack = 4e-16 * (abs(z[i, j]) + np.abs(values).max())
        assert abs(z[i, j] - rounded[i, j]) <= np.abs(z[i, j] - values).min() + slack


@given(st.data())
def test_codes_and_values_are_the_same_thing(data: st.DataObject) -> None:
    shape, dtype = data.draw(shapes(3, 12)), data.draw(st.sampled_from(DTYPES))
    spec = data.draw(grids(shape))
    grid = spec.fit(data.draw(weights(shape, dtype)))
    codes = np.random.default_rng(data.draw(st.integers(0, 99))).integers(
        0, spec.top, shape, np.uint8, endpoint=True
    )
    values = grid.decode(codes)
    assert values.dtype == dtype
    np.testing.assert_array_equal(grid.encode(values), codes)
    np.testing.assert_array_equal(grid.round(values), values)
    np.testing.assert_array_equal(grid.round(np.zeros(shape, dtype)), np.zeros(shape, dtype))


@pytest.mark.parametrize("bits", BITS)
def test_half_steps_round_to_even(bits: int) -> None:
    grid = BoundGrid(IntGrid(bits, 4), np.array([[2.0]]), np.array([[2 ** (bits - 1)]], np.uint8))
    np.testing.assert_array_equal(grid.round(np.array([[1.0, -1.0, 0.999, 1.001]])), [[0, 0, 0, 2]])
    if bits > 2:
        np.testing.assert_array_equal(grid.round(np.array([[3.0, 5.0, -3.0, -5.0]])), [[4, 4, -4, -4]])


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_group_of_zeros_stays_zero(*, symmetric: bool) -> None:
    grid = IntGrid(4, 2, symmetric=symmetric).fit(np.array([[0.0, 0.0, 1.0, -1.0]]))
    assert grid.scales[0, 0] == 1
    np.testing.assert_array_equal(grid.round(np.zeros((1, 4))), np.zeros((1, 4)))


def test_a_range_of_one_sign_keeps_zero_on_the_grid() -> None:
    grid = IntGrid(2, 2).fit(np.array([[1.0, 3.0, -3.0, -1.0]]))
    np.testing.assert_array_equal(grid.zeros, [[0, 3]])
    np.testing.assert_array_equal(grid.round(np.array([[1.0, 3.0, -3.0, -1.0]])), [[1, 3, -3, -1]])


def test_half_scales_change_the_codes_too() -> None:
    weight = np.array([[0.0, 0.1, 0.7001, 1.0001]])
    exact, half = IntGrid(4, 4).fit(weight), IntGrid(4, 4, half_scales=True).fit(weight)
    assert exact.scales[0, 0] != half.scales[0, 0]
    np.testing.assert_allclose(half.scales, exact.scales, rtol=2**-11)
    np.testing.assert_array_equal(half.round(weight), half.encode(weight) * half.scales)


def test_zeros_of_another_shape_than_the_scales_are_refused(backend: str) -> None:
    weight, engine = np.ones((4, 8)), resolve(backend)
    grid = IntGrid(4, 4).fit(weight)
    for zeros in (grid.zeros[:1], grid.zeros[:, :1], grid.zeros[0]):
        other = BoundGrid(grid.spec, grid.scales, zeros)
        for refused in (
            lambda grid=other: engine.encode(grid, weight),
            lambda grid=other: engine.project(Sparse(Dense(), grid), weight),
        ):
            with pytest.raises(ValueError, match=r"zeros of shape .*, but scales of \(4, 2\)"):
                refused()
