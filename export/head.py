"""The output head: round-to-nearest on its own grid, since calibration leaves it alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..constraints import IntGrid
from ..errors import AwpError
from .packing import PackedLinear, concatenate, pack_linear

HEADS = ("int8", "int4", "fp32")
_ROWS = 8192  # at most this many rows in memory beside the matrix: vocabularies are long


def head_grid(kind: str, hidden: int) -> IntGrid:
    """Return the grid of an "int8" (symmetric) or "int4" (asymmetric) head over `hidden` inputs.

    int8 takes the largest of 128, 64, 32, 16 that divides, int4 the largest up to 32: it needs the accuracy.

    Raises:
        AwpError: no offered block divides the hidden size.
    """
    offered = (128, 64, 32, 16) if kind == "int8" else (32, 16)
    fitting = [size for size in offered if hidden % size == 0]
    if not fitting:
        raise AwpError(
            f"the head has {hidden} inputs, which no block size of 16 or more divides; use --lm-head fp32"
        )
    return IntGrid(8 if kind == "int8" else 4, fitting[0], symmetric=kind == "int8", half_scales=True)


def pack_head(weight: NDArray[np.float32], kind: str) -> PackedLinear:
    """Round a head to nearest and pack it; weight (vocabulary, hidden) float32."""
    grid = head_grid(kind, weight.shape[1])
    parts = [_pack_rows(weight[start : start + _ROWS], grid) for start in range(0, len(weight), _ROWS)]
    return concatenate(parts)


def _pack_rows(weight: NDArray[np.float32], grid: IntGrid) -> PackedLinear:
    bound = grid.fit(weight)
    codes = bound.encode(weight)
    return pack_linear(codes, bound.scales, bound.zeros, bits=grid.bits, block_size=grid.group_size)
