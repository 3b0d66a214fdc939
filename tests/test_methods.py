"""Named methods and the options that choose a layer's constraint."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import make_gram, make_weight

import awp_edge
from awp_edge import (
    METHODS,
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
from awp_edge.errors import UsageError

SHAPE = (8, 64)
KINDS = {
    "pruning": {"sparsity": 0.5},
    "quantization": {"bits": 4, "group_size": 32},
    "joint": {"sparsity": 0.5, "bits": 4, "group_size": 32},
    "low rank": {"rank": 3},
}
#: Every method with every kind of constraint it serves.
PAIRS = [(method, kind) for method in METHODS for kind in METHODS[method].kinds]


def layer(dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    return make_weight("heavy tails", SHAPE, dtype, seed=1), make_gram("samples", SHAPE[1], dtype, seed=2)


def spec_of(method: str, kind: str) -> CompressSpec:
    return CompressSpec(method=method, **KINDS[kind])


@pytest.mark.parametrize(("method", "kind"), PAIRS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_method_serves_its_kinds(backend: str, method: str, kind: str, dtype: str) -> None:
    weight, gram = layer(dtype)
    before = weight.copy(), gram.copy()
    spec = spec_of(method, kind)
    assert spec.kind == kind
    result = compress_layer(weight, gram, spec, backend=backend)
    np.testing.assert_array_equal(weight, before[0])
    np.testing.assert_array_equal(gram, before[1])
    assert result.theta.dtype == dtype and result.theta.shape == SHAPE and result.theta.flags.c_contiguous
    check_theta(result.theta, result.encoding, kind=kind)
    assert 0 < Problem(weight, gram).relative_error(result.theta) < 0.6


def check_theta(theta: np.ndarray, encoding: object, *, kind: str) -> None:
    """Check sparsity, codes and rank against what the kind promises."""
    if kind in ("pruning", "joint"):
        assert (np.count_nonzero(theta, axis=1) <= 32).all()
        np.testing.assert_array_equal(encoding.mask, theta != 0)
    if kind in ("quantization", "joint"):
        scales, zeros = (np.repeat(part, 32, axis=1) for part in (encoding.scales, encoding.zeros))
        per_input = 1 if encoding.input_scales is None else encoding.input_scales
        np.testing.assert_array_equal(
            (encoding.codes.astype(theta.dtype) - zeros) * scales / per_input, theta
        )
        np.testing.assert_array_equal(encoding.scales.astype(np.float16), encoding.scales)
        assert encoding.codes.max() <= 15
    if kind == "low rank":
        assert np.linalg.matrix_rank(theta) == 3


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_a_second_run_gives_the_same_bits(backend: str, method: str, kind: str) -> None:
    first, second = (compress_layer(*layer(), spec_of(method, kind), backend=backend).theta for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_refuses_what_it_does_not_do(method: str) -> None:
    assert METHODS[method].summary
    for kind in KINDS.keys() - set(METHODS[method].kinds):
        with pytest.raises(UsageError, match=re.escape(f"method '{method}' does not do {kind}")):
            spec_of(method, kind)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_joint_grids_are_fitted_to_what_is_kept(method: str) -> None:
    # An outlier on an input that is nearly always zero: both peers prune it, so the grid must not span it.
    weight, gram = np.full((1, 64), 0.5), np.eye(64)
    weight[0, :40], weight[0, 5], gram[5, 5] = 1.0, -3.0 if method == "wanda" else -0.25, 1e-9
    result = compress_layer(weight, gram, CompressSpec(method=method, sparsity=0.5, bits=2), backend="numpy")
    assert result.encoding.zeros.tolist() == [[0]] and set(np.unique(result.theta)) <= {
        0.0,
        result.theta.max(),
    }


def test_awp_beats_the_peers(backend: str) -> None:
    errors = {m: compress_layer(*layer(), spec_of(m, "pruning"), backend=backend).objective
              for m in ("awp", "wanda", "magnitude")}  # fmt: skip
    assert errors["awp"] < 0.9 * errors["wanda"] < 0.9 * errors["magnitude"]
    joint = {
        m: compress_layer(*layer(), spec_of(m, "joint"), backend=backend).objective for m in ("awp", "wanda")
    }
    assert joint["awp"] < joint["wanda"]
    rounded = {
        m: compress_layer(*layer(), spec_of(m, "quantization"), backend=backend) for m in ("awp", "rtn")
    }
    assert rounded["awp"].objective < rounded["rtn"].objective


@pytest.mark.parametrize(
    ("options", "constraint"),
    [
        ({}, Sparse(Dense())),
        ({"sparsity": 0.5}, Sparse(RowSparse(32))),
        ({"sparsity": 0.99}, Sparse(RowSparse(1))),
        ({"pattern": "2:4"}, Sparse(NM(2, 4))),
        ({"pattern": "2:4", "sparsity": 0.5}, Sparse(NM(2, 4))),
        ({"pattern": "24/64"}, Sparse(BalancedBlock(24))),
        ({"bits": 3, "group_size": 16}, Sparse(Dense(), IntGrid(3, 16, half_scales=True))),
        ({"bits": 4, "sparsity": 0.25}, Sparse(RowSparse(48), IntGrid(4, 64, half_scales=True))),
        ({"rank": 5}, LowRank(5)),
        ({"rank": 100}, LowRank(8)),
        ({"rank": 0.5}, LowRank(3)),
        ({"rank": 1e-9}, LowRank(1)),
    ],
)
def test_constraint_of_a_layer(options: dict, constraint: object) -> None:
    assert CompressSpec(**options).constraint(SHAPE) == constraint


@given(st.integers(0, 99), st.integers(1, 3000))
@example(7, 250)
@example(6, 1075)
def test_kept_weights_round_half_up(percent: int, d_in: int) -> None:
    # k = round-half-up((1 - s) d_in), with s as it was written, not as binary floats hold it.
    support = CompressSpec(sparsity=percent / 100).support((1, d_in))
    kept = d_in if isinstance(support, Dense) else support.k
    assert kept == ((100 - percent) * d_in * 2 + 100) // 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method 'best' is unknown: choose one of magnitude"),
        ({"sparsity": 1.0}, "sparsity must lie in [0, 1), got 1.0"),
        ({"sparsity": -0.1}, "sparsity must lie in [0, 1), got -0.1"),
        ({"sparsity": float("nan")}, "sparsity must lie in [0, 1), got nan"),
        ({"sparsity": 0.5, "damping": -0.1}, "damping must be a share from 0 up, got"),
        ({"sparsity": 0.5, "damping": float("nan")}, "damping must be a share from 0 up, got"),
        ({"method": "wanda", "sparsity": 0.5, "damping": 0.1}, "damping 0.1 does nothing for wanda pruning"),
        ({"bits": 4, "damping": 0.1}, "damping 0.1 does nothing for awp-plus quantization"),
        ({"effort": "huge"}, "effort must be one of fast, default, max, got 'huge'"),
        ({"pattern": "4x4"}, "pattern '4x4' is not one of row, N:M (2:4) or K/64 (32/64)"),
        ({"pattern": "0:4"}, "pattern '0:4' must be N:M with 0 < N <= M"),
        ({"pattern": "5:4"}, "pattern '5:4' must be N:M with 0 < N <= M"),
        ({"pattern": "16/32"}, "pattern '16/32' must be N:M with 0 < N <= M, or K/64"),
        ({"pattern": "2:4", "sparsity": 0.6}, "pattern 2:4 implies sparsity 0.5: drop --sparsity 0.6"),
        ({"bits": 5}, "bits = 5 is not offered"),
        ({"bits": 4, "group_size": 0}, "group size must be at least 1, got 0"),
        ({"rank": 0}, "rank must be a positive integer or a share below 1, got 0"),
        ({"rank": 2.5}, "rank must be a positive integer or a share below 1, got 2.5"),
        ({"rank": float("nan")}, "rank must be a positive integer or a share below 1, got nan"),
        ({"rank": float("inf")}, "rank must be a positive integer or a share below 1, got inf"),
        ({"rank": 4, "bits": 4}, "--rank excludes --sparsity, --pattern and --bits"),
        ({"method": "rtn", "sparsity": 0.5}, "method 'rtn' does not do pruning"),
    ],
)
def test_bad_options_get_one_line(options: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        CompressSpec(**options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 4, "group_size": 48}, "group size 48 does not divide d_in = 64"),
        ({"pattern": "2:5"}, "pattern 2:5 needs m = 5 to divide d_in = 64"),
    ],
)
def test_a_layer_that_does_not_fit_gets_one_line(options: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        compress_layer(*layer(), CompressSpec(**options))
    assert str(caught.value) == message


def test_bad_arrays_get_one_line() -> None:
    weight, gram = layer()
    weight[1, 2] = np.inf
    with pytest.raises(ValueError, match="weight holds inf at row 1, column 2"):
        compress_layer(weight, gram, CompressSpec(sparsity=0.5))


def test_environment_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWP_BACKEND", "numpy")
    assert awp_edge.backend.resolve("auto").name == "numpy"
    monkeypatch.setenv("AWP_BACKEND", "auto")
    assert awp_edge.backend.resolve("auto").name in ("numpy", "native")
    monkeypatch.setenv("AWP_BACKEND", "fast")
    with pytest.raises(ValueError, match="backend must be auto, numpy or native, got 'fast'"):
        awp_edge.backend.resolve("auto")
    assert awp_edge.backend.resolve("numpy").name == "numpy"


def test_low_rank_is_numpys_under_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWP_BACKEND", raising=False)
    assert awp_edge.backend.resolve("auto", constraint=LowRank(1)).name == "numpy"


def test_a_support_without_a_twin_stays_in_numpy() -> None:
    class Odd(RowSparse):
        def descriptor(self) -> tuple[str, int, int, int]:
            return "odd", 0, 0, 0

    assert awp_edge.backend.resolve("auto", constraint=Sparse(Odd(1), Reals())).name == "numpy"


def test_public_names() -> None:
    assert sorted(awp_edge.__all__) == sorted(set(awp_edge.__all__))
    wanted = """Problem Sparse Dense RowSparse NM BalancedBlock BlockSparse Reals IntGrid LowRank solve pgd Result
                METHODS compress_layer Stop CompressSpec""".split()
    assert set(wanted) <= set(awp_edge.__all__) and all(hasattr(awp_edge, name) for name in awp_edge.__all__)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_budgets_of_rows_need_a_method_that_prunes(method: str) -> None:
    with pytest.raises(ValueError, match=f"{method} does not prune to budgets of rows"):
        compress_layer(*layer(), CompressSpec(method=method, bits=4), kept=(32,) * SHAPE[0])


def test_a_share_of_the_parameters_is_not_lost_to_rounding() -> None:
    assert [CompressSpec(rank=share).rank_for((100, 100)) for share in (0.58, 0.579)] == [29, 28]
