"""awp-plus: the best composition of the solvers, each stage kept only where f falls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from .backend import Backend
from .baselines.wanda import wanda_mask
from .constraints import NM, BalancedBlock, Dense, Reals, RowSparse, Sparse, Support
from .problem import Array, Problem, half_inner, ratio
from .solvers.admm import Admm, scaled
from .solvers.base import FIXED_POINT, Run
from .solvers.quantize import quantize
from .solvers.scaling import conditional_variance
from .solvers.swap import Columns, Swaps

#: Share of every C_jj that the stages of pruning see added to it where C counts as exact: enough to keep weights
#: finite along directions that C does not have.
DAMPING = 0.0003


@dataclass(frozen=True)
class Effort:
    """Set how long the stages run: the mask search, the steps of the refit behind it, the exact swaps.

    swaps: None makes none.  worth: share of its f that a row must promise to gain for the arithmetic of one step of the
    search; rows that promise less are not tried.
    """

    search: Admm
    refit: int
    swaps: Swaps | None = None
    worth: float = 0.0


EFFORTS: Mapping[str, Effort] = MappingProxyType(
    {
        "fast": Effort(Admm(steps=8, relaxation=(1.6, 0.4), products="int8"), refit=4),
        # A row gains about half of what it promises. More steps and less worth gain some hundredths of a percent.
        "default": Effort(
            Admm(steps=28, relaxation=(2.0, 0.4), products="int8"),
            refit=3,
            swaps=Swaps(40, patience=12),
            worth=0.0006,
        ),
        "max": Effort(Admm(steps=80, products="int8"), refit=16, swaps=Swaps(80, patience=50)),
    }
)


def plus(
    problem: Problem, constraint: Sparse, *, effort: str, damping: float = DAMPING, engine: Backend
) -> Run:
    """Prune, refit and round to the constraint; the best point, and f after every stage that was kept.

    Args:
        problem: W and C.
        constraint: any support, reals or an integer grid.
        effort: "fast", "default" or "max".
        damping: share of every C_jj that the stages of pruning see added to it; rounding has its own.
        engine: the backend.
    """
    if isinstance(constraint.support, Dense) and not isinstance(constraint.values, Reals):
        return quantize(problem, constraint, engine=engine, effort=effort)
    pruned = prune(problem, constraint.support, effort=EFFORTS[effort], damping=damping, engine=engine)
    if isinstance(constraint.values, Reals):
        return pruned
    rounded = quantize(
        problem, constraint, start=pruned.theta, mask=pruned.theta != 0, engine=engine, effort=effort
    )
    history = np.concatenate([part.objectives for part in (pruned, rounded)])
    residuals = np.concatenate([part.residuals for part in (pruned, rounded)])
    return replace(rounded, objectives=history, residuals=residuals, n_iter=len(history) - 1)


def prune(
    problem: Problem, support: Support, *, effort: Effort, damping: float = DAMPING, engine: Backend
) -> Run:
    """Return a sparse Theta, (d_out, d_in), and f after every stage that was kept, Wanda's mask first.

    Stages: Wanda; the splitting search in coordinates of unit conditional variance, where the penalty 1 weighs a kept
    weight against an absent one as the refit would; conjugate gradients on the support it finds; exact swaps, at the
    effort "default" in rows that promise enough, at "max" in all. They lower f of the damped C (by a few roundings at
    least, or what C does not show would look like a gain); a stage is kept where f itself falls.
    """
    mask = wanda_mask(problem, Sparse(support), engine=engine)
    theta = np.where(mask, problem.weight, problem.weight.dtype.type(0))
    kept = [_measured(problem, theta, engine=engine)]
    if mask.any() and kept[0][0] > 0:
        seen = problem.damped(max(damping, 64 * float(np.finfo(problem.gram.dtype).eps)))
        scale = np.sqrt(conditional_variance(seen.gram, 1 - float(mask.mean()), engine=engine))
        least = -64 * float(np.finfo(problem.gram.dtype).eps) * kept[0][0]  # what roundings make of an f of 0
        for found in _search(scaled(seen, scale), support, effort=effort, engine=engine):
            candidate = found / scale
            measured, slope = _measured(problem, candidate, engine=engine)
            if least <= measured and max(measured, 0.0) < kept[-1][0]:
                theta = candidate
                kept.append((max(measured, 0.0), slope))
    objectives, residuals = np.array(kept).T
    return Run(theta, kept[-1][0], objectives, residuals, len(kept) - 1, FIXED_POINT, Sparse(support))


def _measured(problem: Problem, theta: Array, *, engine: Backend) -> tuple[float, float]:
    """Return f(Theta) and ||(W - Theta) C|| / ||W||."""
    residual = problem.weight - theta
    moved = engine.product(residual, problem.gram)
    slope = ratio(float(np.linalg.norm(moved)), float(np.linalg.norm(problem.weight)))
    return half_inner(residual, moved), slope


def _search(problem: Problem, support: Support, *, effort: Effort, engine: Backend) -> Iterator[Array]:
    """Yield Theta after the refit and after the swaps, then each row from the stage that is better in it."""
    found = engine.admm(problem, support, method=effort.search)
    theta, rows = engine.refit(problem, found != 0, found, steps=effort.refit)
    yield theta
    labels = swap_labels(support, problem.shape[1])
    if effort.swaps is not None and labels is not None:
        least = effort.worth * _swap_steps(theta) * rows
        other = engine.swap(problem, theta != 0, theta, labels=labels, method=effort.swaps, least=least)
        swapped = np.flatnonzero(np.any(other != theta, axis=1))
        if len(swapped):
            part = problem.derived(weight=problem.weight[swapped])
            refitted, ends = engine.refit(part, other[swapped] != 0, other[swapped], steps=1)
            better = ends < rows[swapped]  # not where a swap came to nothing finite
            theta = theta.copy()
            theta[swapped[better]] = refitted[better]
            yield theta


def _swap_steps(theta: Array) -> NDArray[np.float64]:
    """Return what swaps cost in every row, (d_out,), in steps of the search: k^3 / 3 operations against 2 d_in^2."""
    return np.count_nonzero(theta, axis=1) ** 3 / (6 * theta.shape[1] ** 2)


def swap_labels(support: Support, d_in: int) -> Columns | None:
    """Return labels of the inputs, equal where a support lets one replace the other; None where no single one may."""
    if isinstance(support, RowSparse):
        return np.zeros(d_in, dtype=np.intp)
    if isinstance(support, NM):
        return np.arange(d_in) // support.m
    if isinstance(support, BalancedBlock):
        return np.arange(d_in) % (d_in // support.block)
    return None
