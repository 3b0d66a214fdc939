"""What a nonzero weight may be: any real number, or a point of a group-wise integer grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..problem import Array

BITS = (2, 3, 4, 8)
Codes = NDArray[np.uint8]


@runtime_checkable
class Values(Protocol):
    """A closed set V of numbers that holds 0."""

    def round(self, z: Array) -> Array:
        """Return the nearest point of V to every entry; round(0) == 0."""


@dataclass(frozen=True)
class Reals:
    """Allow every real number."""

    def round(self, z: Array) -> Array:
        """Return Z itself."""
        return z


@dataclass(frozen=True)
class IntGrid:
    """Specify V = {(code - zero) scale}: one scale and one integer zero point per group of inputs of a row.

    A specification only: `fit` makes the `BoundGrid` that rounds. The zero point is an integer, so 0 is exact
    and pruned weights stay zero.

    Args:
        bits: 2, 3, 4 or 8.
        group_size: consecutive inputs that share a scale; must divide d_in.
        symmetric: zero point fixed at 2^(bits-1) and scale = max|w| / (2^(bits-1) - 1).
        half_scales: round scales to float16 before anything depends on them, as every stored format does.

    Raises:
        ValueError: bits that are not offered, or a group size below 1.
    """

    bits: int
    group_size: int = 64
    symmetric: bool = False
    half_scales: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits = {self.bits} is not offered: choose one of {', '.join(map(str, BITS))}")
        if self.group_size < 1:
            raise ValueError(f"group size must be at least 1, got {self.group_size}")

    @property
    def top(self) -> int:
        """Return the largest code, 2^bits - 1."""
        return 2**self.bits - 1

    def check(self, shape: tuple[int, int]) -> None:
        """Raise ValueError unless the group size divides d_in."""
        if shape[1] % self.group_size:
            raise ValueError(f"group size {self.group_size} does not divide d_in = {shape[1]}")

    def fit(self, weight: Array, gram: Array | None = None) -> BoundGrid:
        """Return the grid that spans each group's range: scale = (max(w, 0) - min(w, 0)) / (2^bits - 1).

        Args:
            weight: (d_out, d_in), float32 or float64.
            gram: accepted so that grids fitted to the objective share the signature; the range needs none.

        Raises:
            ValueError: a group size that does not divide d_in, or a range too large for float16 or the dtype.
        """
        self.check((weight.shape[0], weight.shape[1]))
        groups = weight.reshape(weight.shape[0], -1, self.group_size)
        low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
        if self.symmetric:
            scales = np.maximum(-low, high) / weight.dtype.type(2 ** (self.bits - 1) - 1)
        else:
            with np.errstate(over="ignore"):
                scales = (high - low) / weight.dtype.type(self.top)
        scales = usable_scales(scales, half=self.half_scales)
        if self.symmetric:
            zeros = np.full(scales.shape, 2 ** (self.bits - 1), dtype=np.uint8)
        else:
            zeros = np.clip(np.rint(-low / scales), 0, self.top).astype(np.uint8)
        return BoundGrid(self, scales, zeros)


@dataclass(frozen=True, eq=False)
class BoundGrid:
    """Round to {(code - zero) scale} with given scales.

    Args:
        spec: the grid's specification.
        scales: (d_out, d_in / group_size), positive, the dtype of the weights.
        zeros: same shape, uint8.
    """

    spec: IntGrid
    scales: Array
    zeros: Codes

    def round(self, z: Array) -> Array:
        """Return the nearest grid point of every entry, in Z's dtype."""
        return self.decode(self.encode(z)).astype(z.dtype, copy=False)

    def encode(self, z: Array) -> Codes:
        """Return code = clip(rint(z / scale) + zero, 0, 2^bits - 1), uint8, (d_out, d_in).

        True division, round half to even: the native twin agrees bit for bit.
        """
        with np.errstate(over="ignore"):  # an infinite quotient clips to the same code
            steps = np.rint(self._grouped(z) / self.scales[..., None].astype(z.dtype, copy=False))
        codes = np.clip(steps + self.zeros[..., None], 0, self.spec.top)
        return codes.astype(np.uint8).reshape(z.shape)

    def decode(self, codes: Codes) -> Array:
        """Return (code - zero) scale, (d_out, d_in), in the scales' dtype."""
        steps = self._grouped(codes).astype(np.int16) - self.zeros[..., None]
        return (steps.astype(self.scales.dtype) * self.scales[..., None]).reshape(codes.shape)

    def row(self, i: int) -> BoundGrid:
        """Return the grid of row i alone."""
        return BoundGrid(self.spec, self.scales[i : i + 1], self.zeros[i : i + 1])

    def round_column(self, z: Array, j: int) -> Array:
        """Return the nearest grid points of entries (d_out,) that all stand in column j, in Z's dtype."""
        group = j // self.spec.group_size
        scale, zero = self.scales[:, group].astype(z.dtype, copy=False), self.zeros[:, group].astype(z.dtype)
        with np.errstate(over="ignore"):
            steps = np.rint(z / scale)
        return (np.clip(steps + zero, 0, self.spec.top) - zero) * scale

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError for a matrix of another shape than the fitted one, or zero points of another than scales."""
        expected = (self.scales.shape[0], self.scales.shape[1] * self.spec.group_size)
        if shape != expected:
            raise ValueError(f"the grid was fitted to a {expected} matrix, got {shape}")
        if self.zeros.shape != self.scales.shape:
            raise ValueError(
                f"the grid has zeros of shape {self.zeros.shape}, but scales of {self.scales.shape}: give one a scale"
            )

    def _grouped(self, matrix: NDArray[np.generic]) -> NDArray[np.generic]:
        self.check(matrix.shape)
        return matrix.reshape(*self.scales.shape, self.spec.group_size)


def usable_scales(scales: Array, *, half: bool) -> Array:
    """Return scales that are positive (1 for an all-zero group) and, where asked, exactly a float16."""
    dtype = scales.dtype
    if not np.isfinite(scales).all():
        raise ValueError(f"a group spans more than {np.finfo(dtype).max:.4g}, the largest {dtype}")
    tiny = np.finfo(np.float16).smallest_subnormal if half else np.finfo(dtype).tiny
    if half:
        limit = float(np.finfo(np.float16).max)
        if scales.size and float(scales.max()) > limit:
            raise ValueError(
                f"a group needs the scale {float(scales.max()):.4g}, above float16's {limit:.0f}"
            )
        rounded = scales.astype(np.float16).astype(dtype)
    else:
        rounded = scales
    positive = np.maximum(rounded, dtype.type(tiny))
    return np.where(scales > 0, positive, dtype.type(1))
