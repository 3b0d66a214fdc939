"""awp-plus: the best composition of the solvers, each stage kept only where f falls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from .backend import Backend
from .baselines.wanda import wanda_mask
from .constraints import Dense, Reals, Sparse, Support
from .problem import Array, Problem, ratio
from .solvers.admm import Admm, scaled
from .solvers.base import FIXED_POINT, Run
from .solvers.quantize import quantize
from .solvers.scaling import conditional_variance


@dataclass(frozen=True)
class Effort:
    """Set how long the stages run: the mask search and the steps of the refit behind it."""

    search: Admm
    refit: int


EFFORTS: Mapping[str, Effort] = MappingProxyType(
    {
        "fast": Effort(Admm(steps=8), refit=4),
        "default": Effort(Admm(steps=16), refit=8),
        "max": Effort(Admm(steps=40), refit=16),
    }
)


def plus(problem: Problem, constraint: Sparse, *, effort: str, engine: Backend) -> Run:
    """Prune, refit and round to the constraint; the best point, and f after every stage that was kept.

    Args:
        problem: W and C.
        constraint: any support, reals or an integer grid.
        effort: "fast", "default" or "max".
        engine: the backend.
    """
    if isinstance(constraint.values, Reals):
        return prune(problem, constraint.support, effort=EFFORTS[effort], engine=engine)
    if isinstance(constraint.support, Dense):
        return quantize(problem, constraint, engine=engine, effort=effort)
    pruned = prune(problem, constraint.support, effort=EFFORTS[effort], engine=engine)
    rounded = quantize(
        problem, constraint, start=pruned.theta, mask=pruned.theta != 0, engine=engine, effort=effort
    )
    history = np.concatenate([part.objectives for part in (pruned, rounded)])
    residuals = np.concatenate([part.residuals for part in (pruned, rounded)])
    return replace(rounded, objectives=history, residuals=residuals, n_iter=len(history) - 1)


def prune(problem: Problem, support: Support, *, effort: Effort, engine: Backend) -> Run:
    """Return a sparse Theta, (d_out, d_in), and f after every stage that was kept, Wanda's mask first.

    Stages: Wanda; the splitting search in coordinates of unit conditional variance, where the penalty 1 weighs a kept
    weight against an absent one as the refit would; conjugate gradients on the support it finds.
    """
    mask = wanda_mask(problem, Sparse(support), engine=engine)
    theta = np.where(mask, problem.weight, problem.weight.dtype.type(0))
    objectives = [problem.objective(theta)]
    if mask.any() and objectives[0] > 0:
        scale = np.sqrt(conditional_variance(problem.gram, 1 - float(mask.mean())))
        inner = scaled(problem, scale)
        found = engine.admm(inner, support, method=effort.search)
        found, rows = engine.refit(inner, found != 0, found, steps=effort.refit)
        if rows.sum() < objectives[0]:
            theta = found / scale
            objectives.append(float(rows.sum()))
    return _run(problem, Sparse(support), theta, objectives=objectives, engine=engine)


def _run(
    problem: Problem, constraint: Sparse, theta: Array, *, objectives: list[float], engine: Backend
) -> Run:
    slope = float(np.linalg.norm(engine.product(problem.weight - theta, problem.gram)))
    residuals = np.full(len(objectives), ratio(slope, float(np.linalg.norm(problem.weight))))
    steps = len(objectives) - 1
    return Run(theta, objectives[-1], np.array(objectives), residuals, steps, FIXED_POINT, constraint)
