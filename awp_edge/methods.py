"""The table of named methods and the options that choose one layer's constraint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np

from .backend import Backend, resolve
from .baselines import asvd, magnitude, rtn, wanda
from .constraints import NM, BalancedBlock, Dense, IntGrid, LowRank, Reals, RowSparse, Sparse, Support, interleaved
from .errors import UsageError
from .problem import Array, Problem
from .solvers.base import Result, Stop, encode, low_rank_result
from .solvers.pgd import Pgd
from .solvers.solve import finish, starting_point

EFFORTS = ("fast", "default", "max")
DEFAULT_METHOD = "awp"

#: AWP's quantization mode and joint schedule. The text at hand does not give them: these are our choices. The grid is
#: refitted to every Z, without which descent stays at round to nearest.
QUANTIZATION_STEPS = 20
JOINT_RAMP, JOINT_PRUNING_STEPS = 50, 100


@dataclass(frozen=True)
class CompressSpec:
    """Choose the method and the constraint of every layer.

    Args:
        method: a name in `METHODS`.
        sparsity: share of weights to prune, 0 <= s < 1; k = floor((1 - s) d_in + 1/2) stay in every row.
        pattern: "row", "N:M" or "K/64"; the last two imply their sparsity.
        bits: 2, 3, 4 or 8 for an integer grid, None for real values.
        group_size: inputs that share a scale: consecutive ones, for K/64 those of consecutive blocks (a multiple of 64).
        rank: an integer is a rank, a fraction below 1 a share of the parameters; excludes the others.
        effort: "fast", "default" or "max".

    Raises:
        UsageError: values out of range, or options that contradict each other.
    """

    method: str = DEFAULT_METHOD
    sparsity: float = 0.0
    pattern: str = "row"
    bits: int | None = None
    group_size: int = 64
    rank: float | None = None
    effort: str = "default"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r} is unknown: choose one of {', '.join(METHODS)}")
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        if self.effort not in EFFORTS:
            raise UsageError(f"effort must be one of {', '.join(EFFORTS)}, got {self.effort!r}")
        self._check_pattern()
        self._check_values()
        method = METHODS[self.method]
        if not method.handles(self.kind):
            raise UsageError(
                f"method {self.method!r} does not do {self.kind}: it does {' and '.join(method.kinds)}"
            )

    @property
    def kind(self) -> str:
        """Return "pruning", "quantization", "joint" or "low rank"."""
        if self.rank is not None:
            return "low rank"
        sparse = self.pattern != "row" or self.sparsity > 0
        if self.bits is None:
            return "pruning"
        return "joint" if sparse else "quantization"

    @property
    def interleaved(self) -> bool:
        """Return whether scales belong to groups of whole K/64 blocks instead of consecutive inputs."""
        return self.bits is not None and "/" in self.pattern

    def support(self, shape: tuple[int, int]) -> Support:
        """Return the support of a (d_out, d_in) layer."""
        if self.pattern != "row":
            first, separator, second = _parse_pattern(self.pattern)
            return NM(first, second) if separator == ":" else BalancedBlock(first, second)
        if self.sparsity == 0:
            return Dense()
        # Six decimals undo what binary floats make of 0.3, so that halves round up.
        return RowSparse(int(np.floor(round((1 - self.sparsity) * shape[1], 6) + 0.5)))

    def constraint(self, shape: tuple[int, int]) -> Sparse | LowRank:
        """Return the constraint of a (d_out, d_in) layer.

        Raises:
            ValueError: a group size or pattern that does not divide d_in.
        """
        if self.rank is not None:
            return LowRank(self.rank_for(shape))
        grid = Reals() if self.bits is None else IntGrid(self.bits, self.group_size, half_scales=True)
        constraint = Sparse(self.support(shape), grid)
        constraint.check(shape)
        return constraint

    def rank_for(self, shape: tuple[int, int]) -> int:
        """Return the rank: as given (at most full), or the largest whose factors fit the share of parameters."""
        assert self.rank is not None
        if self.rank >= 1:
            return min(int(self.rank), *shape)
        return max(1, int(self.rank * shape[0] * shape[1] / (shape[0] + shape[1])))

    def _check_pattern(self) -> None:
        if self.pattern == "row":
            return
        first, separator, second = _parse_pattern(self.pattern)
        if not 0 < first <= second or (separator == "/" and second != 64):
            raise UsageError(
                f"pattern {self.pattern!r} must be N:M with 0 < N <= M, or K/64 with 0 < K <= 64"
            )
        implied = 1 - first / second
        if self.sparsity and abs(self.sparsity - implied) > 1e-9:
            raise UsageError(
                f"pattern {self.pattern} implies sparsity {implied:g}: drop --sparsity {self.sparsity:g}"
            )

    def _check_values(self) -> None:
        if self.bits is not None:
            try:
                IntGrid(self.bits, self.group_size)
            except ValueError as error:
                raise UsageError(str(error)) from None
        if self.rank is None:
            return
        if not 0 < self.rank < np.inf or (self.rank >= 1 and self.rank != int(self.rank)):
            raise UsageError(f"rank must be a positive integer or a share below 1, got {self.rank:g}")
        if self.bits is not None or self.sparsity or self.pattern != "row":
            raise UsageError(
                "--rank excludes --sparsity, --pattern and --bits: low rank is a constraint of its own"
            )


def _parse_pattern(pattern: str) -> tuple[int, str, int]:
    match = re.fullmatch(r"(\d+)([:/])(\d+)", pattern)
    if match is None:
        raise UsageError(f"pattern {pattern!r} is not one of row, N:M (2:4) or K/64 (32/64)")
    return int(match[1]), match[2], int(match[3])


class Solver(Protocol):
    """A method's body."""

    def __call__(self, problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
        """Return the compressed weight."""


@dataclass(frozen=True)
class Method:
    """Name a composition of solvers: what it is, what it can do and how."""

    summary: str
    kinds: tuple[str, ...]
    run: Solver

    def handles(self, kind: str) -> bool:
        """Return whether the method can serve this kind of constraint."""
        return kind in self.kinds


def _closed_form(constraint: Sparse, theta: Array, *, problem: Problem) -> Result:
    objective = problem.objective(theta)
    return Result(theta, objective, np.array([objective]), 0, True, "closed form", encode(constraint, theta))


def _prune(baseline: Callable[..., Array]) -> Solver:
    """Return the method that prunes by a baseline's mask, then rounds to a grid fitted to what is kept."""

    def run(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
        assert isinstance(constraint, Sparse)
        pruned = baseline(problem, replace(constraint, values=Reals()), engine=engine)
        bound = constraint.bind(pruned)
        return _closed_form(bound, bound.restrict(pruned, pruned != 0), problem=problem)

    return run


def _rtn(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
    assert isinstance(constraint, Sparse)
    bound = constraint.bind(problem.weight)
    return _closed_form(bound, rtn(problem, bound, engine=engine), problem=problem)


def _asvd(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
    assert isinstance(constraint, LowRank)
    factors = asvd(problem, constraint, engine=engine)
    return low_rank_result(problem.objective(factors[0] @ factors[1]), factors, constraint)


def _awp(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
    """Run the paper's three modes: pruning, quantization from RTN, or a ramp followed by both projections."""
    if isinstance(constraint, LowRank):
        return _asvd(problem, constraint, engine=engine)
    if isinstance(constraint.values, Reals):
        return _pgd(problem, constraint, engine=engine)
    if isinstance(constraint.support, Dense):
        return _quantize(problem, constraint, engine=engine, start=problem.weight)
    prune = Stop(max_iter=JOINT_PRUNING_STEPS)
    pruned = _pgd(
        problem, replace(constraint, values=Reals()), engine=engine, method=Pgd(ramp=JOINT_RAMP), stop=prune
    )
    return _quantize(problem, constraint, engine=engine, start=pruned.theta)


def _quantize(problem: Problem, constraint: Sparse, *, engine: Backend, start: Array) -> Result:
    stop = Stop(max_iter=QUANTIZATION_STEPS)
    return _pgd(problem, constraint, engine=engine, start=start, method=Pgd(refit=True), stop=stop)


def _pgd(
    problem: Problem,
    constraint: Sparse,
    *,
    engine: Backend,
    start: Array | None = None,
    method: Pgd = Pgd(),
    stop: Stop = Stop(),
) -> Result:
    bound, theta = starting_point(problem, constraint, start, engine=engine, ramp=method.ramp)
    return finish(engine.pgd(problem, bound, theta, method=method, stop=stop))


#: Every method by the name the command line and the reports use.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "magnitude": Method("largest weights kept", ("pruning", "joint"), _prune(magnitude)),
        "wanda": Method("largest |w| ||x|| kept (Sun et al. 2024)", ("pruning", "joint"), _prune(wanda)),
        "rtn": Method("round to nearest", ("quantization",), _rtn),
        "asvd": Method("activation-aware SVD, the low-rank optimum", ("low rank",), _asvd),
        "awp": Method(
            "projected gradient descent (Liu et al. 2025)",
            ("pruning", "quantization", "joint", "low rank"),
            _awp,
        ),
    }
)


def compress_layer(
    weight: Array, gram: Array, spec: CompressSpec, *, backend: str = "auto", threads: int | None = None
) -> Result:
    """Compress one linear layer.

    Args:
        weight: W, (d_out, d_in), float32 or float64.
        gram: C = E[x x^T] per token, (d_in, d_in).
        spec: method and constraint.
        backend: "numpy", "native" or "auto".
        threads: for the native backend; results do not depend on it.

    Returns:
        The result, theta in the dtype of W, scales exactly float16 values.

    Raises:
        ValueError: shapes that clash, NaN or infinity, a group size or pattern that does not divide d_in.
    """
    problem = Problem(weight, gram)
    constraint = spec.constraint(problem.shape)
    if spec.interleaved:
        return _compress_interleaved(problem, spec, backend=backend, threads=threads)
    engine = resolve(backend, threads=threads, constraint=constraint)
    return METHODS[spec.method].run(problem, constraint, engine=engine)


def _compress_interleaved(problem: Problem, spec: CompressSpec, *, backend: str, threads: int | None) -> Result:
    """Compress with the inputs in the order of the K/64 blocks, where blocks and groups are consecutive, and put them back.

    f does not change under a permutation of the inputs; a group of consecutive inputs would cut every block.
    """
    order = interleaved(problem.shape[1])
    kept = _parse_pattern(spec.pattern)[0]
    turned = Problem(
        np.ascontiguousarray(problem.weight[:, order]), np.ascontiguousarray(problem.gram[np.ix_(order, order)])
    )
    consecutive = replace(spec, pattern=f"{kept}:64")
    constraint = consecutive.constraint(turned.shape)
    engine = resolve(backend, threads=threads, constraint=constraint)
    result = METHODS[spec.method].run(turned, constraint, engine=engine)
    back = np.argsort(order)
    parts = result.encoding
    assert parts.codes is not None and parts.mask is not None
    encoding = replace(
        parts,
        codes=np.ascontiguousarray(parts.codes[:, back]),
        mask=np.ascontiguousarray(parts.mask[:, back]),
        interleaved=True,
    )
    return replace(result, theta=np.ascontiguousarray(result.theta[:, back]), encoding=encoding)
