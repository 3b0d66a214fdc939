"""The native core: the reference's functions in C++, arrays in and out; picks the best build for the machine.

AWP_ISA forces one of `ISAS`. Results do not depend on the number of threads.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constraints import BoundGrid, Mask, Sparse, Support
from .constraints.base import Descriptor
from .constraints.values import Codes
from .errors import AwpError
from .problem import Array, Problem
from .solvers.admm import Admm, RoundedMatrix
from .solvers.base import Run, Stop, infeasible
from .solvers.descent import PASSES
from .solvers.nearest_plane import Order
from .solvers.pgd import Pgd, ramped, step_size
from .solvers.ranges import Candidates
from .solvers.swap import Columns, Swaps

log = logging.getLogger(__name__)

#: Instruction sets by the names AWP_ISA takes, slow to fast, and the builds that serve each, best first.
ISAS: dict[str, tuple[str, ...]] = {
    "base": ("base",),
    "avx2": ("avx2",),
    "avx512": ("avx512",),
    "avx512vnni": ("avx512vnni", "avx512"),
    "avx512bf16": ("avx512bf16",),
    "amx": ("amx",),
    "neon": ("neon",),
    "neondot": ("neon",),
}


@cache
def available() -> bool:
    """Return whether the native core was built; say once, in one line, where it was not."""
    if _module("base") is not None:
        return True
    log.warning("awp_edge runs without its native core (no compiler at install time), several times slower")
    return False


def available_isas() -> tuple[str, ...]:
    """List the builds of the core that this machine can run, from slow to fast."""
    supported = _supported()
    builds = {build for isa in supported for build in ISAS[isa] if build in supported and _ready(build)}
    return tuple(isa for isa in ISAS if isa in builds)


def isa() -> str:
    """Return the build in use: the fastest, or what AWP_ISA asks for.

    Raises: AwpError where AWP_ISA is unknown, or the machine or the build lacks it.
    """
    forced = os.environ.get("AWP_ISA", "")
    builds = available_isas()
    if not builds:
        raise AwpError("the native core was not built: install a C++ compiler and reinstall, or use NumPy")
    if not forced:
        return builds[-1]
    if forced not in ISAS:
        raise AwpError(f"AWP_ISA={forced} is unknown: choose one of {', '.join(ISAS)}")
    served = [build for build in ISAS[forced] if build in builds]
    if not served or forced not in _supported():
        raise AwpError(f"AWP_ISA={forced} cannot run on this machine: choose one of {', '.join(builds)}")
    return served[0]


def select(gain: Array, support: Descriptor, *, threads: int | None = None) -> Mask:
    """Return the mask with the largest total gain of a support that has passed its check for this shape."""
    gain = np.ascontiguousarray(gain)
    mask = np.empty(gain.shape, dtype=np.bool_)
    core().select(gain, mask, support, thread_count(threads))
    return mask


def encode(z: Array, grid: BoundGrid, *, threads: int | None = None) -> Codes:
    """Return the codes of the nearest grid points, uint8, (d_out, d_in)."""
    z = np.ascontiguousarray(z)
    codes = np.empty(z.shape, dtype=np.uint8)
    core().encode(z, codes, _grid_parts(grid, z), thread_count(threads))
    return codes


def project(z: Array, constraint: Sparse, *, threads: int | None = None) -> Array:
    """Return the nearest point of support x values."""
    z = np.ascontiguousarray(z)
    constraint.support.check(_shape(z))
    values = constraint.rounder()
    if mixed(constraint, z):
        return constraint.project(z)
    out = np.empty_like(z)
    core().project(z, out, constraint.support.descriptor(), _grid_parts(values, z), thread_count(threads))
    return out


def mixed(constraint: Sparse, z: Array) -> bool:
    """Return whether a grid's scales have another dtype than what is rounded to it, which has no twin."""
    return isinstance(constraint.values, BoundGrid) and constraint.values.scales.dtype != z.dtype


def pgd(
    problem: Problem, constraint: Sparse, start: Array, *, method: Pgd, stop: Stop, threads: int | None = None
) -> Run:
    """Run projected gradient descent from a start in the set (or W, with a ramp); Ctrl-C stops it."""
    best = np.empty_like(problem.weight)
    constraint.support.check(problem.shape)
    _require(problem.shape, start=start)
    relaxed = [
        ramped(constraint, problem, step=step, ramp=method.ramp).support.descriptor()
        for step in range(1, method.ramp)
    ]
    found, objective, objectives, residuals, reason = core().pgd(
        problem.weight,
        problem.gram,
        np.ascontiguousarray(start),
        best,
        constraint.support.descriptor(),
        _grid_parts(constraint.rounder(), best),
        step=step_size(problem, constraint, method=method),
        max_iter=stop.max_iter,
        tol=stop.tol,
        weight_norm=float(np.linalg.norm(problem.weight)),
        ramp=method.ramp,
        relaxed=relaxed,
        bfloat16=method.products == "bfloat16",
        threads=thread_count(threads),
    )
    if not found:
        raise infeasible(reason)
    history = np.asarray(objectives), np.asarray(residuals)
    return Run(best, objective, *history, n_iter=len(objectives) - 1, reason=reason, constraint=constraint)


