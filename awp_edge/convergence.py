"""How fast the iterative methods of pruning come down: f after so many steps, on one layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .backend import Backend, resolve
from .baselines.alps import Alps, alps
from .constraints import RowSparse, Sparse
from .plus import Effort, prune
from .problem import Array, Problem
from .solvers.admm import Admm
from .solvers.base import Stop
from .solvers.pgd import Pgd
from .solvers.solve import starting_point

#: Method -> steps that are allowed, one run each.
STEPS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "awp": (1, 2, 5, 10, 20, 50, 100, 200),
        "alps": (3, 6, 12, 24, 48, 300),
        "awp-plus": (2, 4, 8, 16, 32),
    }
)


def convergence(problem: Problem, *, threads: int | None = None) -> dict[str, list[dict[str, float]]]:
    """Return f(Theta)/f(0) and seconds of every method by the steps it was allowed, at 50% zeros in every row.

    Every point is a run of its own from the start, refit and set-up included: what one would have by stopping there.
    """
    constraint = Sparse(RowSparse((problem.shape[1] + 1) // 2))
    engine = resolve("auto", threads=threads, constraint=constraint)
    zero = problem.objective(np.zeros_like(problem.weight))
    curves: dict[str, list[dict[str, float]]] = {}
    for method, ladder in STEPS.items():
        curves[method] = []
        for steps in ladder:
            started = time.perf_counter()
            theta = _RUNS[method](problem, constraint, steps, engine=engine)
            seconds = time.perf_counter() - started
            point: dict[str, Any] = {"steps": steps, "seconds": seconds}
            curves[method].append(
                {**point, "relative_error": problem.objective(theta) / zero if zero else 0.0}
            )
    return curves


def _awp(problem: Problem, constraint: Sparse, steps: int, *, engine: Backend) -> Array:
    bound, start = starting_point(problem, constraint, None, engine=engine)
    return engine.pgd(problem, bound, start, method=Pgd(), stop=Stop(max_iter=steps)).theta


def _alps(problem: Problem, constraint: Sparse, steps: int, *, engine: Backend) -> Array:
    return alps(problem, constraint, engine=engine, options=Alps(max_iter=steps))


def _awp_plus(problem: Problem, constraint: Sparse, steps: int, *, engine: Backend) -> Array:
    effort = Effort(Admm(steps=steps), refit=max(1, steps // 2))
    return prune(problem, constraint.support, effort=effort, engine=engine).theta


_RUNS: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {"awp": _awp, "alps": _alps, "awp-plus": _awp_plus}
)
