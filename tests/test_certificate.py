"""What is recorded about one layer: its bounds hold, its gains are those of the changes they name."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from oracles import best_sparse_objective
from strategies import make_gram, make_weight

from awp_edge import (
    NM,
    BalancedBlock,
    BlockSparse,
    Dense,
    IntGrid,
    LowRank,
    Problem,
    RowSparse,
    Sparse,
    solve,
)
from awp_edge.artifacts import CompressedLayer
from awp_edge.certificate import Certificate, certify, certify_layer, gram_facts
from awp_edge.lower_bound import MARGIN, separate
from awp_edge.methods import CompressSpec, compress_layer
from awp_edge.solvers.base import Result, Stop
from awp_edge.solvers.quantize import MASKED_DAMPING

D = 8
SETS = (
    Sparse(RowSparse(4)),
    Sparse(NM(2, 4)),
    Sparse(Dense(), IntGrid(3, 4)),
    Sparse(RowSparse(4), IntGrid(3, 4)),
    LowRank(2),
)


@pytest.mark.parametrize("constraint", SETS, ids=str)
@pytest.mark.parametrize("kind", ["identity", "samples", "spiked", "dead inputs", "singular", "zero"])
def test_certificates_hold(backend: str, constraint: Sparse | LowRank, kind: str) -> None:
    weight, gram = make_weight("normal", (4, D), "float64", seed=1), make_gram(kind, D, "float64", seed=1)
    problem = Problem(weight, gram)
    result = solve(problem, constraint, backend=backend)
    found = certify(weight, constraint, result, facts=gram_facts(gram), step=0.1)
    assert found.rows == 4 and 0 <= found.lower_bound <= 1 + 1e-9
    for gain in (found.descent_gain, found.coordinate_gain, found.refit_gain):
        assert gain is None or -1e-9 <= gain <= 1 + 1e-9
    if isinstance(constraint, Sparse) and isinstance(constraint.support, RowSparse):
        best = best_sparse_objective(problem, 4)
        assert found.lower_bound * result.objective <= best * (1 + 1e-6) + 1e-12
    if found.covered is not None:
        assert found.covered == (0.1 * problem.lipschitz() <= 1)
    condition = np.linalg.cond(gram) if gram.any() else np.inf
    if kind in ("identity", "samples", "spiked"):
        assert found.condition == pytest.approx(condition, rel=1e-3)


def test_an_optimal_layer_is_recognised() -> None:
    weight = make_weight("normal", (4, D), "float64", seed=1)
    result = solve(Problem(weight, np.eye(D)), Sparse(RowSparse(4)), backend="numpy")
    found = certify(weight, Sparse(RowSparse(4)), result, facts=gram_facts(np.eye(D)), step=None)
    assert found.at_most == pytest.approx(1, abs=1e-6) and found.coordinate_gain == 0 and found.rate == 0


def test_a_bad_layer_is_recognised() -> None:
    # The trap of T04 (d): fixed for descent, but a swap removes nearly all of f.
    weight, gram = np.ones((1, 2)), np.diag([1.0, 100.0])
    result = solve(Problem(weight, gram), Sparse(RowSparse(1)), start=np.array([[1.0, 0]]), backend="numpy")
    trapped = replace(result, theta=np.array([[1.0, 0.0]]))
    found = certify(weight, Sparse(RowSparse(1)), trapped, facts=gram_facts(gram))
    assert found.descent_gain == pytest.approx(0, abs=1e-9)
    assert found.coordinate_gain == pytest.approx(0.99) and found.at_most == pytest.approx(100, rel=0.02)


#: Codes of groups that are not of consecutive inputs, of scaled inputs, and of both.
TURNED = {
    "blocks": {"pattern": "32/64", "group_size": 64},
    "half blocks": {"pattern": "32/64", "group_size": 32, "method": "sparsegpt"},
    "scales": {"method": "awq", "group_size": 32},
    "both": {"method": "awq+wanda", "pattern": "32/64", "group_size": 64},
}


@pytest.mark.parametrize("name", TURNED)
def test_codes_are_certified_where_their_grid_is(name: str) -> None:
    found, result, best = certified(CompressSpec(bits=4, **TURNED[name]))
    assert found.coordinate_gain == pytest.approx(1 - best / result.objective, rel=1e-3, abs=1e-6)
    assert found.support_condition is None and found.refit_gain is None
    assert 0 < found.lower_bound < 1
    assert found.bound_for == ("codes at these scales" if name == "scales" else "support")


def test_coordinate_descent_on_blocks_leaves_nothing_to_gain() -> None:
    spec, problem = CompressSpec(bits=4, **TURNED["blocks"]), turned_layer()
    result = compress_layer(problem.weight, problem.gram, spec, backend="numpy")
    descended = gram_facts(problem.damped(MASKED_DAMPING).gram)
    found = certify_layer(problem.weight, result, facts=descended, spec=spec)
    assert found.coordinate_gain == pytest.approx(0, abs=1e-6)
    assert found.descent_gain == pytest.approx(0, abs=1e-6)


def turned_layer() -> Problem:
    weight, gram = (
        make_weight("normal", (3, 128), "float32", seed=2),
        make_gram("samples", 128, "float32", seed=2),
    )
    return Problem(weight, gram)


def certified(spec: CompressSpec) -> tuple[Certificate, Result, float]:
    """Return a layer's certificate, its result and the least f that one changed code in every row reaches."""
    weight, gram = turned_layer().weight, turned_layer().gram
    result = compress_layer(weight, gram, spec, backend="numpy")
    found = certify_layer(weight, result, facts=gram_facts(gram), spec=spec)
    parts, best = result.encoding, np.full(3, np.inf)
    support = spec.support(weight.shape)
    for column, code in product(range(128), range(16)):
        codes = parts.codes.copy()
        codes[:, column] = code
        theta = CompressedLayer("w", weight.shape, replace(parts, codes=codes), bits=4).dense()
        for row in range(3):  # a zero of a full group stays zero
            if not Sparse(support).contains(theta[row : row + 1]):
                theta[row] = result.theta[row]
        error = theta.astype(np.float64) - weight
        best = np.minimum(best, np.einsum("ij,jk,ik->i", error, gram.astype(np.float64), error) / 2)
    return found, result, float(best.sum())


