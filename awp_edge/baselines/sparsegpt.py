"""SparseGPT: prune column by column, let the columns that are still free make up for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend import Backend
from ..constraints import NM, Mask, Sparse, Support
from ..problem import Array, Problem
from .sweep import BLOCK, Sweep, column_rounder, inverse_factor


def sparsegpt(problem: Problem, constraint: Sparse, *, engine: Backend, damping: float = 0.01) -> Array:
    """Return Theta in the set: every column masked (and rounded) after the corrections for those before it.

    Args:
        problem: W (d_out, d_in) and C.
        constraint: support x values; an unfitted grid is fitted to W before the sweep.
        engine: the backend that selects and multiplies.
        damping: added to the diagonal of C, as a share of its mean.

    The mask of a block of columns is chosen when the sweep reaches it, by the error z_j^2 / U_jj^2 that pruning a
    weight leaves once all later columns have made up for it: every M columns for N:M, else every 128. The paper cuts
    each block at one threshold for the whole matrix; a support's own selection weighs the block against the columns
    that are still to come and keeps what the support allows. Cost d_in^3 + d_out d_in^2.

    Source: Frantar and Alistarh, SparseGPT (ICML 2023), Algorithm 1 and section 3.4 (joint with a grid).
    """
    order = np.arange(problem.shape[1])
    width = _chosen_at_once(constraint.support)
    block = max(1, BLOCK // width) * width  # all corrections have reached a column when its mask is chosen
    sweep = Sweep(order, inverse_factor(problem, order, damping=damping), block)
    masks = _Masks(
        constraint.support, sweep.upper.diagonal()[:, None], np.zeros(problem.shape[::-1], np.bool_)
    )
    rounded = column_rounder(constraint.bind(problem.weight))

    def settle(z: Array, j: int) -> Array:
        masks.reach(z, j, engine=engine)
        return np.where(masks.chosen[j], rounded(z[j], j), z.dtype.type(0)) + z.dtype.type(0)

    return sweep.run(problem.weight, settle, engine=engine)


def _chosen_at_once(support: Support) -> int:
    """Return how many columns' masks are chosen together."""
    return support.m if isinstance(support, NM) else BLOCK


@dataclass(frozen=True)
class _Masks:
    """Hold the masks chosen so far.

    pivots: U_jj, (d_in, 1).  chosen: (d_in, d_out), rows filled as the sweep goes.
    """

    support: Support
    pivots: Array
    chosen: Mask

    def reach(self, z: Array, j: int, *, engine: Backend) -> None:
        """Choose the mask of the block that begins at column j, if one does."""
        step = _chosen_at_once(self.support)
        if j % step:
            return
        block = slice(j, j + step)
        if isinstance(self.support, NM):  # its groups do not compete with other columns
            gain = np.ascontiguousarray(((z[block] / self.pivots[block]) ** 2).T)
            self.chosen[block] = engine.select(self.support, gain).T
            return
        gain = (z / self.pivots) ** 2
        gain[:j] = np.where(self.chosen[:j], gain.dtype.type(np.inf), gain.dtype.type(0))
        self.chosen[block] = engine.select(self.support, np.ascontiguousarray(gain.T)).T[block]