def inverse(matrix: Array, *, overwrite: bool = False, threads: int | None = None) -> Array:
    """Return the inverse of a symmetric positive definite matrix, in its dtype and, where allowed, its memory.

    Ctrl-C stops it.

    Raises: LinAlgError where the matrix is so far from definite that the result is not finite.
    """
    out = np.ascontiguousarray(matrix) if overwrite else np.array(matrix, order="C")
    core().invert(out, thread_count(threads))
    return _finite(out)


def admm(
    problem: Problem, support: Support, matrix: Array | RoundedMatrix, *, method: Admm, threads: int | None = None
) -> Array:  # fmt: skip
    """Return the sparse end of a splitting run by a proximal map; Ctrl-C stops it."""
    support.check(problem.shape)
    out = np.empty_like(problem.weight)
    if isinstance(matrix, RoundedMatrix):
        _require(problem.gram.shape, codes=matrix.codes)
        parts: Any = (matrix.codes, matrix.scale[None], matrix.diagonal[None])
    else:
        _require(problem.gram.shape, matrix=matrix)
        parts = np.ascontiguousarray(matrix)
    core().admm(
        problem.weight,
        parts,
        out,
        support.descriptor(),
        steps=method.steps,
        relaxation=method.relaxation,
        threads=thread_count(threads),
    )
    return out


def refit(
    problem: Problem, mask: Mask, start: Array, *, steps: int, threads: int | None = None
) -> tuple[Array, NDArray[np.float64]]:
    """Minimise f inside the mask by conjugate gradients; return Theta and f of every row. Ctrl-C stops it."""
    _require(problem.shape, mask=mask, start=start)
    theta = np.array(start, order="C")
    rows = core().refit(
        problem.weight,
        problem.gram,
        np.ascontiguousarray(mask),
        theta,
        steps=steps,
        threads=thread_count(threads),
    )
    return theta, np.asarray(rows)


def swap(
    problem: Problem,
    mask: Mask,
    theta: Array,
    *,
    labels: Columns,
    method: Swaps,
    least: NDArray[np.float64],
    threads: int | None = None,
) -> Array:
    """Return Theta after exact 1-swaps among each row's likeliest candidates; Ctrl-C stops it."""
    _require(problem.shape, mask=mask, theta=theta)
    _require(problem.shape[1:], labels=labels)
    _require(problem.shape[:1], least=least)
    gradient = product(problem.weight - theta, problem.gram, threads=threads)
    out = np.array(theta, order="C")
    core().swap(
        problem.gram,
        gradient,
        np.ascontiguousarray(mask),
        np.ascontiguousarray(labels, dtype=np.int64)[None],
        np.ascontiguousarray(least, dtype=np.float64)[None],
        out,
        candidates=method.candidates,
        patience=method.patience,
        threads=thread_count(threads),
    )
    return out


def cheapest_range(
    weight: Array, importance: Array, found: Candidates, *, threads: int | None = None
) -> NDArray[np.int32]:
    """Return each group's candidate with the least weighted rounding error, (d_out, groups); Ctrl-C stops it."""
    _require(weight.shape[1:], importance=importance)
    weight = np.ascontiguousarray(weight)
    importance = np.ascontiguousarray(importance, dtype=weight.dtype)[None]
    rows, groups = found.scales.shape[-2:]
    index = np.empty((rows, groups), dtype=np.int32)
    scales, zeros = (part.reshape(-1, groups) for part in (found.scales, found.zeros))
    parts = scales.astype(weight.dtype, copy=False), zeros, found.spec.group_size, found.spec.top
    core().cheapest_range(weight, importance, parts, index, thread_count(threads))
    return index


def factor(gram: Array, order: Order, *, threads: int | None = None) -> Array:
    """Return upper triangular U with C[o, o] = U U^T, computed in float64; Ctrl-C stops it.

    Raises: LinAlgError as `inverse`.
    """
    upper = np.empty((len(order), len(order)), dtype=gram.dtype)
    core().factor(np.ascontiguousarray(gram), _columns(order), upper, thread_count(threads))
    return _finite(upper)


def nearest_plane(
    target: Array, upper: Array, order: Order, *, grid: BoundGrid, threads: int | None = None
) -> Array:
    """Return the target rounded column by column, in an order of all columns; Ctrl-C stops it."""
    target, theta = np.ascontiguousarray(target), np.empty_like(target, order="C")
    if len(order) != target.shape[1]:
        raise ValueError(f"the order holds {len(order)} columns, but the target has {target.shape[1]}")
    _require((len(order), len(order)), upper=upper)
    parts = target, np.ascontiguousarray(upper), _columns(order), _grid_parts(grid, target)
    core().nearest_plane(*parts, theta, thread_count(threads))
    return theta


