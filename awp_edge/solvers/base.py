"""What every solver shares: its states, when to stop, the one loop and the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..constraints import LowRank, Mask, Sparse
from ..constraints.supports import Dense
from ..constraints.values import BoundGrid, Codes
from ..problem import Array

GRADIENT, FIXED_POINT, ITERATIONS, DIVERGED = "gradient", "fixed point", "iterations", "diverged"


@dataclass(frozen=True)
class State:
    """Describe one iterate.

    theta: (d_out, d_in).  objective: f(Theta).  residual: ||(W - Theta) C||_F / ||W||_F.
    feasible: whether Theta lies in the set (a ramp passes through looser ones).
    settled: whether the last step left Theta unchanged.
    constraint: the bound set that Theta was projected onto, which a refitted grid changes from step to step.
    """

    theta: Array
    objective: float
    residual: float
    constraint: Sparse
    feasible: bool = True
    settled: bool = False


@dataclass(frozen=True)
class Stop:
    """Stop after max_iter steps, where ||(W - Theta) C||_F / ||W||_F < tol, or where Theta stays the same.

    The defaults are those of AWP's pruning experiments.

    Raises:
        ValueError: a negative iteration limit or tolerance.
    """

    max_iter: int = 200
    tol: float = 1e-4

    def __post_init__(self) -> None:
        if self.max_iter < 0 or self.tol < 0:
            raise ValueError(f"max_iter and tol must not be negative, got {self.max_iter} and {self.tol}")


@dataclass(frozen=True)
class Run:
    """Hold what an iteration left behind: the best feasible iterate and the history.

    objectives, residuals: float64, (n_iter + 1,), one entry per iterate, the start included.
    constraint: the bound set that theta lies in.
    """

    theta: Array
    objective: float
    objectives: NDArray[np.float64]
    residuals: NDArray[np.float64]
    n_iter: int
    reason: str
    constraint: Sparse


@dataclass(frozen=True)
class Encoding:
    """Hold the parts a compressed weight is stored as; None where a part does not apply.

    codes: uint8 (d_out, d_in).  scales: (d_out, groups).  zeros: uint8 (d_out, groups).
    mask: bool (d_out, d_in).  left, right: (d_out, r) and (r, d_in), Theta = left @ right.
    input_scales: s, (d_in,), where the codes are those of Theta diag(s): Theta = (code - zero) scale / s.
    interleaved: a group of scales and zeros is not of consecutive inputs but of whole K/64 blocks, see `interleaved`.
    """

    codes: Codes | None = None
    scales: Array | None = None
    zeros: Codes | None = None
    mask: Mask | None = None
    left: Array | None = None
    right: Array | None = None
    input_scales: Array | None = None
    interleaved: bool = False


@dataclass(frozen=True)
class Result:
    """Return the compressed weight and how it was reached.

    theta: (d_out, d_in), dtype of W, C-contiguous, in the constraint.
    objective: f(theta), the smallest seen.  objectives: f of every iterate.
    n_iter: steps taken.  converged: stopped before the iteration limit.
    reason: "gradient", "fixed point", "iterations", "diverged" or "closed form".
    """

    theta: Array
    objective: float
    objectives: NDArray[np.float64]
    n_iter: int
    converged: bool
    reason: str
    encoding: Encoding


def minimise(states: Iterator[State], stop: Stop) -> Run:
    """Drain a solver's states until a stop rule holds; keep the best feasible iterate.

    Keeping the best matters: the paper's step 2/||C||_F can exceed 1/L, and f may then rise, even cycle (T03).
    """
    objectives: list[float] = []
    residuals: list[float] = []
    best: State | None = None
    reason = None
    for state in states:
        objectives.append(state.objective)
        residuals.append(state.residual)
        if state.feasible and (best is None or state.objective < best.objective):
            best = state
        reason = stop_reason(state, stop, step=len(objectives) - 1)
        if reason is not None:
            break
    if best is None or reason is None:
        raise infeasible(reason)
    history = np.asarray(objectives), np.asarray(residuals)
    steps = len(objectives) - 1
    return Run(best.theta, best.objective, *history, steps, reason, best.constraint)


def infeasible(reason: str | None) -> ValueError:
    """Return the error of a run that ended before its ramp did."""
    cure = "use a smaller step" if reason == DIVERGED else "allow more iterations than the ramp takes"
    return ValueError(f"no feasible iterate: {cure}")


def stop_reason(state: State, stop: Stop, *, step: int) -> str | None:
    """Return why to stop at this state, or None."""
    if not np.isfinite(state.objective):
        return DIVERGED
    if state.feasible and state.residual < stop.tol:
        return GRADIENT
    if state.feasible and state.settled:
        return FIXED_POINT
    return ITERATIONS if step >= stop.max_iter else None


def encode(constraint: Sparse, theta: Array) -> Encoding:
    """Return the stored parts of a point of a support x values set."""
    mask = None if isinstance(constraint.support, Dense) else theta != 0
    grid = constraint.values
    if not isinstance(grid, BoundGrid):
        return Encoding(mask=mask)
    return Encoding(codes=grid.encode(theta), scales=grid.scales, zeros=grid.zeros, mask=mask)


def encode_factors(left: Array, right: Array) -> Encoding:
    """Return the stored parts of a low-rank weight."""
    return Encoding(left=np.ascontiguousarray(left), right=np.ascontiguousarray(right))


def low_rank_result(problem_objective: float, factors: tuple[Array, Array], constraint: LowRank) -> Result:
    """Return the result of a closed-form low-rank solution."""
    constraint.check((factors[0].shape[0], factors[1].shape[1]))
    theta = np.ascontiguousarray(factors[0] @ factors[1])
    return Result(
        theta,
        problem_objective,
        np.array([problem_objective]),
        0,
        True,
        "closed form",
        encode_factors(*factors),
    )
