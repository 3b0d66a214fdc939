"""Exchange one kept weight for one absent weight, with everything else refitted: exact 1-swaps."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..constraints import Mask
from ..problem import Array, Problem

#: A swap must lower f by this share of the energy of the weights it may move.
TOLERANCE = 1e-7
Columns = NDArray[np.intp]
Float64 = NDArray[np.float64]


class Operations(Protocol):
    """What the search is written in."""

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b."""


def swap(
    problem: Problem,
    mask: Mask,
    theta: Array,
    *,
    labels: Columns,
    candidates: int,
    least: Float64,
    engine: Operations,
) -> Array:
    """Return Theta after exact 1-swaps among each row's likeliest candidates, refitted on the new support.

    Among the inputs of a label, the i-th smallest kept weight and the absent one with the i-th largest gradient make a
    pair; the `candidates` pairs of a row with the largest g^2 - theta^2 are its candidates, and half of the sum of the
    positive ones predicts what the row can gain. All other kept weights are
    eliminated, which leaves a quadratic in the candidates alone; there the swap with the largest gain is made until
    none is left. The result is exact: f falls by the gains.

    Args:
        problem: W and C, in coordinates where weights and gradients compare (`conditional_variance`).
        mask: the support, (d_out, d_in).
        theta: refitted on it.
        labels: of every input, (d_in,); only inputs with equal labels may be swapped.
        candidates: pairs at most.
        least: f that a row must be predicted to gain, (d_out,); other rows stay as they are.
        engine: the backend.

    Cost: a Cholesky factor of the size of the support for every row that is not left out.

    Source: the gain is T11; exchange after pruning, Boza (2024) and SparseSwaps (2025), there without the refit.
    """
    gradient = engine.product(problem.weight - theta, problem.gram)
    out = theta.copy()
    for row in range(len(theta)):
        *chosen, gain = _candidates((theta[row], gradient[row], mask[row]), labels, n=candidates)
        if gain >= least[row] and all(part.size for part in chosen):
            _swap_row(problem.gram, gradient[row], out[row], chosen=(*chosen, mask[row]), labels=labels)
    return out


def _candidates(row: tuple[Array, Array, Mask], labels: Columns, *, n: int) -> tuple[Columns, Columns, float]:
    """Return what may leave, what may enter, and the gain that their sizes promise."""
    theta, gradient, mask = row
    inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
    leaving = inside[np.lexsort((np.abs(theta[inside]), labels[inside]))]
    entering = outside[np.lexsort((-np.abs(gradient[outside]), labels[outside]))]
    _, first, second = np.intersect1d(
        _places(labels[leaving], len(mask)),
        _places(labels[entering], len(mask)),
        assume_unique=True,
        return_indices=True,
    )
    leaving, entering = leaving[first], entering[second]
    loss = theta[leaving] ** 2 - gradient[entering] ** 2
    order = np.argsort(loss, kind="stable")[:n]
    return leaving[order], entering[order], -float(np.minimum(loss[order], 0).sum(dtype=np.float64)) / 2


def _places(labels: Columns, d_in: int) -> Columns:
    """Return one number for every (label, place among its equals) of ascending labels."""
    return labels * d_in + np.arange(len(labels)) - np.searchsorted(labels, labels)


def _swap_row(
    gram: Array, gradient: Array, theta: Array, *, chosen: tuple[Columns, Columns, Mask], labels: Columns
) -> None:
    """Change one row in place."""
    leaving, entering, mask = chosen
    fixed, some = np.setdiff1d(np.flatnonzero(mask), leaving), np.concatenate([leaving, entering])
    order = np.concatenate([fixed, some])
    try:
        lower = np.linalg.cholesky(_regular(gram[np.ix_(order, order)]))
    except np.linalg.LinAlgError:
        return  # rounding of C has left no definite matrix here; the row stays as it is
    seen = np.linalg.solve(lower, gradient[order].astype(np.float64))
    n, corner = len(fixed), lower[len(fixed) :, len(fixed) :]
    before = theta[some].astype(np.float64)
    schur = corner @ corner.T
    after = best_swaps(
        schur, schur @ before + corner @ seen[n:], np.arange(len(some)) < len(leaving), labels=labels[some]
    )
    theta[some] = after
    if n:
        theta[fixed] += np.linalg.solve(lower[:n, :n].T, seen[:n] - lower[n:, :n].T @ (after - before))


def best_swaps(schur: Float64, linear: Float64, inside: Mask, *, labels: Columns) -> Float64:
    """Minimise 1/2 y A y - b y over y with the given support, then over supports one swap away, and so on.

    Args:
        schur: A, (n, n), positive definite.
        linear: b, (n,).
        inside: the support, (n,).
        labels: only entries with equal labels may be swapped.

    Returns: y, zero outside the last support.
    """
    inside = inside.copy()
    for _ in range(2 * len(inside)):
        kept, absent = np.flatnonzero(inside), np.flatnonzero(~inside)
        precision: Float64 = np.linalg.inv(schur[np.ix_(kept, kept)]).astype(np.float64, copy=False)
        y = precision @ linear[kept]
        allowed = labels[absent][:, None] == labels[kept]
        gains = np.where(allowed, swap_gains(schur, linear, precision, kept=kept, absent=absent), -np.inf)
        best = int(gains.argmax())
        if not gains.flat[best] > TOLERANCE * float(y @ linear[kept]):
            break
        entering, leaving = np.unravel_index(best, gains.shape)
        inside[kept[leaving]], inside[absent[entering]] = False, True
    found = np.zeros(len(inside))
    kept = np.flatnonzero(inside)
    found[kept] = np.linalg.solve(schur[np.ix_(kept, kept)], linear[kept])
    return found


def swap_gains(
    schur: Float64, linear: Float64, precision: Float64, *, kept: Columns, absent: Columns
) -> Float64:
    """Return by how much f falls when absent p replaces kept u and all is refitted, (absent, kept).

    With P = (A_SS)^-1, t = P b_S, g = b - A_.S t, M = A_pS P and s_p = A_pp - M_p A_Sp this is
    (g_p + M_pu t_u / P_uu)^2 / (2 (s_p + M_pu^2 / P_uu)) - t_u^2 / (2 P_uu) (T11).
    """
    t, cross = precision @ linear[kept], schur[np.ix_(absent, kept)]
    regression, variance = cross @ precision, precision.diagonal()
    left = schur.diagonal()[absent] - np.einsum("ij,ij->i", regression, cross)
    gradient = linear[absent] - cross @ t
    raised = gradient[:, None] + regression * (t / variance)
    return raised**2 / (2 * (left[:, None] + regression**2 / variance)) - t * t / (2 * variance)


def _regular(matrix: Array) -> Float64:
    """Return the matrix in float64, with enough on its diagonal to have a Cholesky factor."""
    regular = matrix.astype(np.float64)
    diagonal = regular.diagonal()
    np.fill_diagonal(regular, diagonal + 1e-6 * np.maximum(diagonal, 1e-30 + diagonal.max()))
    return regular
