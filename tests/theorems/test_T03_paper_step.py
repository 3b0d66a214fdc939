"""T03: the paper's step is not covered; the best iterate is kept instead (proofs/T03_paper_step.md)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import GRAM_KINDS, cases, make_gram, problems

from awp_edge import Dense, IntGrid, Problem, RowSparse, Sparse, Stop, pgd, solve, theory
from awp_edge.backend import NumpyBackend
from awp_edge.constraints import BoundGrid
from awp_edge.solvers.pgd import iterate, step_size

Pair = tuple[Fraction, Fraction]
HALF = Fraction(1, 2)
#: C = I, w = (1, 1), one nonzero kept.
EYE = Problem(np.ones((1, 2)), np.eye(2))
ONE = Sparse(RowSparse(1))


def sparse_step(theta: Pair, eta: Fraction) -> Pair:
    """Return the exact next iterate of (a): C = I_2, w = (1, 1), k = 1; the entries never tie."""
    z = tuple(t + eta * (1 - t) for t in theta)
    assert abs(z[0]) != abs(z[1])
    return (z[0], Fraction(0)) if abs(z[0]) > abs(z[1]) else (Fraction(0), z[1])


def sparse_objective(theta: Pair) -> Fraction:
    return HALF * sum((1 - t) ** 2 for t in theta)


@given(st.fractions(min_value="101/100", max_value="299/100", max_denominator=1000))
def test_a_pruned_row_cycles_for_ever(eta: Fraction) -> None:
    left, right = (eta, Fraction(0)), (Fraction(0), eta)
    assert sparse_step(left, eta) == right and sparse_step(right, eta) == left
    assert sparse_objective(left) == sparse_objective(right) == HALF * (1 + (eta - 1) ** 2) > HALF


@given(st.fractions(min_value="101/100", max_value="299/100", max_denominator=1000))
def test_it_even_leaves_the_optimum(eta: Fraction) -> None:
    optimum = (Fraction(1), Fraction(0))
    assert sparse_objective(optimum) == HALF  # the least any one nonzero can reach
    after = sparse_step(optimum, eta)
    assert after == (0, eta) and sparse_objective(after) > HALF


@given(st.fractions(min_value="1/100", max_value="99/100", max_denominator=1000))
def test_covered_steps_stay_at_the_optimum(eta: Fraction) -> None:
    # Negative control: with eta < 1/L = 1 there is no such cycle.
    assert sparse_step((Fraction(1), Fraction(0)), eta) == (1, 0)


def test_a_rounded_weight_cycles_for_ever() -> None:
    # (b): d = 1, C = 1, grid {0, 1}, w = 2/5, eta = 3/2 = 1.5 / ||C||_F.
    w, eta = Fraction(2, 5), Fraction(3, 2)
    path = [Fraction(0)]
    for _ in range(4):
        z = path[-1] + eta * (w - path[-1])
        assert z != HALF
        path.append(Fraction(int(z > HALF)))
    assert path == [0, 1, 0, 1, 0]
    assert [HALF * (w - t) ** 2 for t in path[:2]] == [Fraction(2, 25), Fraction(9, 50)]


def test_the_default_steps_are_those_of_the_examples() -> None:
    assert step_size(EYE, ONE, method=pgd()) == pytest.approx(2**0.5)
    assert theory.relative_step(np.eye(2)) == pytest.approx(2**0.5)
    assert theory.relative_step(np.eye(1), numerator=1.5) == 1.5


def test_solve_keeps_the_best_iterate_of_a_cycle(backend: str) -> None:
    result = solve(EYE, ONE, start=np.array([[1.0, 0.0]]), backend=backend)
    np.testing.assert_array_equal(result.theta, [[1, 0]])
    assert result.objective == 0.5 == result.objectives[0]
    assert (result.reason, result.converged, result.n_iter) == ("iterations", False, 200)
    np.testing.assert_allclose(result.objectives[1:], 2 - 2**0.5)  # 0.586 for ever after
    last = list(
        zip(iterate(EYE, ONE, result.theta, method=pgd(), engine=NumpyBackend()), range(3), strict=False)
    )[-1][0]
    assert last.objective > result.objective  # without the guard the answer would be this one


def test_solve_keeps_the_best_rounding_of_a_cycle(backend: str) -> None:
    problem = Problem(np.array([[0.4]]), np.eye(1))
    grid = BoundGrid(IntGrid(2, 1), np.array([[1.0]]), np.array([[0]], np.uint8))
    result = solve(problem, Sparse(Dense(), grid), start=np.array([[1.0]]), stop=Stop(6), backend=backend)
    np.testing.assert_allclose(result.objectives, [0.18, 0.08] * 3 + [0.18])
    assert result.theta == [[0.0]] and result.objective == pytest.approx(0.08)


@given(case=cases(max_out=3, max_in=8), step=st.sampled_from((None, 1.4, 1.9, 3.0)))
def test_the_guard_holds_for_every_step(
    backend: str, case: tuple[Problem, Sparse], step: float | None
) -> None:
    problem, constraint = case
    lipschitz = problem.lipschitz()
    assume(lipschitz > 1e-200)
    method = pgd(None if step is None else step / lipschitz)
    result = solve(problem, constraint, method=method, stop=Stop(15, tol=0), backend=backend)
    assert result.objective == result.objectives.min() <= result.objectives[0]
    longer = solve(problem, constraint, method=method, stop=Stop(20, tol=0), backend=backend)
    assert longer.objective <= result.objective


@given(problems((2, 6)))
def test_what_the_default_step_amounts_to(problem: Problem) -> None:
    assume(problem.lipschitz() > 1e-200)
    step = step_size(problem, ONE, method=pgd())
    relative = theory.relative_step(problem.gram)
    assert step * problem.lipschitz() == pytest.approx(relative)
    rank = theory.stable_rank(problem.gram)
    assert 1 - 1e-12 <= rank <= 6 + 1e-12 and relative <= 2 + 1e-12
    assert (relative < 1) == (rank > 4) or rank == pytest.approx(4)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_no_tiny_layer_is_covered(d: int) -> None:
    for kind in GRAM_KINDS:
        if (gram := make_gram(kind, d, "float64", seed=1)).any():
            assert theory.relative_step(gram) >= 1 - 1e-12


def test_both_sides_occur() -> None:
    # Informative: the criterion tells layers apart, and a covered one is monotone.
    white, spiked = make_gram("samples", 12, "float64", seed=0), make_gram("spiked", 12, "float64", seed=0)
    assert theory.relative_step(spiked) > 1
    covered = np.eye(12) + 0.02 * white / np.abs(white).max()
    assert theory.relative_step(covered) < 1
    problem = Problem(np.random.default_rng(0).normal(size=(3, 12)), covered)
    objectives = solve(problem, Sparse(RowSparse(6)), backend="numpy").objectives
    assert (np.diff(objectives) <= 1e-12).all()
