"""Random sparse INT4 layers, as a solver would leave them."""

from __future__ import annotations

import numpy as np
from awp_edge.export.sparse_packing import SparseCodes, block_order

from awp_edge import BalancedBlock, RowSparse


def random_layer(
    shape: tuple[int, int], *, group: int = 64, kept: int | None = 32, turned: bool = True, seed: int = 0
) -> SparseCodes:
    """Return codes of a layer with `kept` weights in every block of 64, or half of every row where kept is None."""
    rng = np.random.default_rng(seed)
    gain = rng.standard_normal(shape)
    order = block_order(shape[1], turned=turned)
    mask = np.empty(shape, dtype=bool)
    if kept is None:
        mask[:] = RowSparse(shape[1] // 2).select(gain)
    else:
        mask[:, order] = BalancedBlock(kept).select(gain)[:, block_order(shape[1], turned=True)]
    zeros = rng.integers(0, 16, (shape[0], shape[1] // group), dtype=np.uint8)
    spread = np.empty(shape, dtype=np.uint8)
    spread[:, order] = np.repeat(zeros, group, axis=1)
    codes = np.where(mask, rng.integers(0, 16, shape, dtype=np.uint8), spread)
    scales = rng.uniform(0.001, 0.1, zeros.shape).astype(np.float16)
    return SparseCodes(codes, mask, scales, zeros, turned)
