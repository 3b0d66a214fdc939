"""awp-plus where it prunes: what it reaches, what it must never do, and what damping is for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from oracles import least_squares
from strategies import DTYPES, GRAM_KINDS, make_gram, make_weight

from awp_edge import CompressSpec, Problem, RowSparse, compress_layer
from awp_edge.backend import NumpyBackend
from awp_edge.plus import EFFORTS, prune


def layer(dtype: str, gram: str = "samples", shape: tuple[int, int] = (35, 48)) -> Problem:
    return Problem(make_weight("heavy tails", shape, dtype, seed=3), make_gram(gram, shape[1], dtype, seed=4))


@pytest.mark.parametrize("gram", GRAM_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_awp_plus_is_never_worse_than_its_start(gram: str, dtype: str) -> None:
    problem = layer(dtype, gram)
    for options in ({"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.9}, {"sparsity": 0.01}):
        plus, wanda = (
            compress_layer(problem.weight, problem.gram, CompressSpec(method=name, **options)).objective
            for name in ("awp-plus", "wanda")
        )
        assert plus <= wanda * (1 + 1e-6)


@pytest.mark.parametrize("gram", ["samples", "spiked", "few samples"])
def test_awp_plus_beats_algorithm_1(gram: str) -> None:
    problem = layer("float64", gram)
    plus, awp = (
        compress_layer(problem.weight, problem.gram, CompressSpec(method=name, sparsity=0.5)).objective
        for name in ("awp-plus", "awp")
    )
    assert plus < awp


def test_awp_plus_comes_close_to_the_optimum() -> None:
    ratios = []
    for seed in range(12):
        inputs = np.random.default_rng(seed).normal(size=(30, 9)) @ np.random.default_rng(seed + 50).normal(
            size=(9, 9)
        )
        problem = Problem(np.random.default_rng(seed + 100).normal(size=(1, 9)), inputs.T @ inputs / 30)
        best = min(
            least_squares(problem, 0, np.isin(np.arange(9), kept))
            for kept in itertools.combinations(range(9), 4)
        )
        spec = CompressSpec(method="awp-plus", sparsity=5 / 9, effort="max", damping=0.0)
        ratios.append(compress_layer(problem.weight, problem.gram, spec).objective / best)
    assert min(ratios) > 1 - 1e-9
    assert sum(ratio < 1.001 for ratio in ratios) >= 8


def test_damping_is_a_share_of_every_energy_added_to_c() -> None:
    problem = layer("float64", "samples")
    seen = problem.damped(0.1)
    given, added = (
        compress_layer(p.weight, p.gram, CompressSpec(sparsity=0.5, damping=damping)).theta
        for p, damping in ((problem, 0.1), (seen, 0.0))
    )
    np.testing.assert_array_equal(given != 0, added != 0)
    np.testing.assert_allclose(
        given, added, rtol=1e-9, atol=0
    )  # but for the few roundings that a damping of 0 has


@pytest.mark.parametrize("spec", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.8}])
def test_damping_pays_on_inputs_that_were_not_seen(spec: dict[str, Any]) -> None:
    found: dict[float, list[float]] = {0.0: [], 0.03: []}
    d = 48
    for seed in range(6):
        rng = np.random.default_rng(seed)
        mixing, weight = rng.normal(size=(d // 2, d)), rng.normal(size=(40, d))
        true = Problem(weight, mixing.T @ mixing / d + 0.05 * np.eye(d))
        inputs = rng.normal(size=(2 * d, d)) @ np.linalg.cholesky(true.gram).T
        for damping, errors in found.items():
            theta = compress_layer(
                weight, inputs.T @ inputs / (2 * d), CompressSpec(damping=damping, **spec)
            ).theta
            errors.append(true.relative_error(theta))
    assert np.mean(found[0.03]) < np.mean(found[0.0])


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_stay_finite_where_c_is_singular(dtype: str, backend: str) -> None:
    problem = layer(dtype, "few samples")
    for effort in EFFORTS:
        spec = CompressSpec(sparsity=0.5, effort=effort)
        theta = compress_layer(problem.weight, problem.gram, spec, backend=backend).theta
        assert np.abs(theta).max() < 100 * np.abs(problem.weight).max()


class Listening(NumpyBackend):
    """Keeps f of every row before swaps, and what they are asked to gain."""

    found: np.ndarray | None = None
    least: np.ndarray | None = None

    def refit(self, *parts: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        theta, rows = super().refit(*parts, **options)
        self.found = rows if self.found is None else self.found
        return theta, rows

    def swap(self, *parts: Any, least: np.ndarray, **options: Any) -> np.ndarray:
        self.least = least
        return super().swap(*parts, least=least, **options)


def test_what_a_row_must_promise_grows_with_what_its_swaps_cost() -> None:
    """A factor for 24 kept weights takes (24 / 12)^3 times the arithmetic of one for 12."""
    engine = Listening()
    prune(layer("float64"), RowSparse((12, 24) * 17 + (12,)), effort=EFFORTS["default"], engine=engine)
    assert engine.found is not None and engine.least is not None
    cost = engine.least / engine.found
    np.testing.assert_allclose(cost[0::2], EFFORTS["default"].worth * 12**3 / (6 * 48**2))
    np.testing.assert_allclose(cost[1::2], 8 * cost[0])


@pytest.mark.parametrize("tokens", [1, 2])
def test_what_so_few_tokens_do_not_show_is_no_gain(tokens: int) -> None:
    inputs = np.random.default_rng(tokens).normal(size=(tokens, 128)).astype(np.float32)
    weight, gram = make_weight("normal", (8, 128), "float32", seed=3), inputs.T @ inputs / tokens
    exact = Problem(weight.astype(np.float64), gram.astype(np.float64))
    found, wanda = (
        compress_layer(weight, gram, CompressSpec(sparsity=0.5, **options)).theta
        for options in ({"damping": 0.0}, {"method": "wanda"})
    )
    assert np.abs(found).max() < 100 * np.abs(weight).max()
    assert exact.objective(found.astype(np.float64)) <= exact.objective(wanda.astype(np.float64))


@pytest.mark.parametrize("tokens", [2, 4, 8])
def test_an_f_that_rounds_to_just_below_zero_counts_as_zero(tokens: int, backend: str) -> None:
    """Few tokens leave so many weights free that the refit is exact; its f is what the roundings make of 0."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        inputs = rng.normal(size=(tokens, 64)) * np.exp(rng.normal(size=64))
        exact = Problem(rng.normal(size=(16, 64)), inputs.T @ inputs / tokens)
        weight, gram = exact.weight.astype(np.float32), exact.gram.astype(np.float32)
        plus, alps = (
            compress_layer(weight, gram, CompressSpec(sparsity=0.5, method=name), backend=backend)
            for name in ("awp-plus", "alps")
        )
        reached = [exact.relative_error(found.theta.astype(np.float64)) for found in (plus, alps)]
        assert reached[0] <= reached[1] + 64 * np.finfo(np.float32).eps
        assert len(plus.objectives) > 1 and (plus.objectives >= 0).all()
