"""Exchange one kept weight for one absent weight, with everything else refitted: exact 1-swaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..constraints import Mask
from ..problem import Array, Problem

#: A swap must lower f by this share of the energy of the weights it may move.
TOLERANCE = 1e-7
#: Swaps for which an entry that was exchanged stays where it is, unless moving it gives the best point so far.
TENURE = 8
Columns = NDArray[np.intp]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Swaps:
    """Set how far a row is searched.

    candidates: pairs at most.  patience: swaps made beyond the best point, each the one that costs least, before the
    search goes back to it and ends (tabu search, Glover 1986); with 0 it ends where no swap gains.
    """

    candidates: int
    patience: int = 0


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
    method: Swaps,
    least: Float64,
    engine: Operations,
) -> Array:
    """Return Theta after exact 1-swaps among each row's likeliest candidates, refitted on the new support.

    Among the inputs of a label, the i-th smallest kept weight and the absent one with the i-th largest gradient make a
    pair; the pairs of a row with the largest g^2 - theta^2 are its candidates, and half of the sum of the positive ones
    predicts what the row can gain. All other kept weights are eliminated, which leaves a quadratic in the candidates
    alone; there the swap with the largest gain is made until none is left, or longer (`Swaps`). The result is exact: f
    falls by the gains.

    Args:
        problem: W and C, in coordinates where weights and gradients compare (`conditional_variance`).
        mask: the support, (d_out, d_in).
        theta: refitted on it.
        labels: of every input, (d_in,); only inputs with equal labels may be swapped.
        method: how many candidates a row has, and how long it is searched.
        least: f that a row must be predicted to gain, (d_out,); other rows stay as they are.
        engine: the backend.

    Cost: a Cholesky factor of the size of the support for every row that is not left out.

    Source: the gain is T11; exchange after pruning, Boza (2024) and SparseSwaps (2025), there without the refit.
    """
    gradient = engine.product(problem.weight - theta, problem.gram)
    out = theta.copy()
    for row in range(len(theta)):
        *chosen, gain = _candidates((theta[row], gradient[row], mask[row]), labels, n=method.candidates)
        if gain >= least[row] and all(part.size for part in chosen):
            parts = problem.gram, gradient[row], out[row]
            _swap_row(*parts, chosen=(*chosen, mask[row]), labels=labels, patience=method.patience)
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
    gram: Array,
    gradient: Array,
    theta: Array,
    *,
    chosen: tuple[Columns, Columns, Mask],
    labels: Columns,
    patience: int,
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
    linear, inside = schur @ before + corner @ seen[n:], np.arange(len(some)) < len(leaving)
    after = best_swaps(schur, linear, inside, labels=labels[some], patience=patience)
    theta[some] = after
    if n:
        theta[fixed] += np.linalg.solve(lower[:n, :n].T, seen[:n] - lower[n:, :n].T @ (after - before))


def best_swaps(
    schur: Float64, linear: Float64, inside: Mask, *, labels: Columns, patience: int = 0
) -> Float64:
    """Minimise 1/2 y A y - b y over y with the given support, then over supports one swap away, and so on.

    Args:
        schur: A, (n, n), positive definite.
        linear: b, (n,).
        inside: the support, (n,).
        labels: only entries with equal labels may be swapped.
        patience: as in `Swaps`; no swap from the result gains, whatever it is.

    Returns: y, zero outside the best support met.
    """
    inside, best, until = inside.copy(), inside, np.zeros(len(inside), dtype=int)
    # What f fell by so far and at the best support, and the swaps after that.
    fallen, most, since = 0.0, 0.0, 0
    for step in range(2 * len(inside) * (1 + patience)):
        kept, absent = np.flatnonzero(inside), np.flatnonzero(~inside)
        precision: Float64 = np.linalg.inv(schur[np.ix_(kept, kept)]).astype(np.float64, copy=False)
        gains = swap_gains(schur, linear, precision, kept=kept, absent=absent)
        enough = most - fallen + TOLERANCE * float(linear[kept] @ precision @ linear[kept])
        free = (until[absent] <= step)[:, None] & (until[kept] <= step)
        allowed = (labels[absent][:, None] == labels[kept]) & (free | (gains > enough))
        if not allowed.any():
            break
        pair = np.unravel_index(int(np.where(allowed, gains, -np.inf).argmax()), gains.shape)
        better = bool(gains[pair] > enough)
        if not better and since == patience:
            break
        entering, leaving = absent[pair[0]], kept[pair[1]]
        inside[leaving], inside[entering] = False, True
        until[leaving] = until[entering] = step + 1 + TENURE
        fallen, since = fallen + float(gains[pair]), since + 1
        if better:
            best, most, since = inside.copy(), fallen, 0
    found = np.zeros(len(inside))
    kept = np.flatnonzero(best)
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
