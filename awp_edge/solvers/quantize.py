"""From real weights to codes, scales and zero points with a small layer error; dense or on a given support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..backend import Backend
from ..constraints import BoundGrid, IntGrid, Mask, Sparse
from ..problem import Array, Problem, ratio
from .base import FIXED_POINT, Run
from .nearest_plane import Order
from .ranges import candidates

#: Share of every C_jj added to it. It makes C definite, and keeps weights near their own values along directions
#: that the calibration tokens hardly show. On one window of text a tenth gave SmolLM2-135M at INT3 a lower divergence
#: from the dense model than a hundredth, f within 3%. On a mask, where it also pulls the refit from its optimum, 3%
#: gave 50% + INT4 up to 3% less divergence than 1%, f the same.
DAMPING, MASKED_DAMPING = 0.1, 0.03


@dataclass(frozen=True)
class Effort:
    """Bundle how much to try: orders of rounding, and how often to round again on the scales that descent found."""

    orders: tuple[str, ...]
    repeats: int


#: On a mask every row needs a Cholesky factor of its own for each order and each repeat, so fewer are tried; without
#: an order the refit is rounded to nearest, from where descent ends 0 to 2% higher.
EFFORTS = {
    "fast": Effort(("energy",), 0),
    "default": Effort(("energy", "redundancy"), 1),
    "max": Effort(("energy", "redundancy", "natural"), 3),
}
MASKED_EFFORTS = {
    "fast": Effort((), 0),
    "default": Effort(("energy",), 0),
    "max": Effort(("energy", "redundancy"), 1),
}


def quantize(
    problem: Problem,
    constraint: Sparse,
    *,
    start: Array | None = None,
    mask: Mask | None = None,
    engine: Backend,
    effort: str = "default",
) -> Run:
    """Lower f over the codes, scales and zero points of an integer grid, on a fixed support.

    Range search, nearest plane in several orders (the best kept row by row), coordinate descent on codes and scales,
    and again from the scales found. A stage's rows are kept only where f falls.

    Args:
        problem: W and C.
        constraint: its values are an integer grid, fitted or not (then ignored but for the specification).
        start: with a mask only: real weights that the ranges are fitted to, best the refit on the mask; W where None.
        mask: the support; all entries where None. A kept weight may still take the code of zero.
        engine: the backend.
        effort: "fast", "default" or "max".

    Returns: the best point, its bound constraint, and f after every stage, rounding to nearest first.
    """
    efforts = EFFORTS if mask is None else MASKED_EFFORTS
    return _Quantizer(problem, constraint, mask, engine=engine).run(start, efforts[effort])


def rounding_order(name: str, gram: Array, variance: Array | None = None) -> Order:
    """Return an order of columns: "natural", "energy" (descending C_jj) or "redundancy" (descending C_jj / variance).

    variance: what is left of each input once the others are known. Early columns pay little more than that, late ones
    their full C_jj, so the columns with most to lose go first. Ties keep the natural order.
    """
    diagonal = gram.diagonal()
    if name == "natural":
        return np.arange(len(diagonal))
    score = diagonal if variance is None or name == "energy" else diagonal / variance
    return np.argsort(-score, kind="stable")


@dataclass(frozen=True, eq=False)
class _Point:
    """A point of the grid, with f and ||(W - Theta) C||^2 of every row."""

    theta: Array
    grid: BoundGrid
    rows: NDArray[np.float64]
    slopes: NDArray[np.float64]


class _Quantizer:
    """What the stages share."""

    def __init__(self, problem: Problem, constraint: Sparse, mask: Mask | None, *, engine: Backend) -> None:
        share = DAMPING if mask is None else MASKED_DAMPING
        self._true, self._problem, self._engine = problem, problem.damped(share), engine
        self._constraint, self._mask = constraint, mask
        values = constraint.values
        spec = values.spec if isinstance(values, BoundGrid) else values
        if not isinstance(spec, IntGrid):
            raise ValueError("quantize needs an integer grid: give the constraint IntGrid values")
        self._spec = spec

    def run(self, start: Array | None, effort: Effort) -> Run:
        """Go through the stages."""
        given = self._problem.weight if start is None or self._mask is None else start
        target = self._tamed(self._restricted(given))
        first = self._spec.fit(target)
        history = [self._point(self._restricted(first.round(target)), first)]
        rounders, variance = self._rounders(target, effort.orders)
        found = candidates(self._spec, target)
        grid = found.choose(self._engine.cheapest_range(target, variance, found))
        for _ in range(effort.repeats + 1):
            point = self._descended(self._best([self._point(round_(grid), grid) for round_ in rounders]))
            history.append(self._best([history[-1], point]))
            grid = history[-1].grid
        return self._result(history)

    def _rounders(
        self, target: Array, names: Sequence[str]
    ) -> tuple[list[Callable[[BoundGrid], Array]], Array]:
        """Return one rounding a name, or to nearest, and each column's variance given those after it by energy."""
        gram = self._problem.gram
        order = rounding_order("energy", gram)
        upper = self._engine.factor(gram, order)
        variance = np.empty_like(upper[0])
        variance[order] = np.square(upper.diagonal())
        rounders = []
        for name in names:
            other = rounding_order(name, gram, variance)
            rounders.append(self._rounder(target, other, upper if name == "energy" else None))
        return rounders or [lambda grid: self._restricted(grid.round(target))], variance

    def _rounder(self, target: Array, order: Order, upper: Array | None) -> Callable[[BoundGrid], Array]:
        engine, mask = self._engine, self._mask
        if mask is not None:
            return lambda grid: engine.masked_nearest_plane(
                self._problem, target, mask, order=order, grid=grid
            )
        known = engine.factor(self._problem.gram, order) if upper is None else upper
        return lambda grid: engine.nearest_plane(target, known, order, grid=grid)

    def _descended(self, point: _Point) -> _Point:
        return self._point(*self._engine.descend(self._problem, point.theta, point.grid, mask=self._mask))

    def _restricted(self, theta: Array) -> Array:
        return theta if self._mask is None else np.where(self._mask, theta, theta.dtype.type(0))

    def _tamed(self, theta: Array) -> Array:
        """Return Theta with the weights of inputs that are never active inside the range of the others in their group.

        f does not see them, so they must not stretch the grid of those it sees.
        """
        dead = (self._true.gram.diagonal() == 0).reshape(1, -1, self._spec.group_size)
        if not dead.any():
            return theta
        groups = theta.reshape(len(theta), -1, self._spec.group_size)
        alive = np.where(dead, theta.dtype.type(0), groups)
        inside = np.clip(groups, alive.min(axis=2, keepdims=True), alive.max(axis=2, keepdims=True))
        keep = ~dead | dead.all(axis=2, keepdims=True)
        return np.where(keep, groups, inside).reshape(theta.shape)

    def _point(self, theta: Array, grid: BoundGrid) -> _Point:
        residual = self._true.weight - theta
        moved = self._engine.product(residual, self._true.gram)
        rows, slopes = (np.einsum("ij,ij->i", part, moved, dtype=np.float64) for part in (residual, moved))
        return _Point(theta, grid, rows / 2, slopes)

    def _best(self, points: Sequence[_Point]) -> _Point:
        """Return every row from the first point that is best in it."""
        best = points[0]
        for other in points[1:]:
            better = other.rows < best.rows
            theta, scales, zeros = (
                np.where(better[:, None], new, old)
                for new, old in (
                    (other.theta, best.theta),
                    (other.grid.scales, best.grid.scales),
                    (other.grid.zeros, best.grid.zeros),
                )
            )
            rows, slopes = (
                np.where(better, other.rows, best.rows),
                np.where(better, other.slopes, best.slopes),
            )
            best = _Point(theta, BoundGrid(self._spec, scales, zeros), rows, slopes)
        return best

    def _result(self, history: Sequence[_Point]) -> Run:
        norm = float(np.linalg.norm(self._true.weight))
        objectives = np.array([point.rows.sum() for point in history])
        residuals = np.array([ratio(float(np.sqrt(point.slopes.sum())), norm) for point in history])
        bound = replace(self._constraint, values=history[-1].grid)
        steps, objective = len(history) - 1, float(objectives[-1])
        return Run(history[-1].theta, objective, objectives, residuals, steps, FIXED_POINT, bound)
