"""GPTQ: round column by column, pass each error on to the columns that are still free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend import Backend
from ..constraints import Sparse
from ..problem import Array, Problem
from .sweep import Order, Sweep, column_rounder, inverse_factor

ORDERS = ("natural", "activation")


@dataclass(frozen=True)
class Gptq:
    """Choose the variant.

    Args:
        order: "natural", or "activation" ("act-order"): inputs with the largest C_jj first, while there are most
            columns left to make up for them. Every group keeps its consecutive inputs either way.
        damping: added to the diagonal of C, as a share of its mean.
    """

    order: str = "natural"
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        if not self.damping > 0:
            raise ValueError(f"damping must be positive, got {self.damping}")


def gptq(problem: Problem, constraint: Sparse, *, engine: Backend, options: Gptq = Gptq()) -> Array:
    """Return Theta on the grid, every column rounded to nearest after the corrections for those before it.

    Args:
        problem: W (d_out, d_in) and C.
        constraint: dense support x grid; an unfitted grid is fitted to W before the sweep ("static groups").
        engine: the backend that multiplies.
        options: order and damping.

    Without clipping f + damping = 1/2 sum_j ||r_j||^2 / U_jj^2, where r_j is what rounding column j leaves
    (`Sweep.run`): rounding to nearest minimises each term in its turn. Cost d_in^3 + d_out d_in^2.

    Source: Frantar et al., GPTQ (ICLR 2023), Algorithm 1; act-order and static groups are its authors' later options.
    """
    order = column_order(problem, options.order)
    rounded = column_rounder(constraint.bind(problem.weight))
    sweep = Sweep(order, inverse_factor(problem, order, damping=options.damping))
    return sweep.run(problem.weight, lambda z, step: rounded(z[step], int(order[step])), engine=engine)


def column_order(problem: Problem, name: str) -> Order:
    """Return the inputs in the order of the sweep; equal C_jj keep their natural order."""
    if name == "activation":
        return np.argsort(-problem.gram.diagonal(), kind="stable")
    return np.arange(problem.shape[1])
