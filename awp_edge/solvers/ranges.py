"""Fit a grid's ranges to what rounding costs instead of to the largest weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..constraints.values import BoundGrid, Codes, IntGrid, usable_scales
from ..problem import Array

#: Candidate scales as fractions of the full range's, and candidate zero points beside its own. A larger fraction
#: pays where the zero point moves: the range then still covers the far end.
FRACTIONS = (1.0, *(round(0.4 + 0.05 * i, 2) for i in range(12)), 1.05, 1.1, 1.2)
SHIFTS = (0, -1, 1)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Hold the ranges to choose from: scales and zero points, each (n, d_out, groups), and the grid they are of."""

    spec: IntGrid
    scales: Array
    zeros: Codes

    def choose(self, index: NDArray[np.integer[Any]]) -> BoundGrid:
        """Return the grid of candidate number `index` (d_out, groups) of every group."""
        scales, zeros = (
            np.take_along_axis(part, index[None], axis=0)[0] for part in (self.scales, self.zeros)
        )
        return BoundGrid(self.spec, np.ascontiguousarray(scales), np.ascontiguousarray(zeros))


def candidates(spec: IntGrid, weight: Array) -> Candidates:
    """Return the ranges around each group's full one, which comes first.

    A scale and an integer zero point are all that a grid has, so both ends of the range are searched.
    """
    full = spec.fit(weight)
    largest = weight.dtype.type(np.finfo(np.float16 if spec.half_scales else weight.dtype).max)
    scales, zeros = [], []
    for shift in (0,) if spec.symmetric else SHIFTS:
        for fraction in FRACTIONS:
            wider = np.minimum(full.scales * weight.dtype.type(fraction), largest)
            scales.append(usable_scales(wider, half=spec.half_scales))
            zeros.append(np.clip(full.zeros.astype(np.int16) + shift, 0, spec.top).astype(np.uint8))
    return Candidates(spec, np.stack(scales), np.stack(zeros))


def cheapest_range(weight: Array, importance: Array, found: Candidates) -> NDArray[np.int32]:
    """Return each group's candidate with the least sum over j of importance_j (w_j - Q(w_j))^2, the first of equals.

    Args:
        weight: (d_out, d_in).
        importance: (d_in,), not negative, the dtype of W.
        found: the ranges to choose from.

    The sum runs over j in order, so that the native twin gets the same bits. Cost: n d_out d_in.
    """
    size, top = found.spec.group_size, found.spec.top
    groups, weights = weight.reshape(*found.scales.shape[1:], size), importance.reshape(-1, size)
    zeros = found.zeros.astype(weight.dtype)
    errors = np.zeros_like(found.scales)
    for j in range(size):
        z = groups[..., j]
        steps = np.clip(np.rint(z / found.scales) + zeros, 0, top) - zeros
        gap = z - steps * found.scales
        errors += weights[:, j] * (gap * gap)
    return np.argmin(errors, axis=0).astype(np.int32)
