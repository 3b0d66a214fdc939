"""Coordinate descent on an integer grid: one code at a time, and one scale at a time, to its exact minimum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..constraints import Mask
from ..constraints.values import BoundGrid
from ..problem import Array, Problem

#: What a pass over all codes leaves to do falls by a factor of several; most layers are done after a handful.
PASSES = 10


def descend(
    problem: Problem, theta: Array, grid: BoundGrid, *, mask: Mask | None = None, passes: int = PASSES,
    rescale: bool = True,
) -> tuple[Array, BoundGrid]:  # fmt: skip
    """Lower f until no single code and no single scale can: a coordinate-wise minimum of the grid.

    In every pass each code in turn takes its best value, theta_j <- Q(theta_j - g_j / C_jj) for the gradient
    g = (Theta - W) C, and then each scale its own, s <- s - <q, g> / (q^T C q) for the group's integers q, rounded as
    the grid stores it. A move is made only if it lowers f. A row is done when a pass leaves it as it is.

    Args:
        problem: W and C.
        theta: points of the grid, zero outside the mask.
        grid: the grid theta lies on.
        mask: entries that may be nonzero; all, where None.
        passes: the limit.
        rescale: move the scales too.

    Returns: theta and its grid, in new arrays. Cost: at most passes times 3 d_out d_in^2.

    Source: cyclic descent as in CDQuant (arXiv 2406.17542) and QuantEase (arXiv 2309.01885); the scale of a group is
    a least-squares problem in one variable.
    """
    theta, scales = theta.copy(), grid.scales.copy()
    moving: NDArray[np.intp] = np.arange(theta.shape[0])
    for _ in range(passes):
        part = BoundGrid(grid.spec, scales[moving], grid.zeros[moving])
        rows = _Rows(theta[moving], part, problem.derived(weight=problem.weight[moving]))
        changed = rows.move_codes(None if mask is None else mask[moving])
        if rescale:
            changed |= rows.move_scales()
        theta[moving], scales[moving] = rows.theta, rows.grid.scales
        moving = moving[changed]
        if not moving.size:
            break
    return theta, BoundGrid(grid.spec, scales, grid.zeros)


class _Rows:
    """Rows that still move, with their gradient."""

    def __init__(self, theta: Array, grid: BoundGrid, problem: Problem) -> None:
        self.theta, self.grid, self._gram = theta, grid, problem.gram
        self._gradient = problem.gradient(theta)

    def move_codes(self, mask: Mask | None) -> Mask:
        """Give every code in turn its best value; return which rows changed."""
        changed = np.zeros(self.theta.shape[0], dtype=np.bool_)
        for j, curvature in enumerate(self._gram.diagonal()):
            if curvature <= 0:
                continue
            slope = self._gradient[:, j]
            wanted = self.grid.round_column(self.theta[:, j] - slope / curvature, j)
            step = wanted - self.theta[:, j]
            better = step * (slope + curvature * step / 2) < 0
            if mask is not None:
                better &= mask[:, j]
            self.theta[better, j] = wanted[better]
            self._gradient[better] += np.outer(step[better], self._gram[j])
            changed |= better
        return changed

    def move_scales(self) -> Mask:
        """Give every scale in turn its best value; return which rows changed."""
        changed = np.zeros(self.theta.shape[0], dtype=np.bool_)
        for group in range(self.grid.scales.shape[1]):
            changed |= self._move_scale(group)
        return changed

    def _move_scale(self, group: int) -> Mask:
        size = self.grid.spec.group_size
        columns, old = slice(group * size, (group + 1) * size), self.grid.scales[:, group].copy()
        steps = np.rint(self.theta[:, columns] / old[:, None])
        pull = steps @ self._gram[columns]
        slope, curvature = (np.sum(steps * part[:, columns], axis=1) for part in (self._gradient, pull))
        new = old - np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
        if self.grid.spec.half_scales:
            with np.errstate(over="ignore"):
                new = new.astype(np.float16).astype(new.dtype)
        step = new - old
        with np.errstate(invalid="ignore"):
            better = (new > 0) & np.isfinite(new) & (step * (slope + curvature * step / 2) < 0)
        self.grid.scales[better, group] = new[better]
        self.theta[better, columns] = steps[better] * new[better, None]
        self._gradient[better] += step[better, None] * pull[better]
        return better
