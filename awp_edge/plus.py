"""awp-plus: the best composition of the solvers, each stage kept only where f falls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from .backend import Backend
from .baselines.wanda import wanda_mask
from .constraints import Sparse, Support
from .problem import Array, Problem
from .solvers.admm import Admm, scaled
from .solvers.scaling import conditional_variance


@dataclass(frozen=True)
class Effort:
    """Set how long the stages run: the mask search and the steps of the refit behind it."""

    search: Admm
    refit: int


EFFORT: Mapping[str, Effort] = MappingProxyType(
    {
        "fast": Effort(Admm(steps=8), refit=4),
        "default": Effort(Admm(steps=16), refit=8),
        "max": Effort(Admm(steps=40), refit=16),
    }
)


def prune(
    problem: Problem, support: Support, *, effort: Effort, engine: Backend
) -> tuple[Array, list[float]]:
    """Return a sparse Theta, (d_out, d_in), and f after every stage that was kept, Wanda's mask first.

    Stages: Wanda; the splitting search in coordinates of unit conditional variance, where the penalty 1 weighs a kept
    weight against an absent one as the refit would; conjugate gradients on the support it finds.
    """
    mask = wanda_mask(problem, Sparse(support), engine=engine)
    theta = np.where(mask, problem.weight, problem.weight.dtype.type(0))
    objectives = [problem.objective(theta)]
    if not mask.any() or objectives[0] == 0:
        return theta, objectives
    scale = np.sqrt(conditional_variance(problem.gram, 1 - float(mask.mean())))
    inner = scaled(problem, scale)
    found = engine.admm(inner, support, method=effort.search)
    found, rows = engine.refit(inner, found != 0, found, steps=effort.refit)
    if rows.sum() < objectives[-1]:
        theta = found / scale
        objectives.append(float(rows.sum()))
    return theta, objectives
