"""The layer problem: objective, gradient, Lipschitz constant, and what it refuses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import exact_objective
from strategies import DTYPES, problems, shapes, weights

from awp_edge import Problem
from awp_edge.problem import STRIP, ratio


@given(st.data(), st.sampled_from(DTYPES))
def test_objective_and_gradient(data: st.DataObject, dtype: str) -> None:
    problem = data.draw(problems(data.draw(shapes(3, 5)), dtype))
    theta = data.draw(weights(problem.shape, dtype, ("normal", "ties")))
    exact = float(exact_objective(problem, theta))
    residual = np.abs(problem.weight.astype(float) - theta)
    size = float(np.sum(residual @ np.abs(problem.gram) * residual))
    assert abs(problem.objective(theta) - exact) <= 20 * np.finfo(dtype).eps * size
    gradient = problem.gradient(theta)
    assert gradient.dtype == dtype and gradient.shape == problem.shape
    expected = (theta.astype(float) - problem.weight) @ problem.gram.astype(float)
    slack = 20 * np.finfo(dtype).eps * (residual @ np.abs(problem.gram)).max()
    np.testing.assert_allclose(gradient, expected, atol=slack)


@given(problems())
def test_gradient_is_the_derivative(problem: Problem) -> None:
    # f is quadratic: a central difference is exact up to rounding.
    direction = np.random.default_rng(0).normal(size=problem.shape)
    theta = np.zeros(problem.shape)
    slope = (problem.objective(theta + direction) - problem.objective(theta - direction)) / 2
    size = problem.objective(theta + direction) + problem.objective(theta - direction)
    assert abs(slope - np.sum(problem.gradient(theta) * direction)) <= 1e-12 * size


@given(problems())
def test_lipschitz_is_the_largest_curvature(problem: Problem) -> None:
    values = np.linalg.eigvalsh(problem.gram)
    assert problem.lipschitz() == pytest.approx(max(values[-1], 0), abs=0)
    direction = np.random.default_rng(1).normal(size=problem.shape)
    change = problem.gradient(direction) - problem.gradient(np.zeros(problem.shape))
    assert np.linalg.norm(change) <= problem.lipschitz() * np.linalg.norm(direction) * (1 + 1e-12)


@given(problems())
def test_relative_error(problem: Problem) -> None:
    assert problem.relative_error(problem.weight) == 0
    zero = np.zeros(problem.shape)
    assert problem.relative_error(zero) == (1 if problem.objective(zero) != 0 else 0)


def test_ratio_of_nothing() -> None:
    assert ratio(0.0, 0.0) == 0
    assert ratio(1.0, 0.0) == float("inf")


def test_integers_become_floats_and_inputs_stay() -> None:
    weight, gram = np.array([[1, 2]]), np.eye(2, dtype=np.float32)
    problem = Problem(weight, gram)
    assert problem.weight.dtype == problem.gram.dtype == np.float64
    assert weight.dtype == np.int64


def test_any_memory_layout_is_taken() -> None:
    weight = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    problem = Problem(weight, np.eye(6)[::2, ::2])
    assert problem.weight.flags.c_contiguous and problem.gram.flags.c_contiguous


GOOD = np.eye(2)
BAD = {
    "gram of another size": (np.ones((2, 3)), GOOD, "gram has shape (2, 2), but weight has d_in = 3"),
    "vector": (np.ones(3), GOOD, "weight has shape (3,)"),
    "no columns": (np.ones((3, 0)), GOOD, "weight has shape (3, 0)"),
    "half precision": (np.ones((2, 2), np.float16), GOOD, "weight has dtype float16"),
    "complex": (np.ones((2, 2), complex), GOOD, "weight has dtype complex128"),
    "text": (np.array([["a", "b"]]), GOOD, "weight has dtype"),
    "nan": (np.array([[1.0, 2.0], [3.0, np.nan]]), GOOD, "weight holds nan at row 1, column 1"),
    "infinity": (np.ones((2, 2)), np.array([[1, np.inf], [np.inf, 1]]), "gram holds inf at row 0, column 1"),
    "asymmetric": (np.ones((2, 2)), np.array([[1.0, 0.5], [0.0, 1.0]]), "gram is not symmetric"),
    "negative diagonal": (np.ones((2, 2)), np.diag([1.0, -1.0]), "gram has a negative diagonal entry -1"),
    "too large for float32": (
        np.ones((2, 2), np.float32),
        np.eye(2) * 1e39,
        "gram holds inf at row 0, column 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(case: str) -> None:
    weight, gram, message = BAD[case]
    with warnings.catch_warnings(), pytest.raises(ValueError) as caught:
        warnings.simplefilter("error")
        Problem(weight, gram)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("n", [1, STRIP - 1, STRIP, STRIP + 1, 2 * STRIP + 3])
def test_asymmetry_is_seen_in_every_strip(n: int) -> None:
    Problem(np.ones((1, n)), np.eye(n))
    corners = {0, STRIP - 1, STRIP, n - 1}
    for row, column in ((i, j) for i in corners for j in corners if i != j and max(i, j) < n):
        gram = np.eye(n)
        gram[row, column] = 0.5
        with pytest.raises(ValueError, match="not symmetric"):
            Problem(np.ones((1, n)), gram)