@pytest.mark.parametrize("support", [RowSparse(4), NM(2, 4), BalancedBlock(2, 4)], ids=str)
def test_the_best_swap_that_a_support_allows_is_found(support: RowSparse | NM | BalancedBlock) -> None:
    weight, gram = (
        make_weight("normal", (3, D), "float64", seed=2),
        make_gram("samples", D, "float64", seed=2),
    )
    constraint = Sparse(support)
    result = solve(Problem(weight, gram), constraint, stop=Stop(0), backend="numpy")
    found = certify(weight, constraint, result, facts=gram_facts(gram))
    gained = 0.0
    for w, row in zip(weight, result.theta, strict=True):
        one = Problem(w[None], gram)
        ends = [one.objective(row[None])]
        for i, j in product(np.flatnonzero(row), range(D)):
            moved = np.where(np.arange(D) == i, 0.0, row)
            if moved[j] == 0:
                moved[j] = -one.gradient(moved[None])[0, j] / gram[j, j]
                ends += [one.objective(moved[None])] * constraint.contains(moved[None])
        gained += ends[0] - min(ends)
    assert found.coordinate_gain == pytest.approx(gained / result.objective, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("support", [RowSparse(4), NM(2, 4), BalancedBlock(2, 4)], ids=str)
def test_places_that_stayed_empty_count_as_changes(support: RowSparse | NM | BalancedBlock) -> None:
    weight = make_weight("normal", (3, D), "float64", seed=2)
    problem = Problem(weight, make_gram("samples", D, "float64", seed=2))
    result = solve(problem, Sparse(support), stop=Stop(0), start=np.zeros_like(weight), backend="numpy")
    found = certify(weight, Sparse(support), result, facts=gram_facts(problem.gram))
    gains = problem.gradient(result.theta) ** 2 / (2 * problem.gram.diagonal())
    assert found.coordinate_gain == pytest.approx(gains.max(axis=1).sum() / result.objective)


def test_shares_of_an_objective_that_is_rounding_are_at_most_one() -> None:
    for seed in range(8):
        inputs = np.random.default_rng(seed).normal(size=(1, D)).astype(np.float32)
        weight, gram = make_weight("normal", (2, D), "float32", seed=seed), inputs.T @ inputs
        result = compress_layer(weight, gram, CompressSpec(sparsity=0.5))
        found = certify(weight, Sparse(RowSparse(D // 2)), result, facts=gram_facts(gram))
        assert max(found.coordinate_gain or 0, found.refit_gain or 0) <= 1


@pytest.mark.parametrize("share", [0.99998549, 0.12345678])
def test_bounds_are_shortened_to_their_safe_side(share: float) -> None:
    weight = np.eye(2)
    result = solve(Problem(weight, np.eye(2)), Sparse(RowSparse(1)), backend="numpy")
    found = certify(weight, Sparse(RowSparse(1)), result, facts=gram_facts(np.eye(2)))
    written = replace(found, lower_bound=share, at_most=1 / share).to_json()
    assert (
        share - 1e-4 < written["lower_bound"] <= share and 1 / share <= written["at_most"] < 1 / share * 1.001
    )


def test_a_nearly_singular_gram_matrix_is_not_trusted_beyond_rounding() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
    gram = (basis * np.geomspace(1, 3e-15, D)) @ basis.T
    gram = (gram + gram.T) / 2
    found = separate(gram)
    margin = MARGIN * D * np.finfo(float).eps
    if found is not None:
        scale = 1 / np.sqrt(gram.diagonal())
        spared = scale[:, None] * (gram - np.diag(found.diagonal)) * scale
        assert np.linalg.eigvalsh(spared)[0] >= margin / 2


def test_fewer_inputs_alive_than_a_budget_are_no_overflow() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(64):
            inputs = np.random.default_rng(seed).normal(size=(40, D))
            inputs[:, 3:] = 0
            inputs[:, 0] += inputs[:, 1]
            weight, gram = make_weight("normal", (4, D), "float64", seed=seed), inputs.T @ inputs / 40
            result = compress_layer(weight, gram, CompressSpec(sparsity=0.5, method="magnitude"))
            certify(weight, Sparse(RowSparse(D // 2)), result, facts=gram_facts(gram))


def test_rows_that_share_a_support_are_sampled_together() -> None:
    weight, gram = (
        make_weight("normal", (27, 8), "float64", seed=2),
        make_gram("samples", 8, "float64", seed=2),
    )
    constraint = Sparse(BlockSparse(3, 4, 1))
    result = solve(Problem(weight, gram), constraint, backend="numpy")
    found = certify(weight, constraint, result, facts=gram_facts(gram))
    assert found.rows == 15 and found.descent_gain < 1e-3 and found.lower_bound == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [96, 128])
def test_dependent_inputs_get_no_bound_and_no_error(d: int, dtype: str) -> None:
    for seed in range(16):
        inputs = np.random.default_rng(seed).normal(size=(4 * d, d))
        summed = (
            seed % 2 == 1 and dtype == "float64"
        )  # rounded to float32, the C of a sum is another, definite one
        inputs[:, 1] = inputs[:, 0] + (inputs[:, 2] if summed else 0)
        weight, gram = (
            make_weight("normal", (4, d), dtype, seed=seed),
            (inputs.T @ inputs / len(inputs)).astype(dtype),
        )
        facts, result = (
            gram_facts(gram),
            compress_layer(weight, gram, CompressSpec(sparsity=0.25, method="wanda")),
        )
        found = certify(weight, Sparse(RowSparse(3 * d // 4)), result, facts=facts)
        assert facts.part is None and found.bound_for == "none"
