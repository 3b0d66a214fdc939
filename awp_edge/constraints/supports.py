"""Where a weight may be nonzero: dense, per row, N:M, balanced blocks, whole blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..problem import Array
from .base import Descriptor, Mask, Shape, top_k


def _between(dense: int, sparse: int, fraction: float) -> int:
    """Return the count `fraction` of the way from dense to sparse, rounded half up."""
    return int(np.floor(dense - fraction * (dense - sparse) + 0.5))


def interleaved(d_in: int, block: int = 64) -> NDArray[np.intp]:
    """Return the inputs in the order of a BalancedBlock's blocks: b, b + n, b + 2n, ... for b < n = d_in / block."""
    return np.arange(d_in).reshape(block, -1).T.ravel()


def _check_count(kept: int, of: int, *, what: str) -> None:
    if not 0 <= kept <= of:
        raise ValueError(f"{what} must lie between 0 and {of}, got {kept}")


@dataclass(frozen=True)
class Dense:
    """Allow every entry to be nonzero."""

    def check(self, shape: Shape) -> None:
        """Accept every shape."""

    def select(self, gain: Array) -> Mask:
        """Return the full mask."""
        return np.ones(gain.shape, dtype=np.bool_)

    def at(self, fraction: float, shape: Shape) -> Dense:
        """Return itself: there is nothing to ramp."""
        return self

    def descriptor(self) -> Descriptor:
        """Return the native core's name and parameters of this support."""
        return "dense", (0,), 0, 0


@dataclass(frozen=True)
class RowSparse:
    """Allow at most k nonzeros in every row: {||Theta_i||_0 <= k_i} (AWP, equation 6, with a budget for each row).

    k: one number for every row, or a tuple with one for each, so that a global budget can go where it matters.
    """

    k: int | tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Return k as a tuple, of one number where it is the same for every row."""
        return self.k if isinstance(self.k, tuple) else (self.k,)

    def check(self, shape: Shape) -> None:
        """Raise ValueError unless 0 <= k <= d_in, for as many rows as there are."""
        if isinstance(self.k, tuple) and len(self.k) != shape[0]:
            raise ValueError(f"k is given for {len(self.k)} rows, the matrix has {shape[0]}")
        for k in (min(self.counts), max(self.counts)):
            _check_count(k, shape[1], what="k (nonzeros per row)")

    def select(self, gain: Array) -> Mask:
        """Keep the k largest gains of every row."""
        if not isinstance(self.k, tuple):
            return top_k(gain, self.k)
        counts, mask = np.array(self.k), np.empty(gain.shape, dtype=np.bool_)
        for k in np.unique(counts):
            mask[counts == k] = top_k(gain[counts == k], int(k))
        return mask

    def at(self, fraction: float, shape: Shape) -> RowSparse:
        """Return the row support with every k on the way from d_in."""
        if not isinstance(self.k, tuple):
            return replace(self, k=_between(shape[1], self.k, fraction))
        return replace(self, k=tuple(_between(shape[1], k, fraction) for k in self.k))

    def descriptor(self) -> Descriptor:
        """Return the native core's name and parameters of this support."""
        return "row", self.counts, 0, 0


@dataclass(frozen=True)
class NM:
    """Allow n nonzeros among every m consecutive inputs (2:4, 4:8, ...)."""

    n: int
    m: int

    def check(self, shape: Shape) -> None:
        """Raise ValueError unless 0 <= n <= m and m divides d_in."""
        _check_count(self.n, self.m, what=f"n of {self.n}:{self.m}")
        if self.m < 1 or shape[1] % self.m:
            raise ValueError(f"pattern {self.n}:{self.m} needs m = {self.m} to divide d_in = {shape[1]}")

    def select(self, gain: Array) -> Mask:
        """Keep the n largest gains of every m consecutive inputs."""
        return top_k(gain.reshape(gain.shape[0], -1, self.m), self.n).reshape(gain.shape)

    def at(self, fraction: float, shape: Shape) -> NM:
        """Return n:m with n on the way from m."""
        return replace(self, n=_between(self.m, self.n, fraction))

    def descriptor(self) -> Descriptor:
        """Return the native core's name and parameters of this support."""
        return "nm", (self.n,), self.m, 0


@dataclass(frozen=True)
class BalancedBlock:
    """Allow k nonzeros in every interleaved block of `block` inputs: the K/64 edge format.

    With n = d_in / block, block b holds the inputs b, b + n, b + 2n, ...: neighbouring inputs (one attention
    head) fall into different blocks, which costs far less layer error than contiguous blocks.
    """

    k: int
    block: int = 64

    def check(self, shape: Shape) -> None:
        """Raise ValueError unless 0 <= k <= block and block divides d_in."""
        _check_count(self.k, self.block, what=f"k of {self.k}/{self.block}")
        if self.block < 1 or shape[1] % self.block:
            raise ValueError(f"pattern {self.k}/{self.block} needs {self.block} to divide d_in = {shape[1]}")

    def select(self, gain: Array) -> Mask:
        """Keep the k largest gains of every interleaved block."""
        blocks = gain.reshape(gain.shape[0], self.block, -1).transpose(0, 2, 1)
        return np.ascontiguousarray(top_k(blocks, self.k).transpose(0, 2, 1)).reshape(gain.shape)

    def at(self, fraction: float, shape: Shape) -> BalancedBlock:
        """Return k/block with k on the way from block."""
        return replace(self, k=_between(self.block, self.k, fraction))

    def descriptor(self) -> Descriptor:
        """Return the native core's name and parameters of this support."""
        return "balanced", (self.k,), self.block, 0


@dataclass(frozen=True)
class BlockSparse:
    """Allow k whole blocks of rows x cols entries in every strip of `rows` consecutive rows."""

    rows: int
    cols: int
    k: int

    def check(self, shape: Shape) -> None:
        """Raise ValueError unless the blocks tile the matrix and 0 <= k <= d_in / cols."""
        if self.rows < 1 or self.cols < 1 or shape[0] % self.rows or shape[1] % self.cols:
            raise ValueError(f"blocks of {self.rows}x{self.cols} do not tile a {shape[0]}x{shape[1]} matrix")
        _check_count(self.k, shape[1] // self.cols, what="k (blocks per strip)")

    def select(self, gain: Array) -> Mask:
        """Keep the k blocks with the largest summed gain in every strip."""
        kept = top_k(self._block_gain(gain), self.k)
        return np.repeat(np.repeat(kept, self.rows, axis=0), self.cols, axis=1)

    def _block_gain(self, gain: Array) -> Array:
        # One fixed order of additions in float64 (columns of a row, then rows), so that the native twin agrees to
        # the last bit.
        tiles = gain.reshape(gain.shape[0] // self.rows, self.rows, -1, self.cols)
        total = np.zeros((tiles.shape[0], tiles.shape[2]), dtype=np.float64)
        for row in range(self.rows):
            for col in range(self.cols):
                total += tiles[:, row, :, col]
        return total

    def at(self, fraction: float, shape: Shape) -> BlockSparse:
        """Return the block support with k on the way from all blocks."""
        return replace(self, k=_between(shape[1] // self.cols, self.k, fraction))

    def descriptor(self) -> Descriptor:
        """Return the native core's name and parameters of this support."""
        return "block", (self.k,), self.rows, self.cols