def masked_nearest_plane(
    problem: Problem, start: Array, mask: Mask, *, order: Order, grid: BoundGrid, threads: int | None = None
) -> Array:
    """Return every row refitted on its mask and rounded there; Ctrl-C stops it."""
    _require(problem.shape, start=start, mask=mask)
    theta, matrices = (
        np.empty_like(problem.weight),
        (problem.weight, problem.gram, np.ascontiguousarray(start)),
    )
    parts = np.ascontiguousarray(mask), _columns(order), _grid_parts(grid, theta)
    core().masked_nearest_plane(*matrices, *parts, theta, thread_count(threads))
    return theta


def descend(
    problem: Problem, theta: Array, grid: BoundGrid, *, mask: Mask | None = None, passes: int = PASSES,
    rescale: bool = True, threads: int | None = None,
) -> tuple[Array, BoundGrid]:  # fmt: skip
    """Lower f by one code and one scale at a time; return theta and its grid, new arrays. Ctrl-C stops it."""
    _require(problem.shape, theta=theta, mask=theta if mask is None else mask)
    theta = np.array(theta, dtype=problem.weight.dtype, order="C")
    scales = np.array(grid.scales, dtype=theta.dtype, order="C")
    core().descend(
        problem.weight, problem.gram, theta, scales, _grid_parts(grid, theta),
        None if mask is None else np.ascontiguousarray(mask),
        passes=passes, rescale=rescale, half_scales=grid.spec.half_scales, threads=thread_count(threads),
    )  # fmt: skip
    return theta, BoundGrid(grid.spec, scales, grid.zeros)


def low_rank(weight: Array, gram: Array, rank: int) -> tuple[Array, Array]:
    """Return factors (d_out, r), (r, d_in) of the activation-aware rank-r optimum."""
    left = np.empty((weight.shape[0], rank), dtype=weight.dtype)
    right = np.empty((rank, weight.shape[1]), dtype=weight.dtype)
    if rank > 0:
        core().low_rank(np.ascontiguousarray(weight), np.ascontiguousarray(gram), left, right)
    return left, right


def product(a: Array, b: Array, *, products: str = "float32", threads: int | None = None) -> Array:
    """Return a @ b; bfloat16 rounds float32 factors and adds in float32, int8 (limits: `solvers.admm`) in int32."""
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a has {a.shape[1]} columns, but b has {b.shape[0]} rows")
    functions = {"bfloat16": core().product_bfloat16, "int8": core().product_int8}
    function = functions.get(products, core().product)
    out = np.empty((a.shape[0], b.shape[1]), dtype=np.int32 if products == "int8" else a.dtype)
    function(np.ascontiguousarray(a), np.ascontiguousarray(b), out, thread_count(threads))
    return out


def gram(
    x: Array, total: NDArray[np.float64], *, products: str = "float32", threads: int | None = None
) -> None:
    """Add x^T x to the upper triangle of total, in place; entries below the diagonal are not touched.

    Args:
        x: (n, d), float32 or float64; blocks of 2048 rows are added in float32, blocks in float64.
        total: (d, d), float64, C-contiguous.
        products: "bfloat16" rounds float32 operands to bfloat16 first.
        threads: all usable cores where None.
    """
    if total.shape != (x.shape[1], x.shape[1]):
        raise ValueError(f"total has shape {total.shape}, but x has {x.shape[1]} columns")
    function = core().gram_bfloat16 if products == "bfloat16" else core().gram
    function(np.ascontiguousarray(x), total, thread_count(threads))


def core() -> Any:
    """Return the extension module in use."""
    module = _module(isa())
    assert module is not None
    return module


def thread_count(threads: int | None) -> int:
    """Return the number of threads: as given, or one per usable core."""
    if threads is None:
        usable = getattr(os, "sched_getaffinity", None)
        return len(usable(0)) if usable else os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return threads


@cache
def _module(build: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"._core_{build}", __package__)
    except ImportError:
        return None


@cache
def _supported() -> tuple[str, ...]:
    base = _module("base")
    return tuple(base.supported_isas()) if base is not None else ()


@cache
def _ready(build: str) -> bool:
    module = _module(build)
    return module is not None and bool(module.ready())


def _require(shape: tuple[int, ...], **arrays: NDArray[Any]) -> None:
    for name, array in arrays.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, not {shape}")


def _finite(matrix: Array) -> Array:
    if not all(np.isfinite(row).all() for row in matrix):  # a mask of the whole would take memory
        raise np.linalg.LinAlgError("Matrix is not positive definite")
    return matrix


def _shape(z: Array) -> tuple[int, int]:
    return z.shape[0], z.shape[1]


def _columns(order: Order) -> NDArray[np.int64]:
    return np.ascontiguousarray(order, dtype=np.int64)


def _grid_parts(values: object, z: Array) -> tuple[Array, Codes, int, int] | None:
    if not isinstance(values, BoundGrid):
        return None
    values.check(z.shape)
    scales = np.ascontiguousarray(values.scales, dtype=z.dtype)
    return scales, np.ascontiguousarray(values.zeros), values.spec.group_size, values.spec.top
