"""What the sparse operator computes, in NumPy: its integer arithmetic exactly, its float sums in the same order.

For int8 inputs (accuracy level 4), with groups g of inputs in the order of the blocks,

    a_g = max |x_j|,  steps q_j = rint(x_j * (127 / a_g)),  input scale t_g = a_g / 127        all float32
    y_n = sum over g ascending of float32(sum_j (code_nj - zero_ng) q_j) * (s_ng * t_g)        each rounded once

A group whose inputs are all below 128 times the smallest normal float32 counts as zero. A gated product is
silu(y_n) y_(n + N/2), n < N/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sparse_packing import SparseLinear, block_order

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Quantized:
    """Hold rows of inputs as the operator takes them: steps int32 (rows, G, inputs of a group), scales (rows, G)."""

    steps: NDArray[np.int32]
    scales: Floats


def quantize(packed: SparseLinear, x: Floats) -> Quantized:
    """Return the int8 steps of float32 inputs (rows, K), in the order of the blocks."""
    ordered = x[:, block_order(packed.shape[1], turned=packed.interleaved)]
    groups = ordered.reshape(len(x), packed.shape[1] // packed.block_size, packed.block_size)
    most = np.abs(groups).max(axis=2, initial=0)
    tiny = most < np.finfo(np.float32).tiny * 128
    inverse = np.where(tiny, np.float32(0), np.float32(127) / np.where(tiny, np.float32(1), most))
    return Quantized(np.rint(groups * inverse[..., None]).astype(np.int32), most / np.float32(127))


def integer_sums(packed: SparseLinear, inputs: Quantized) -> NDArray[np.int32]:
    """Return sum_j (code - zero) q_j of every group, (rows, N, G): what every kernel adds up in 32 bits."""
    parts = packed.unpack()
    order = block_order(packed.shape[1], turned=packed.interleaved)
    grouped = parts.codes[:, order].reshape(*parts.zeros.shape, -1).astype(np.int32)
    weights = (grouped - parts.zeros[..., None]) * parts.mask[:, order].reshape(grouped.shape)
    return np.einsum("ngj,rgj->rng", weights, inputs.steps, dtype=np.int32)


def multiply(packed: SparseLinear, x: Floats) -> Floats:
    """Return x W^T as the operator does at accuracy level 4, bit for bit: (rows, N) float32."""
    inputs = quantize(packed, x)
    sums = integer_sums(packed, inputs).astype(np.float32)
    scales = packed.unpack().scales.astype(np.float32)
    total = np.zeros((len(x), packed.shape[0]), dtype=np.float32)
    for group in range(scales.shape[1]):
        total += sums[:, :, group] * (scales[None, :, group] * inputs.scales[:, group, None])
    return total


def multiply_gated(packed: SparseLinear, x: Floats) -> Floats:
    """Return silu(x G^T) (x U^T) as SparseGatedMatMulNBits does, bit for bit: (rows, N / 2); W is G over U."""
    gate, up = np.split(multiply(packed, x), 2, axis=1)
    return silu(gate) * up


def silu(x: Floats) -> Floats:
    """Return x / (1 + e^-x) in float32, every operation rounded once; the exponential is that of Cephes' expf.

    An x below -88 counts as -88, whose product is 0 but for 37 digits.
    """
    f = np.float32
    x = np.maximum(x, f(-88))
    t = np.maximum(-x, f(-87))
    n = (t * f(1.44269504) + f(12582912)) - f(12582912)
    r = (t - n * f(0.693359375)) - n * f(-2.12194440e-4)
    p = np.full_like(r, f(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f(c)
    power = np.ldexp(f(1), np.nan_to_num(n).astype(np.int32))
    return x / (f(1) + (p * (r * r) + r + f(1)) * power)
