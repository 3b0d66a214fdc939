"""Byte layouts of packed weights: the single definition that every writer and reader of an edge folder uses.

MatMulNBits (com.microsoft, version 1) stores a linear layer with N outputs and K inputs as

    blocks  uint8 (N, ceil(K / block), block * bits / 8)   codes in input order, low bits of a byte first
    scales  float32 (N, ceil(K / block))
    zeros   uint8 (N, ceil(ceil(K / block) * bits / 8))    integer zero points, low bits first, rows padded to whole
                                                           bytes; absent where every one is 2^(bits-1)

and computes weight = (code - zero) * scale. A weight is exactly 0 where its code equals its zero point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..constraints import interleaved
from ..errors import AwpError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

#: Width in the file of a code of each width: the operator has no 3-bit form.
STORED_BITS = {2: 2, 3: 4, 4: 4, 8: 8}
#: Block sizes that ONNX Runtime's fast kernels take.
BLOCK_SIZES = (16, 32, 64, 128, 256)


def pack_bits(values: Bytes, bits: int) -> Bytes:
    """Pack the last axis, `8 / bits` values a byte, low bits first; the last byte is filled with zeros.

    Args:
        values: (..., n) uint8, each below 2^bits.
        bits: 2, 4 or 8.

    Returns:
        (..., ceil(n * bits / 8)) uint8.

    Raises:
        ValueError: a value that does not fit, or bits of another width.
    """
    per_byte = _per_byte(bits)
    if values.size and int(values.max()) >> bits:
        raise ValueError(f"the value {int(values.max())} does not fit in {bits} bits")
    missing = -values.shape[-1] % per_byte
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
    lanes = padded.reshape(*values.shape[:-1], -1, per_byte)
    packed = np.zeros(lanes.shape[:-1], dtype=np.uint8)
    for lane in range(per_byte):
        packed |= lanes[..., lane] << np.uint8(lane * bits)
    return packed


def unpack_bits(packed: Bytes, bits: int, count: int) -> Bytes:
    """Return the first `count` values of the last axis: the inverse of `pack_bits`.

    Raises:
        ValueError: fewer bytes than `count` values need, or more.
    """
    per_byte = _per_byte(bits)
    if packed.shape[-1] != -(-count // per_byte):
        raise ValueError(
            f"{count} values of {bits} bits need {-(-count // per_byte)} bytes, got {packed.shape[-1]}"
        )
    mask = np.uint8(2**bits - 1)
    lanes = [(packed >> np.uint8(lane * bits)) & mask for lane in range(per_byte)]
    return np.stack(lanes, axis=-1).reshape(*packed.shape[:-1], -1)[..., :count]


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """Hold one linear layer in the layout of MatMulNBits.

    Args:
        blocks: (N, ceil(K / block_size), block_size * bits / 8) uint8.
        scales: (N, ceil(K / block_size)) float32.
        zeros: packed zero points, or None where every one is 2^(bits-1).
        bits: width of a stored code: 2, 4 or 8.
        block_size: inputs that share a scale.
        shape: (N, K).
        interleaved: the inputs are stored in the order of K/64 blocks and have to reach the operator in it.
    """

    blocks: Bytes
    scales: Floats
    zeros: Bytes | None
    bits: int
    block_size: int
    shape: tuple[int, int]
    interleaved: bool = False

    @property
    def n_bytes(self) -> int:
        """Return the bytes of codes, scales and zero points."""
        return self.blocks.nbytes + self.scales.nbytes + (self.zeros.nbytes if self.zeros is not None else 0)

    def codes(self) -> Bytes:
        """Return the codes in stored order, (N, K) uint8."""
        n_blocks = self.scales.shape[1]
        flat = unpack_bits(self.blocks, self.bits, self.block_size).reshape(
            self.shape[0], n_blocks * self.block_size
        )
        return flat[:, : self.shape[1]]

    def zero_points(self) -> Bytes:
        """Return the zero points, (N, ceil(K / block_size)) uint8."""
        if self.zeros is None:
            return np.full(self.scales.shape, 2 ** (self.bits - 1), dtype=np.uint8)
        return unpack_bits(self.zeros, self.bits, self.scales.shape[1])

    def zero_mask(self) -> NDArray[np.bool_]:
        """Return where the weight is exactly 0: code == zero point, (N, K), in stored order."""
        return self.codes() == self._spread(self.zero_points())

    def dense(self) -> Floats:
        """Return (code - zero) * scale, (N, K) float32, inputs in the model's order."""
        steps = self.codes().astype(np.int16) - self._spread(self.zero_points()).astype(np.int16)
        stored = steps.astype(np.float32) * self._spread(self.scales).astype(np.float32, copy=False)
        if not self.interleaved:
            return stored
        weight = np.empty_like(stored)
        weight[:, interleaved(self.shape[1])] = stored
        return weight

    def rows(self, start: int, stop: int) -> PackedLinear:
        """Return some of the rows, views."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        shape = (stop - start, self.shape[1])
        return replace(
            self, blocks=self.blocks[start:stop], scales=self.scales[start:stop], zeros=zeros, shape=shape
        )

    def _spread(self, per_block: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.repeat(per_block, self.block_size, axis=1)[:, : self.shape[1]]


def pack_linear(
    codes: Bytes, scales: NDArray[np.floating], zeros: Bytes, *, bits: int, block_size: int
) -> PackedLinear:
    """Pack one layer for MatMulNBits.

    Args:
        codes: (N, K) uint8, below 2^bits.
        scales: (N, ceil(K / block_size)), any float; widened to float32.
        zeros: same shape as scales, uint8, below 2^bits.
        bits: 2, 3, 4 or 8; 3-bit codes are stored in 4 bits.
        block_size: a power of two, at least 16; need not divide K: the last block is filled with code 0.

    Raises:
        ValueError: shapes that do not belong together, bits or block size that the operator has not.
    """
    n_blocks = -(-codes.shape[1] // block_size)
    if block_size < 16 or block_size & (block_size - 1):
        raise ValueError(f"block size {block_size} is not a power of two of at least 16")
    if scales.shape != (codes.shape[0], n_blocks) or zeros.shape != scales.shape:
        raise ValueError(
            f"codes {codes.shape} in blocks of {block_size} need scales and zeros "
            f"{(codes.shape[0], n_blocks)}, got {scales.shape} and {zeros.shape}"
        )
    stored = STORED_BITS[bits]
    filled = np.pad(codes, ((0, 0), (0, n_blocks * block_size - codes.shape[1])))
    blocks = pack_bits(filled.reshape(codes.shape[0], n_blocks, block_size), stored)
    default = bool((zeros == 2 ** (stored - 1)).all())
    packed_zeros = None if default else pack_bits(zeros, stored)
    return PackedLinear(blocks, scales.astype(np.float32), packed_zeros, stored, block_size, codes.shape)


def concatenate(parts: list[PackedLinear]) -> PackedLinear:
    """Stack the rows of layers that share their input, bits and block size.

    Raises:
        ValueError: parts of different bits, block size or inputs.
    """
    kinds = {(part.bits, part.block_size, part.shape[1], part.interleaved) for part in parts}
    if len(kinds) != 1:
        raise ValueError(
            f"layers of different (bits, block size, inputs, order) cannot be stacked: {sorted(kinds)}"
        )
    ((bits, block_size, columns, turned),) = kinds
    zeros = None
    if any(part.zeros is not None for part in parts):
        zeros = np.concatenate([pack_bits(part.zero_points(), bits) for part in parts])
    rows = sum(part.shape[0] for part in parts)
    blocks = np.concatenate([part.blocks for part in parts])
    scales = np.concatenate([part.scales for part in parts])
    return PackedLinear(blocks, scales, zeros, bits, block_size, (rows, columns), turned)


def check_block_size(name: str, d_in: int, group_size: int) -> None:
    """Refuse a group size that MatMulNBits does not take.

    Raises:
        AwpError: naming the layer, the group size and the sizes that would do.
    """
    if group_size >= BLOCK_SIZES[0] and not group_size & (group_size - 1):
        return
    fitting = [str(size) for size in BLOCK_SIZES if d_in % size == 0] or [str(size) for size in BLOCK_SIZES]
    raise AwpError(
        f"{name}: group size {group_size} is not a power of two of at least 16, which ONNX Runtime needs; "
        f"compress again with --group-size {' or '.join(fitting)}"
    )


def _per_byte(bits: int) -> int:
    if bits not in (2, 4, 8):
        raise ValueError(f"codes are stored in 2, 4 or 8 bits, not {bits}")
    return 8 // bits
