"""The native core beyond its parity with the reference: products, memory layouts, threads, instruction sets."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import assert_same_bits, require_native
from strategies import DTYPES, make_weight

from awp_edge import NM, IntGrid, Problem, RowSparse, Sparse, native
from awp_edge.errors import AwpError
from awp_edge.solvers.admm import LEFT_LIMIT, RIGHT_LIMIT
from awp_edge.solvers.ranges import candidates
from awp_edge.solvers.swap import Swaps


@pytest.mark.parametrize("dtype", DTYPES)
def test_products(isa: str, dtype: str) -> None:
    for m, k, n in [(1, 1, 1), (3, 5, 7), (17, 33, 65), (64, 64, 64), (97, 130, 31), (5, 700, 9)]:
        a, b = make_weight("normal", (m, k), dtype, seed=m), make_weight("heavy tails", (k, n), dtype, seed=n)
        exact = a.astype(np.float64) @ b.astype(np.float64)
        size = np.abs(a).astype(np.float64) @ np.abs(b)
        results = [native.product(a, b, threads=threads) for threads in (1, 2, 3)]
        assert (np.abs(results[0] - exact) <= k * np.finfo(dtype).eps * size).all()
        assert_same_bits(results[1], results[0])
        assert_same_bits(results[2], results[0])


def test_bfloat16_products(isa: str) -> None:
    a, b = (
        make_weight("normal", (33, 70), "float32", seed=0),
        make_weight("normal", (70, 41), "float32", seed=1),
    )
    exact, size = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    rounded = [native.product(a, b, products="bfloat16", threads=threads) for threads in (1, 2, 3)]
    error = np.abs(rounded[0] - exact) / size
    assert 1e-4 < error.max() <= 2 * 2**-8 + 70 * np.finfo(np.float32).eps  # rounded, and no more than that
    assert_same_bits(rounded[1], rounded[0])
    assert_same_bits(rounded[2], rounded[0])


def test_integer_products(isa: str) -> None:
    random = np.random.default_rng(0)
    for m, k, n in [(1, 1, 1), (3, 5, 7), (200, 33, 65), (5, 700, 49)]:
        a = random.integers(-LEFT_LIMIT, LEFT_LIMIT, (m, k), dtype=np.int8, endpoint=True)
        b = random.integers(-RIGHT_LIMIT, RIGHT_LIMIT, (k, n), dtype=np.int8, endpoint=True)
        for threads in (1, 3):
            found = native.product(a, b, products="int8", threads=threads)
            assert_same_bits(found, a.astype(np.int32) @ b.astype(np.int32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_matrices(isa: str, dtype: str) -> None:
    for n, d in [(1, 1), (7, 5), (64, 33), (300, 65), (2050, 40)]:
        x = make_weight("normal", (n, d), dtype, seed=n)
        exact, size = x.astype(np.float64).T @ x, np.abs(x).astype(np.float64).T @ np.abs(x)
        totals = [np.ones((d, d)) for _ in range(3)]
        for threads, total in enumerate(totals, start=1):
            native.gram(x, total, threads=threads)
        upper, slack = np.triu_indices(d), min(n, 2048) * np.finfo(dtype).eps * size + 1e-12
        assert (np.abs(totals[0] - 1 - exact)[upper] <= slack[upper]).all()
        assert_same_bits(totals[1], totals[0])
        assert_same_bits(totals[2], totals[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_memory_layout_is_taken(isa: str, dtype: str) -> None:
    z = make_weight("normal", (8, 12), dtype, seed=0)
    constraint = Sparse(NM(2, 4), IntGrid(4, 6)).bind(z)
    for other in (np.asfortranarray(z), np.repeat(z, 2, axis=1)[:, ::2]):
        assert_same_bits(native.project(other, constraint), constraint.project(z))
        assert_same_bits(native.select(np.abs(other), ("row", (3,), 0, 0)), RowSparse(3).select(np.abs(z)))
        assert_same_bits(native.encode(other, constraint.values), constraint.values.encode(z))


def test_threads_must_be_positive(isa: str) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        native.select(np.ones((2, 8)), ("row", (2,), 0, 0), threads=0)


def test_instruction_sets_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_native()
    assert "base" in native.available_isas()
    monkeypatch.setenv("AWP_ISA", "sse9")
    with pytest.raises(AwpError, match="AWP_ISA=sse9 is unknown: choose one of base, avx2"):
        native.isa()
    missing = [name for name in native.ISAS if not set(native.ISAS[name]) & set(native.available_isas())]
    monkeypatch.setenv("AWP_ISA", missing[0])
    with pytest.raises(
        AwpError, match=f"AWP_ISA={missing[0]} cannot run on this machine: choose one of base"
    ):
        native.isa()
    monkeypatch.setenv("AWP_ISA", "")
    assert native.isa() == native.available_isas()[-1]


def test_arrays_that_do_not_fit_are_refused() -> None:
    require_native()
    problem = Problem(make_weight("normal", (3, 8), "float32", seed=0), np.eye(8, dtype=np.float32))
    mask, other = np.ones((3, 8), dtype=np.bool_), np.ones((2, 8), dtype=np.bool_)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 8\), not \(3, 8\)"):
        native.refit(problem, other, problem.weight, steps=1)
    with pytest.raises(ValueError, match=r"labels has shape \(7,\), not \(8,\)"):
        native.swap(
            problem,
            mask,
            problem.weight,
            labels=np.zeros(7, dtype=np.intp),
            method=Swaps(2),
            least=np.zeros(3),
        )
    with pytest.raises(ValueError, match="d_in"):
        native.project(problem.weight, Sparse(NM(1, 3)))


class AlarmError(Exception):
    """Stands for Ctrl-C."""


@contextmanager
def alarms() -> Iterator[None]:
    """Raise at the second of many alarms: one is seen behind a call, too, that does not look for any."""
    seen: list[int] = []

    def ring(number: int, _: object) -> None:
        seen.append(number)
        if len(seen) == 2:
            raise AlarmError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def long_call(name: str) -> partial[Any]:
    """Return a call of the core that takes some tenths of a second."""
    d = 512
    problem = Problem(make_weight("normal", (4096, d), "float32", seed=0), np.eye(d, dtype=np.float32))
    weight, order, spec, matrix = problem.weight, np.arange(d), IntGrid(4, 64), np.eye(2400)
    grid, mask = spec.fit(weight), np.ones(weight.shape, dtype=np.bool_)
    match name:
        case "nearest_plane":
            return partial(native.nearest_plane, weight, problem.gram, order, grid=grid)
        case "masked_nearest_plane":
            return partial(native.masked_nearest_plane, problem, weight, mask, order=order, grid=grid)
        case "descend":
            return partial(native.descend, problem, grid.round(weight), grid, passes=100)
        case "cheapest_range":
            return partial(native.cheapest_range, weight, np.ones(d), candidates(spec, weight))
        case "factor":
            return partial(native.factor, matrix, np.arange(len(matrix)))
        case "inverse":
            return partial(native.inverse, matrix)
        case _:
            return partial(native.refit, problem, mask, weight, steps=2000)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "name",
    ["nearest_plane", "masked_nearest_plane", "descend", "cheapest_range", "factor", "inverse", "refit"],
)
def test_a_signal_stops_long_calls(name: str, threads: int) -> None:
    require_native()
    call = long_call(name)
    with pytest.raises(AlarmError), alarms():
        call(threads=threads)
