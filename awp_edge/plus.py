"""awp-plus: the best composition of the solvers, each stage kept only where f falls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from .backend import Backend
from .baselines.wanda import wanda_mask
from .constraints import NM, BalancedBlock, Dense, Reals, RowSparse, Sparse, Support
from .problem import Array, Problem, half_inner, ratio
from .solvers.admm import Admm, scaled
from .solvers.base import FIXED_POINT, Run
from .solvers.quantize import quantize
from .solvers.scaling import conditional_variance
from .solvers.swap import Columns, Swaps


@dataclass(frozen=True)
class Effort:
    """Set how long the stages run: the mask search, the steps of the refit behind it, the exact swaps.

    swaps: None makes none.  worth: share of its f that a row must promise to gain; others are not tried.
    """

    search: Admm
    refit: int
    swaps: Swaps | None = None
    worth: float = 0.0


EFFORTS: Mapping[str, Effort] = MappingProxyType(
    {
        "fast": Effort(Admm(steps=8), refit=4),
        # A row gains about half of what it promises. On SmolLM2-135M these are a quarter to nearly all rows of an
        # output projection, where heads make blocks of correlated inputs, and about a tenth of others.
        "default": Effort(Admm(steps=20), refit=8, swaps=Swaps(24), worth=0.02),
        "max": Effort(Admm(steps=40), refit=16, swaps=Swaps(48, patience=40)),
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
    weight against an absent one as the refit would; conjugate gradients on the support it finds; exact swaps, at the
    effort "default" in rows that promise much, at "max" in all.
    """
    mask = wanda_mask(problem, Sparse(support), engine=engine)
    theta = np.where(mask, problem.weight, problem.weight.dtype.type(0))
    residual = problem.weight - theta
    objectives = [half_inner(residual, engine.product(residual, problem.gram))]
    if mask.any() and objectives[0] > 0:
        scale = np.sqrt(conditional_variance(problem.gram, 1 - float(mask.mean()), engine=engine))
        found, later = _search(scaled(problem, scale), support, effort=effort, engine=engine)
        if later[-1] < objectives[0]:
            theta, objectives = found / scale, objectives + later
    return _run(problem, Sparse(support), theta, objectives=objectives, engine=engine)


def _search(
    problem: Problem, support: Support, *, effort: Effort, engine: Backend
) -> tuple[Array, list[float]]:
    """Return a sparse Theta and f after the refit and after the swaps, each row from the stage that is better in it."""
    found = engine.admm(problem, support, method=effort.search)
    theta, rows = engine.refit(problem, found != 0, found, steps=effort.refit)
    objectives = [float(rows.sum())]
    labels = swap_labels(support, problem.shape[1])
    if effort.swaps is not None and labels is not None:
        least = effort.worth * rows
        other = engine.swap(problem, theta != 0, theta, labels=labels, method=effort.swaps, least=least)
        other, others = engine.refit(problem, other != 0, other, steps=1)
        better = others < rows  # not where a swap came to nothing finite
        theta = np.where(better[:, None], other, theta)
        objectives.append(float(np.where(better, others, rows).sum()))
    return theta, objectives


def swap_labels(support: Support, d_in: int) -> Columns | None:
    """Return labels of the inputs, equal where a support lets one replace the other; None where no single one may."""
    if isinstance(support, RowSparse):
        return np.zeros(d_in, dtype=np.intp)
    if isinstance(support, NM):
        return np.arange(d_in) // support.m
    if isinstance(support, BalancedBlock):
        return np.arange(d_in) % (d_in // support.block)
    return None


def _run(
    problem: Problem, constraint: Sparse, theta: Array, *, objectives: list[float], engine: Backend
) -> Run:
    residual = problem.weight - theta
    moved = engine.product(residual, problem.gram)
    # The stages carry f along; the last value is what Theta has, without their rounding.
    history = np.array([*objectives[:-1], half_inner(residual, moved)])
    slope = ratio(float(np.linalg.norm(moved)), float(np.linalg.norm(problem.weight)))
    residuals = np.full(len(history), slope)
    return Run(theta, float(history[-1]), history, residuals, len(history) - 1, FIXED_POINT, constraint)
