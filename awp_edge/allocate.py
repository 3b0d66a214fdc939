"""A global sparsity or width spent where the loss minds it least: budgets for every row, or one for every matrix.

Zeroing a weight whose row is then refitted costs the loss about g_i^2 v_j w_ij^2 / 2: the OBS price v w^2 / 2 of the
layer objective (`solvers/scaling.py`), times the mean square g_i^2 of the loss gradient at the row's output. Weights
leave a row in the order of their prices, so a row's price only rises with its sparsity, and spending a global budget is
a sort. With K/64 patterns the budget of a matrix is its K, and the cheapest weights of every block leave. Taking bits
from a matrix is the same: rounding with step s costs about g_i^2 v_j s_ij^2 / 24 a weight, and every bit less costs
more than the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .backend import Backend
from .errors import AwpError, UsageError
from .problem import Array, Problem
from .solvers.quantize import rounding_order
from .solvers.scaling import conditional_variance

ALLOCATIONS = ("uniform", "layer", "row")
#: Sparsities that a row may have, up to one weight; further out neither the price nor the quadratic loss says much.
LEAST, MOST = 0.15, 0.85
#: Budgets move in steps of this share of d_in.
STEPS = 32
#: What a matrix may keep of every 64 inputs.
BLOCK, KEPT = 64, tuple(range(52, 8, -4))
#: Widths of a code, the widest first.
WIDTHS = (8, 4, 3, 2)
#: What range search and descent leave of the error of rounding to the full range at those widths: medians over 15
#: matrices of SmolLM2-135M, groups of 64. But for the down projection with the largest activations all lie within 25%.
LEFT = (1.0, 0.82, 0.75, 0.54)
#: Share of every C_jj that is added to C before bits are priced; `LEFT` was fitted with it.
PRICED_DAMPING = 0.01
#: How much of the differences between budgets to believe, on a log scale. Gradient squares are noisy and the loss is
#: not quadratic this far out: at 50% of SmolLM2-135M, 0.75 gave a lower perplexity of C4 text than 1 (by 2%) and 0.55.
TRUST = 0.75

Counts = tuple[int, ...]
#: The nonzeros of every row of a matrix, its pattern, or the bits of its codes.
Budget = Counts | str | int


@dataclass(frozen=True)
class Prices:
    """Hold what the sparsity or the width of one matrix costs, step by step.

    whole: weights of a row (of a block), or bits of the widest code.  kept: how many of them stay at every level,
    falling, (levels,).
    steps: predicted loss per weight (bit) removed between one level and the next, rising, (budgets, levels - 1).
    rows: rows (blocks, codes) that share a budget.
    """

    whole: int
    kept: NDArray[np.intp]
    steps: NDArray[np.float32]
    rows: int = 1

    def pooled(self) -> Prices:
        """Return the prices of one budget for all rows."""
        return Prices(
            self.whole, self.kept, self.steps.mean(axis=0, keepdims=True), self.rows * len(self.steps)
        )

    def cautious(self, sparsity: float) -> Prices:
        """Return the prices to decide by: the differences between budgets, measured at a sparsity, drawn in."""
        until = int(np.count_nonzero(self.kept >= (1 - sparsity) * self.whole)) - 1
        level = self.steps[:, : max(1, until)].astype(np.float64).mean(axis=1, keepdims=True)
        drawn_in = self.steps * np.maximum(level, np.finfo(np.float32).tiny) ** (TRUST - 1)
        return replace(self, steps=drawn_in.astype(np.float32))

    def sizes(self) -> NDArray[np.intp]:
        """Return how many weights (bits) every step removes, (budgets, levels - 1)."""
        return np.broadcast_to(-np.diff(self.kept) * self.rows, self.steps.shape)


@dataclass(frozen=True)
class Target:
    """Say what all matrices together may keep: zeros are spent if any are asked for, bits otherwise.

    by: "layer" or "row".  sparsity: of all weights.  blocks: zeros come in K/64 patterns.  bits: on average over all
    codes.  group_size: inputs to a scale.
    """

    by: str
    sparsity: float
    blocks: bool
    bits: int | None
    group_size: int

    @property
    def spent(self) -> str:
        """Return "zeros" or "bits"."""
        return "zeros" if self.sparsity or self.bits is None else "bits"

    def price(self, weight: Array, gram: Array, rows: Array, *, engine: Backend) -> Prices:
        """Return the prices of one matrix to decide by; arguments as for `prices`."""
        if self.spent == "bits" and self.bits is not None:
            found = bit_prices(weight, gram, rows, group_size=self.group_size, engine=engine)
            share = 1 - self.bits / found.whole
        else:
            found = prices(weight, gram, rows, sparsity=self.sparsity, blocks=self.blocks, engine=engine)
            found, share = found if self.by == "row" else found.pooled(), self.sparsity
        if not np.isfinite(found.steps).all():
            raise AwpError("its weights, activations or loss gradients are NaN or infinite; check the model")
        return found.cautious(share)

    def settle(self, matrices: Mapping[str, Prices]) -> Mapping[str, Budget]:
        """Return the budget of every matrix by name."""
        if self.spent == "bits" and self.bits is not None:
            return allocate_bits(matrices, self.bits)
        return (
            allocate_patterns(matrices, self.sparsity) if self.blocks else allocate(matrices, self.sparsity)
        )


def prices(
    weight: Array, gram: Array, rows: Array, *, sparsity: float, blocks: bool = False, engine: Backend
) -> Prices:
    """Return the prices of one matrix.

    Args:
        weight: W, (d_out, d_in).
        gram: C of the dense model, (d_in, d_in).
        rows: mean square of the loss gradient at every output, (d_out,).
        sparsity: the one around which prices are taken.
        blocks: weights leave interleaved blocks of 64 inputs, the cheapest of each, instead of whole rows.

    Cost: one inversion and a sort of every row.
    """
    n, d = weight.shape
    whole, kept = (BLOCK, np.array(KEPT)) if blocks else (d, levels(d))
    variance = conditional_variance(gram, sparsity, engine=engine)
    scores = (weight * weight * variance).astype(np.float64) / 2
    leaving = np.sort(scores.reshape(n, whole, -1), axis=1).mean(axis=2)
    removed = np.concatenate([np.zeros((n, 1)), np.cumsum(leaving, axis=1)], axis=1)
    steps = rows[:, None] * np.diff(removed[:, whole - kept], axis=1) / -np.diff(kept)
    return Prices(whole, kept, np.maximum.accumulate(steps, axis=1).astype(np.float32), d // whole)


def bit_prices(weight: Array, gram: Array, rows: Array, *, group_size: int, engine: Backend) -> Prices:
    """Return what the bits of one matrix cost: one budget for all of its codes.

    A group's step is its range over 2^b - 1, and v_j the variance of an input given those rounded after it, which make
    up for the rest (nearest plane, `solvers/quantize.py`).

    Args: as for `prices`; group_size: inputs that share a scale.

    Cost: one Cholesky factor.
    """
    certain = Problem(weight, gram).damped(PRICED_DAMPING).gram
    order = rounding_order("energy", certain)
    variance = np.empty_like(certain[0])
    variance[order] = np.square(engine.factor(certain, order).diagonal())
    groups = weight.reshape(len(weight), -1, group_size)
    ranges = groups.max(axis=2).clip(min=0) - groups.min(axis=2).clip(max=0)
    varying = variance.reshape(-1, group_size).sum(axis=1)
    energy = float((rows.astype(np.float64) @ (ranges * ranges).astype(np.float64)) @ varying) / 24
    widths = np.array(WIDTHS)
    loss = energy * np.array(LEFT) / (2.0**widths - 1) ** 2
    steps = np.diff(loss) / -np.diff(widths) / weight.size
    return Prices(WIDTHS[0], widths, steps[None].astype(np.float32), weight.size)


def levels(d_in: int) -> NDArray[np.intp]:
    """Return the nonzeros that a row of d_in inputs may keep, falling: sparsity 0.15 to 0.85 in steps of 1/32."""
    shares = np.clip(np.arange(STEPS + 1) / STEPS, LEAST, MOST)
    kept = np.unique(np.floor((1 - shares) * d_in + 0.5).astype(np.intp))[::-1]
    return np.ascontiguousarray(kept)


def allocate(matrices: Mapping[str, Prices], sparsity: float) -> dict[str, Counts]:
    """Return the nonzeros of every row of every matrix under a global sparsity.

    Args:
        matrices: prices by name; pooled ones give all their rows one budget.
        sparsity: share of all weights to remove, between the least and the most that rows may have.

    Raises: UsageError where the sparsity is out of reach.
    """
    require_reachable(sparsity)
    chosen = _cheapest(matrices, sparsity)
    return {name: tuple(np.repeat(chosen[name], found.rows).tolist()) for name, found in matrices.items()}


def allocate_patterns(matrices: Mapping[str, Prices], sparsity: float) -> dict[str, str]:
    """Return the K/64 of every matrix under a global sparsity; arguments as for `allocate`."""
    chosen = _cheapest(matrices, sparsity)
    return {name: f"{int(chosen[name][0])}/{BLOCK}" for name in matrices}


def allocate_bits(matrices: Mapping[str, Prices], bits: int) -> dict[str, int]:
    """Return the bits of every matrix's codes, `bits` on average over all weights or up to one step less."""
    chosen = _cheapest(matrices, 1 - bits / WIDTHS[0])
    return {name: int(chosen[name][0]) for name in matrices}


