"""AWQ: scale inputs before rounding so that those that matter round finely, then clip each group's range."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..backend import Backend
from ..constraints import BoundGrid, Dense, IntGrid, Sparse
from ..problem import Array, Problem

#: Inputs weaker than this share of the strongest are scaled like it.
FAINTEST = 1e-4


@dataclass(frozen=True)
class Awq:
    """Bound the two searches.

    Args:
        n_scales: exponents alpha = 0, 1/n, ..., (n - 1)/n tried.
        n_clips: shares 1, 1 - 1/n, ... of a group's largest |w| tried, down to but without `least_clip`.
    """

    n_scales: int = 20
    n_clips: int = 20
    least_clip: float = 0.5


@dataclass(frozen=True)
class Scaled:
    """Hold a weight that lies on its grid only after its inputs are scaled: Theta = scaled diag(1/s).

    constraint: dense x grid, bound.  scaled: Q(W diag(s)), (d_out, d_in), on that grid.
    input_scales: s > 0, (d_in,), the weights' dtype; a runtime divides the inputs by it.
    """

    constraint: Sparse
    scaled: Array
    input_scales: Array

    @property
    def theta(self) -> Array:
        """Return Theta, (d_out, d_in)."""
        return self.scaled / self.input_scales


def awq(problem: Problem, constraint: Sparse, *, engine: Backend, options: Awq = Awq()) -> Scaled:
    """Return the best of the searched scalings of W's inputs, then of the searched clippings, in f.

    Args:
        problem: W (d_out, d_in) and C. Zeros of W stay zero, so a pruned W keeps its mask.
        constraint: its grid counts, its support does not.
        engine: the backend that multiplies.
        options: what is searched.

    s_j = E[x_j^2]^(alpha/2), divided by the root of its largest times its smallest; the paper takes E|x_j|, which C
    does not hold. One alpha for the layer, where the paper shares it among the layers that read the same input. A
    group is clipped where that lowers its own error r C_gg r^T; clipping stays only if f falls with it. alpha = 0
    without clipping is rounding to nearest, so f is never above that.
    Cost (n_scales + 1) products of d_out x d_in x d_in.

    Source: Lin et al., AWQ (MLSys 2024), section 3.2, equation 4; grids of both searches as in its published code.
    """
    assert isinstance(constraint.values, IntGrid | BoundGrid)
    spec = constraint.values if isinstance(constraint.values, IntGrid) else constraint.values.spec
    power = problem.gram.diagonal()
    power = np.maximum(power, power.max() * power.dtype.type(FAINTEST**2))
    if not power.any():
        power = np.ones_like(power)
    trials = (
        _rounded(problem, spec, _input_scales(power, i / options.n_scales)) for i in range(options.n_scales)
    )
    best = min(trials, key=lambda trial: _objective(problem, trial, engine=engine))
    clipped = _clipped(problem, best, options=options)
    return min(best, clipped, key=lambda trial: _objective(problem, trial, engine=engine))


def _input_scales(power: Array, alpha: float) -> Array:
    log = np.log(power.astype(np.float64)) * (alpha / 2)
    return np.exp(log - (log.max() + log.min()) / 2).astype(power.dtype)


def _rounded(problem: Problem, spec: IntGrid, input_scales: Array) -> Scaled:
    scaled = problem.weight * input_scales
    return _on_grid(spec.fit(scaled), scaled, input_scales)


def _on_grid(grid: BoundGrid, scaled: Array, input_scales: Array) -> Scaled:
    constraint = Sparse(Dense(), grid)
    return Scaled(constraint, constraint.restrict(scaled, np.ones(scaled.shape, np.bool_)), input_scales)


def _objective(problem: Problem, trial: Scaled, *, engine: Backend) -> float:
    residual = problem.weight - trial.theta
    return float(np.sum(residual * engine.product(residual, problem.gram), dtype=np.float64))


def _clipped(problem: Problem, start: Scaled, *, options: Awq) -> Scaled:
    """Return the weight rounded to the grids that clip every group where its own error is lowest."""
    grid = start.constraint.values
    assert isinstance(grid, BoundGrid)
    scaled, size = problem.weight * start.input_scales, grid.spec.group_size
    groups = scaled.reshape(len(scaled), -1, size)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    scales, zeros = grid.scales, grid.zeros
    least = _group_errors(problem, start, size)
    for i in range(1, int(options.n_clips * (1 - options.least_clip))):
        bound = largest * largest.dtype.type(1 - i / options.n_clips)
        trial = _on_grid(
            grid.spec.fit(np.clip(groups, -bound, bound).reshape(scaled.shape)), scaled, start.input_scales
        )
        fitted, error = trial.constraint.values, _group_errors(problem, trial, size)
        assert isinstance(fitted, BoundGrid)
        better = error < least
        least = np.where(better, error, least)
        scales, zeros = np.where(better, fitted.scales, scales), np.where(better, fitted.zeros, zeros)
    return _on_grid(replace(grid, scales=scales, zeros=zeros), scaled, start.input_scales)


def _group_errors(problem: Problem, trial: Scaled, size: int) -> Array:
    """Return r_g C_gg r_g^T of every row and group, (d_out, d_in / size)."""
    residual = (problem.weight - trial.theta).reshape(len(problem.weight), -1, size).transpose(1, 0, 2)
    n_groups = len(residual)
    blocks = np.stack(
        [problem.gram[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(n_groups)]
    )
    return np.ascontiguousarray(np.sum(residual @ blocks * residual, axis=2).T)
