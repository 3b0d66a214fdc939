"""The one entry point: bind the constraint, choose the backend, run, encode."""

from __future__ import annotations

import numpy as np

from ..backend import Backend, resolve
from ..baselines.wanda import wanda_mask
from ..constraints import LowRank, Sparse
from ..problem import Array, Problem, as_matrix
from .base import DIVERGED, ITERATIONS, Result, Run, Stop, encode, low_rank_result
from .pgd import Pgd


def solve(
    problem: Problem,
    constraint: Sparse | LowRank,
    *,
    method: Pgd = Pgd(),
    start: Array | None = None,
    stop: Stop = Stop(),
    backend: str = "auto",
    threads: int | None = None,
) -> Result:
    """Minimise f over the constraint and return the best iterate; the inputs are never modified.

    Args:
        problem: W and C, float32 or float64.
        constraint: support x values (an unfitted grid is fitted to the start) or low rank (closed form, T09).
        method: `pgd(...)`.
        start: Theta(0), (d_out, d_in), projected onto the set first; None takes Wanda's choice for a sparse set
            and the projection of W otherwise.
        stop: iteration limit and tolerance.
        backend: "numpy", "native" or "auto" (native where it is built and knows the constraint).
        threads: for the native backend; results do not depend on it.

    Raises:
        ValueError: shapes that clash, a backend that is not there.
    """
    constraint.check(problem.shape)
    engine = resolve(backend, threads=threads, constraint=constraint)
    if isinstance(constraint, LowRank):
        factors = engine.factors(problem, constraint)
        return low_rank_result(problem.objective(factors[0] @ factors[1]), factors, constraint)
    bound, theta = starting_point(problem, constraint, start, engine=engine, ramp=method.ramp)
    return finish(engine.pgd(problem, bound, theta, method=method, stop=stop))


def finish(run: Run) -> Result:
    """Return the result of a run."""
    theta = np.ascontiguousarray(run.theta)
    converged = run.reason not in (ITERATIONS, DIVERGED)
    return Result(
        theta, run.objective, run.objectives, run.n_iter, converged, run.reason, encode(run.constraint, theta)
    )


def starting_point(
    problem: Problem, constraint: Sparse, start: Array | None, *, engine: Backend, ramp: int = 0
) -> tuple[Sparse, Array]:
    """Return the bound constraint and a feasible start (W itself where a ramp leads into the set)."""
    if start is not None:
        start = as_matrix(start, name="start", dtype=problem.weight.dtype)
        if start.shape != problem.shape:
            raise ValueError(f"start has shape {start.shape}, but weight has {problem.shape}")
        bound = constraint.bind(start, problem.gram)
        return bound, start if ramp else engine.project(bound, start)
    if ramp:
        return constraint.bind(problem.weight, problem.gram), problem.weight
    mask = wanda_mask(problem, constraint, engine=engine)
    bound = constraint.bind(np.where(mask, problem.weight, problem.weight.dtype.type(0)), problem.gram)
    return bound, bound.restrict(problem.weight, mask)