def _cheapest(matrices: Mapping[str, Prices], share: float) -> dict[str, NDArray[np.intp]]:
    """Return the levels of all budgets, the cheapest steps taken until a share of everything is removed.

    Prices rise, so taking the cheapest steps of all budgets first solves the allocation (Everett 1963), up to one step.
    Of equal prices the earlier levels go first, so that equal matrices stay nearly equal.
    """
    shapes = [found.steps.shape for found in matrices.values()]
    cheapest = np.concatenate([found.steps.ravel() for found in matrices.values()])
    sizes = np.concatenate([found.sizes().ravel() for found in matrices.values()])
    levels_of = np.concatenate([np.broadcast_to(np.arange(n), (rows, n)).ravel() for rows, n in shapes])
    order = np.lexsort((levels_of, cheapest))
    spent = np.cumsum(sizes[order]) - sizes[order]
    taken = np.zeros(len(order), dtype=np.bool_)
    taken[order] = spent < _to_remove(matrices.values(), share)
    ends = np.cumsum([lines * steps for lines, steps in shapes])
    chosen = {}
    for (name, found), end, shape in zip(matrices.items(), ends, shapes, strict=True):
        levels_taken = taken[end - shape[0] * shape[1] : end].reshape(shape).sum(axis=1)
        chosen[name] = found.kept[levels_taken]
    return chosen


def require_pattern(pattern: str) -> None:
    """Raise UsageError for a K/64 outside of what matrices may have."""
    if not KEPT[-1] <= int(pattern.partition("/")[0]) <= KEPT[0]:
        raise UsageError(
            f"--allocate layer gives matrices {KEPT[-1]}/{BLOCK} to {KEPT[0]}/{BLOCK}; --pattern {pattern} is outside"
        )


def require_reachable(sparsity: float) -> None:
    """Raise UsageError for a global sparsity outside of what rows may have."""
    if not LEAST <= sparsity <= MOST:
        raise UsageError(
            f"--allocate gives rows {LEAST:.0%} to {MOST:.0%} zeros; --sparsity {sparsity:g} is outside"
        )


def _to_remove(matrices: Iterable[Prices], share: float) -> float:
    """Return the weights (bits) to remove beyond the first levels."""
    return sum(
        (share * found.whole - (found.whole - int(found.kept[0]))) * found.rows * len(found.steps)
        for found in matrices
    )
