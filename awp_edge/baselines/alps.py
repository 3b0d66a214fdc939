"""ALPS: ADMM with a growing penalty until the support stands still, then conjugate gradients on the support."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend import Backend
from ..constraints import Mask, Sparse
from ..problem import Array, Problem


@dataclass(frozen=True)
class Alps:
    """Hold the published constants.

    Args:
        damping: added to the correlations' diagonal of ones.
        rho: first penalty.  every: steps between two looks at the support.  max_iter: ADMM steps at most.
        growth: (share of the support that changed, factor): rho grows by the first factor whose share is reached.
        settled: from step `patience` on, a smaller share ends the iteration.
        refits: conjugate gradient steps.
    """

    damping: float = 0.01
    rho: float = 0.1
    every: int = 3
    max_iter: int = 300
    growth: tuple[tuple[float, float], ...] = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
    settled: float = 0.0003
    patience: int = 30
    refits: int = 10


def alps(problem: Problem, constraint: Sparse, *, engine: Backend, options: Alps = Alps()) -> Array:
    """Return Theta on ADMM's support with the weights refitted; the values are real.

    Args:
        problem: W (d_out, d_in) and C; inputs are scaled to E[x_j^2] = 1 first, and W with them.
        constraint: support x reals. N:M and the others project by the support's own selection, where the paper
            keeps the k largest of the whole matrix.
        engine: the backend that selects and multiplies.

    Cost 10 d_in^3 (eigenvectors), and 2 d_out d_in^2 a step, 30 to 100 of them.

    Source: Meng et al., ALPS (NeurIPS 2024), Algorithm 1 and section 3.3; constants as in its published code, which
    damps before it scales and lowers rho where the support does not move at first.
    """
    scale = np.sqrt(problem.gram.diagonal())
    # Inputs that are never active: their weights count for nothing, and are the first to go.
    scale = np.where(scale > 0, scale, scale.dtype.type(1e-6) * (scale.max() or 1))
    scaled = Problem(problem.weight * scale, problem.gram / scale / scale[:, None])
    mask, theta = _admm(scaled, constraint, engine=engine, options=options)
    refitted = refit(scaled, mask, theta, engine=engine, steps=options.refits) / scale
    return np.ascontiguousarray(np.where(mask, refitted, refitted.dtype.type(0)))


def _admm(problem: Problem, constraint: Sparse, *, engine: Backend, options: Alps) -> tuple[Mask, Array]:
    """Alternate Theta = argmin f + <V, Theta - D> + rho/2 ||Theta - D||^2 and D = projection of Theta + V/rho."""
    weight, dtype = problem.weight, problem.weight.dtype
    values, vectors = np.linalg.eigh(problem.gram)
    values = np.maximum(values, 0) + dtype.type(options.damping)
    target = engine.product(weight, problem.gram) + dtype.type(options.damping) * weight
    mask = last_look = engine.select(constraint.support, weight * weight)
    kept, dual, rho = np.where(mask, weight, dtype.type(0)), np.zeros_like(weight), options.rho
    inverse = _inverse(values + dtype.type(rho), vectors, engine=engine)
    for step in range(1, options.max_iter + 1):
        theta = engine.product(target - dual + dtype.type(rho) * kept, inverse)
        free = theta + dual / dtype.type(rho)
        mask = engine.select(constraint.support, free * free)
        kept = np.where(mask, free, dtype.type(0))
        dual = dual + dtype.type(rho) * (theta - kept)
        if step % options.every:
            continue
        changed = float(np.count_nonzero(mask != last_look)) / max(1.0, float(np.count_nonzero(mask)))
        if step >= options.patience and changed < options.settled:
            break
        rho *= next(factor for share, factor in options.growth if changed >= share)
        last_look, inverse = mask, _inverse(values + dtype.type(rho), vectors, engine=engine)
    return mask, kept


def _inverse(values: Array, vectors: Array, *, engine: Backend) -> Array:
    return engine.product(vectors / values, np.ascontiguousarray(vectors.T))


def refit(problem: Problem, mask: Mask, theta: Array, *, engine: Backend, steps: int) -> Array:
    """Return Theta after conjugate gradient steps on f over a fixed support, all rows at once; f never rises.

    Preconditioned by the diagonal of C; cost 2 d_out d_in^2 a step.
    """
    zero, tiny, eps = theta.dtype.type(0), np.finfo(theta.dtype).tiny, np.finfo(theta.dtype).eps
    diagonal = problem.gram.diagonal()
    inverse = np.where(diagonal > 0, 1 / np.where(diagonal > 0, diagonal, diagonal.dtype.type(1)), zero)
    theta = np.where(mask, theta, zero)
    residual = np.where(mask, engine.product(problem.weight - theta, problem.gram), zero)
    direction = residual * inverse
    first = square = np.sum(residual * direction, axis=1, keepdims=True)
    for _ in range(steps):
        image = np.where(mask, engine.product(direction, problem.gram), zero)
        curvature = np.sum(direction * image, axis=1, keepdims=True)
        # A row whose residual or curvature is rounding is at its minimum: a step would divide noise by noise.
        scale = np.sum(direction * diagonal * direction, axis=1, keepdims=True)
        flat = np.maximum(len(diagonal) * eps * scale, tiny)
        moves = (curvature > flat) & (square > eps**2 * first)
        length = np.where(moves, square / np.maximum(curvature, flat), zero)
        theta, residual = theta + length * direction, residual - length * image
        preconditioned = residual * inverse
        following = np.sum(residual * preconditioned, axis=1, keepdims=True)
        direction = (
            preconditioned + np.where(square > tiny, following / np.maximum(square, tiny), zero) * direction
        )
        square = following
    return theta
