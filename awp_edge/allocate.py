"""A global sparsity spent where the loss minds it least: budgets for every row, or one for every matrix.

Zeroing a weight whose row is then refitted costs the loss about g_i^2 v_j w_ij^2 / 2: the OBS price v w^2 / 2 of the
layer objective (`solvers/scaling.py`), times the mean square g_i^2 of the loss gradient at the row's output. Weights
leave a row in the order of their prices, so a row's price only rises with its sparsity, and spending a global budget is
a sort.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .backend import Backend
from .errors import UsageError
from .problem import Array
from .solvers.scaling import conditional_variance

ALLOCATIONS = ("uniform", "layer", "row")
#: Sparsities that a row may have; further out neither the price nor the quadratic loss says much.
LEAST, MOST = 0.15, 0.85
#: Budgets move in steps of this share of d_in.
STEPS = 32
#: How much of the differences between budgets to believe, on a log scale. Gradient squares are noisy and the loss is
#: not quadratic this far out: at 50% of SmolLM2-135M, 0.75 gave a lower perplexity of C4 text than 1 (by 2%) and 0.55.
TRUST = 0.75

Counts = tuple[int, ...]


@dataclass(frozen=True)
class Prices:
    """Hold what the sparsity of one matrix costs, step by step.

    d_in: inputs of the matrix.  kept: nonzeros of a row at every level, falling, (levels,).
    steps: predicted loss per weight removed between one level and the next, rising, (budgets, levels - 1).
    rows: rows that share a budget.
    """

    d_in: int
    kept: NDArray[np.intp]
    steps: NDArray[np.float32]
    rows: int = 1

    def pooled(self) -> Prices:
        """Return the prices of one budget for all rows."""
        return Prices(
            self.d_in, self.kept, self.steps.mean(axis=0, keepdims=True), self.rows * len(self.steps)
        )

    def cautious(self, sparsity: float) -> Prices:
        """Return the prices to decide by: the differences between budgets, measured at a sparsity, drawn in."""
        until = int(np.count_nonzero(self.kept >= (1 - sparsity) * self.d_in)) - 1
        level = self.steps[:, : max(1, until)].astype(np.float64).mean(axis=1, keepdims=True)
        drawn_in = self.steps * np.maximum(level, np.finfo(np.float32).tiny) ** (TRUST - 1)
        return replace(self, steps=drawn_in.astype(np.float32))

    def sizes(self) -> NDArray[np.intp]:
        """Return how many weights every step removes, (budgets, levels - 1)."""
        return np.broadcast_to(-np.diff(self.kept) * self.rows, self.steps.shape)


def prices(weight: Array, gram: Array, rows: Array, *, sparsity: float, engine: Backend) -> Prices:
    """Return the prices of one matrix.

    Args:
        weight: W, (d_out, d_in).
        gram: C of the dense model, (d_in, d_in).
        rows: mean square of the loss gradient at every output, (d_out,).
        sparsity: the one around which prices are taken.

    Cost: one inversion and a sort of every row.
    """
    d = weight.shape[1]
    kept = levels(d)
    variance = conditional_variance(gram, sparsity, engine=engine)
    scores = np.sort((weight * weight * variance).astype(np.float64) / 2, axis=1)
    removed = np.concatenate([np.zeros((len(weight), 1)), np.cumsum(scores, axis=1)], axis=1)
    steps = rows[:, None] * np.diff(removed[:, d - kept], axis=1) / -np.diff(kept)
    return Prices(d, kept, np.maximum.accumulate(steps, axis=1).astype(np.float32))


def levels(d_in: int) -> NDArray[np.intp]:
    """Return the nonzeros that a row of d_in inputs may keep, falling: sparsity 0.15 to 0.85 in steps of 1/32."""
    shares = np.clip(np.arange(STEPS + 1) / STEPS, LEAST, MOST)
    kept = np.unique(np.floor((1 - shares) * d_in + 0.5).astype(np.intp))[::-1]
    return np.ascontiguousarray(kept)


def allocate(matrices: Mapping[str, Prices], sparsity: float) -> dict[str, Counts]:
    """Return the nonzeros of every row of every matrix, the cheapest steps taken until the global sparsity is reached.

    Every row's prices rise, so taking the cheapest steps of all rows first solves the allocation (Everett 1963), up to
    one step.

    Args:
        matrices: prices by name; pooled ones give all their rows one budget.
        sparsity: share of all weights to remove, between the least and the most that rows may have.

    Raises: UsageError where the sparsity is out of reach.
    """
    require_reachable(sparsity)
    shapes = [found.steps.shape for found in matrices.values()]
    cheapest = np.concatenate([found.steps.ravel() for found in matrices.values()])
    sizes = np.concatenate([found.sizes().ravel() for found in matrices.values()])
    order = np.argsort(cheapest, kind="stable")
    spent = np.cumsum(sizes[order]) - sizes[order]
    taken = np.zeros(len(order), dtype=np.bool_)
    taken[order] = spent < _to_remove(matrices.values(), sparsity)
    ends = np.cumsum([lines * steps for lines, steps in shapes])
    budgets = {}
    for (name, found), end, shape in zip(matrices.items(), ends, shapes, strict=True):
        levels_taken = taken[end - shape[0] * shape[1] : end].reshape(shape).sum(axis=1)
        budgets[name] = tuple(np.repeat(found.kept[levels_taken], found.rows).tolist())
    return budgets


def require_reachable(sparsity: float) -> None:
    """Raise UsageError for a global sparsity outside of what rows may have."""
    if not LEAST <= sparsity <= MOST:
        raise UsageError(
            f"--allocate gives rows {LEAST:.0%} to {MOST:.0%} zeros; --sparsity {sparsity:g} is outside"
        )


def _to_remove(matrices: Iterable[Prices], sparsity: float) -> float:
    """Return the weights to remove beyond the first levels."""
    return sum(
        (sparsity * found.d_in - (found.d_in - int(found.kept[0]))) * found.rows * len(found.steps)
        for found in matrices
    )
