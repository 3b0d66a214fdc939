"""Byte layout of sparse INT4 weights: the single definition that the operator, its kernels and every test follow.

Version 1. A linear layer with N outputs and K inputs (64 divides K) keeps some weights (code - zero) * scale; the
others are exactly 0. Rows are stored in tiles of T = 16, the last one filled up with rows of scale 0. Inputs are cut
into B = K / 64 blocks; input i of block b is b + i B where the layer is interleaved, else 64 b + i. Little-endian.

    masks    uint64 (N/T, B, T)     bit i: input i of the block is kept
    codes    uint8  (64 + n + 64,)  codes of the kept inputs in ascending order, tile after tile; 64 zero bytes before
                                    and behind, so that a kernel may read past either end
    scales   float16 (N/T, G, T)    of groups of `block_size` = 64 or 128 inputs in the order of the blocks
    zeros    uint64 (N/T, G)        nibble r, lowest first: the zero point of row r; absent where every one is 8
    offsets  uint64 (N/T + 1,)      a tile's first byte in the codes, the end of the last; absent where `kept` >= 0

Within a tile the codes go over pairs of blocks, and within a pair over the 16 rows: code j of the even block in the low
nibble of byte j, code j of the odd block in its high nibble, max(counts) bytes, unused nibbles 0. An odd last block
follows, row after row, two codes a byte, low nibble first, ceil(count / 2) bytes.

Where every block keeps the same number, `kept` is that number: a fixed stride of kept bytes a pair. A block that keeps
fewer (a kept weight was rounded to 0) is filled up with its first zeros, stored with the zero point as their code.
Otherwise `kept` is -1 and the masks alone say how many codes there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..constraints import interleaved
from .packing import Bytes

FORMAT_VERSION = 1
TILE, BLOCK, GUARD = 16, 64, 64
GROUPS = (128, 64)
#: A fixed number of codes a block may cost this much more than as many as each block needs.
FIXED_SURPLUS = 1.02

Mask = NDArray[np.bool_]
Words = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Hold a layer before packing, inputs in the model's order.

    codes: uint8 (N, K) below 16.  mask: bool (N, K), False where the weight is exactly 0.
    scales: (N, G), float16 values.  zeros: uint8 (N, G).  G groups of K / G inputs, consecutive or, if `interleaved`,
    consecutive in the order of the blocks.
    """

    codes: Bytes
    mask: Mask
    scales: NDArray[np.floating]
    zeros: Bytes
    interleaved: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Return (N, K)."""
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, start: int, stop: int) -> SparseCodes:
        """Return some of the rows, views."""
        parts = (part[start:stop] for part in (self.codes, self.mask, self.scales, self.zeros))
        return SparseCodes(*parts, self.interleaved)


def stack(parts: Sequence[SparseCodes]) -> SparseCodes:
    """Stack the rows of layers that share their input.

    Raises:
        ValueError: parts of different inputs, groups or order.
    """
    kinds = {(part.shape[1], part.scales.shape[1], part.interleaved) for part in parts}
    if len(kinds) != 1:
        raise ValueError(f"layers of different (inputs, groups, order) cannot be stacked: {sorted(kinds)}")
    columns = zip(*((p.codes, p.mask, p.scales, p.zeros) for p in parts), strict=True)
    codes, mask, scales, zeros = (np.concatenate(column) for column in columns)
    return SparseCodes(codes, mask, scales, zeros, parts[0].interleaved)


def fits(d_in: int, group_size: int) -> bool:
    """Return whether a layer can be packed: 64 divides its inputs and the group size."""
    return d_in > 0 and d_in % BLOCK == 0 and group_size % BLOCK == 0 and d_in % group_size == 0


@dataclass(frozen=True, eq=False)
class SparseLinear:
    """Hold one packed layer; the fields are those of the layout above, `shape` is (N, K)."""

    masks: Words
    codes: Bytes
    scales: NDArray[np.float16]
    zeros: Words | None
    offsets: Words | None
    block_size: int
    kept: int
    interleaved: bool
    shape: tuple[int, int]

    @property
    def n_bytes(self) -> int:
        """Return the bytes of everything that is stored."""
        parts = (self.masks, self.codes, self.scales, self.zeros, self.offsets)
        return sum(part.nbytes for part in parts if part is not None)

    def unpack(self) -> SparseCodes:
        """Return what was packed: the inverse of `pack_sparse` up to codes of pruned weights and filled-up masks.

        A pruned weight comes back with its zero point as code. Group sizes are those stored (64 or 128).

        Raises:
            ValueError: parts whose sizes or counts contradict each other.
        """
        _check_sizes(self)
        mask = _rows_of(_bits(self.masks))
        zeros = _rows_of(_zero_points(self)).reshape(len(mask), -1)
        codes = np.repeat(zeros, self.block_size, axis=1).reshape(mask.shape)
        _take_codes(self, mask, codes)
        scales = _rows_of(self.scales).reshape(len(mask), -1)
        order = block_order(self.shape[1], turned=self.interleaved)
        rows = self.shape[0]
        flat_codes, flat_mask = (np.empty((len(mask), self.shape[1]), part.dtype) for part in (codes, mask))
        flat_codes[:, order], flat_mask[:, order] = codes.reshape(len(mask), -1), mask.reshape(len(mask), -1)
        return SparseCodes(flat_codes[:rows], flat_mask[:rows], scales[:rows], zeros[:rows], self.interleaved)

    def dense(self) -> NDArray[np.float32]:
        """Return the weight, (code - zero) * scale where kept and 0 elsewhere, (N, K) float32."""
        parts = self.unpack()
        order = block_order(self.shape[1], turned=self.interleaved)
        steps = (
            parts.codes[:, order].reshape(*parts.scales.shape, -1).astype(np.int16) - parts.zeros[..., None]
        )
        weight = np.empty(self.shape, dtype=np.float32)
        weight[:, order] = (steps.astype(np.float32) * parts.scales[..., None].astype(np.float32)).reshape(
            self.shape
        )
        return weight * parts.mask


def pack_sparse(layer: SparseCodes) -> SparseLinear:
    """Pack one layer.

    Raises:
        ValueError: 64 does not divide the inputs or the group, codes that do not fit, scales that float16 cannot hold,
            or a weight outside the mask that is not 0.
    """
    rows, d_in = layer.shape
    _check(layer)
    order = block_order(d_in, turned=layer.interleaved)
    group = 128 if (d_in // layer.scales.shape[1]) % 128 == 0 else 64
    repeat = d_in // layer.scales.shape[1] // group
    scales, zeros = (np.repeat(part, repeat, axis=1) for part in (layer.scales, layer.zeros))
    codes, mask = (part[:, order].reshape(rows, -1, BLOCK) for part in (layer.codes, layer.mask))
    counts = mask.sum(axis=2)
    kept = int(counts.max(initial=0))
    if _is_fixed(counts, kept):
        mask = _filled(mask, kept)
    else:
        kept = -1
    tiles = -(-rows // TILE)
    extra = tiles * TILE - rows
    if extra:
        blank = np.zeros((extra, *mask.shape[1:]), dtype=bool)
        blank[:, :, : max(kept, 0)] = True
        mask, codes = np.concatenate([mask, blank]), np.pad(codes, ((0, extra), (0, 0), (0, 0)))
        scales, zeros = (np.pad(part, ((0, extra), (0, 0))) for part in (scales, zeros))
    stream, starts = _stream(codes, mask)
    guarded = np.pad(stream, GUARD)
    nibbles = None if (zeros[:rows] == 8).all() else _nibbles(_tiled(zeros))
    return SparseLinear(
        _words(_tiled(mask)), guarded, _tiled(scales.astype(np.float16)), nibbles, None if kept >= 0 else starts,
        group, kept, layer.interleaved, (rows, d_in),
    )  # fmt: skip


def can_join(first: SparseLinear, second: SparseLinear) -> bool:
    """Return whether two layers are stored alike and fill their tiles, as `joined` needs."""
    kinds = {(p.shape, p.block_size, p.kept, p.interleaved) for p in (first, second)}
    return len(kinds) == 1 and first.shape[0] % TILE == 0


def joined(first: SparseLinear, second: SparseLinear) -> SparseLinear:
    """Return two layers as one, the rows of the second behind those of the first; `halves` takes them apart.

    Raises:
        ValueError: layers that are not stored alike or do not fill their tiles.
    """
    if not can_join(first, second):
        raise ValueError(f"layers of shapes {first.shape} and {second.shape} are not stored alike")
    both = (first, second)
    zeros = [p.zeros if p.zeros is not None else _nibbles(_zero_points(p)) for p in both]
    offsets = None
    if first.offsets is not None and second.offsets is not None:
        offsets = np.concatenate([first.offsets[:-1], first.offsets[-1] + second.offsets])
    return SparseLinear(
        np.concatenate([p.masks for p in both]), np.pad(np.concatenate([_stored(p) for p in both]), GUARD),
        np.concatenate([p.scales for p in both]),
        None if first.zeros is None and second.zeros is None else np.concatenate(zeros), offsets,
        first.block_size, first.kept, first.interleaved, (2 * first.shape[0], first.shape[1]),
    )  # fmt: skip


def halves(packed: SparseLinear) -> tuple[SparseLinear, SparseLinear]:
    """Return the layers that `joined` put together."""
    tiles, stream = len(packed.masks) // 2, _stored(packed)
    starts = packed.offsets
    middle = len(stream) // 2 if starts is None else int(starts[tiles])
    found = []
    for half, codes in ((slice(tiles), stream[:middle]), (slice(tiles, None), stream[middle:])):
        zeros = None if packed.zeros is None else packed.zeros[half]
        offsets = None if starts is None else starts[half.start or 0 : (half.stop or 2 * tiles) + 1]
        found.append(SparseLinear(
            packed.masks[half], np.pad(codes, GUARD), packed.scales[half], zeros,
            None if offsets is None else offsets - offsets[0], packed.block_size, packed.kept, packed.interleaved,
            (packed.shape[0] // 2, packed.shape[1]),
        ))  # fmt: skip
    return found[0], found[1]


def _stored(packed: SparseLinear) -> Bytes:
    """Return the codes without their guards, a view."""
    return packed.codes[GUARD:-GUARD]


def _check(layer: SparseCodes) -> None:
    d_in, n_groups = layer.shape[1], layer.scales.shape[1]
    if not n_groups or d_in % n_groups or not fits(d_in, d_in // n_groups):
        raise ValueError(f"{d_in} inputs in {n_groups} groups: 64 must divide the inputs and the group size")
    if layer.codes.size and max(int(layer.codes.max()), int(layer.zeros.max())) > 15:
        raise ValueError("codes and zero points must lie below 16")
    half = layer.scales.astype(np.float16)
    if not np.array_equal(half.astype(layer.scales.dtype), layer.scales):
        raise ValueError("scales are not float16 values")
    order = block_order(d_in, turned=layer.interleaved)
    grouped = layer.codes[:, order].reshape(*layer.scales.shape, -1) != layer.zeros[..., None]
    if np.any(grouped.reshape(layer.shape) & ~layer.mask[:, order]):
        raise ValueError("a weight outside the mask is not zero")


def block_order(d_in: int, *, turned: bool) -> NDArray[np.intp]:
    """Return the inputs in the order of the blocks: interleaved ones where `turned`, else as they are."""
    return interleaved(d_in, BLOCK) if turned else np.arange(d_in)


def _is_fixed(counts: NDArray[np.intp], kept: int) -> bool:
    paired = counts[:, : counts.shape[1] // 2 * 2].reshape(len(counts), -1, 2)
    needed = paired.max(axis=2, initial=0).sum() + (counts[:, paired.shape[1] * 2 :].sum() + 1) / 2
    fixed = len(counts) * (paired.shape[1] * kept + counts.shape[1] % 2 * kept / 2)
    return bool(fixed <= FIXED_SURPLUS * needed)


def _filled(mask: Mask, kept: int) -> Mask:
    """Return masks with `kept` bits a block: the first cleared ones are set where there are fewer."""
    missing = kept - mask.sum(axis=2, keepdims=True)
    return mask | (~mask & (np.cumsum(~mask, axis=2) <= missing))


def _tiled(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return (tiles, ..., 16, rest) from (rows, ..., rest): rows of a tile side by side."""
    shape = (len(rows) // TILE, TILE, *rows.shape[1:])
    return np.ascontiguousarray(np.moveaxis(rows.reshape(shape), 1, 2))


def _rows_of(tiled: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return (rows, blocks, ...) from (tiles, blocks, 16, ...): the inverse of `_tiled`."""
    moved = np.moveaxis(tiled, 2, 1)
    return np.ascontiguousarray(moved).reshape(-1, *moved.shape[2:])


def _words(mask: Mask) -> Words:
    return np.packbits(mask, axis=-1, bitorder="little").view("<u8")[..., 0].astype(np.uint64)


def _bits(words: Words) -> Mask:
    shape = (*words.shape, 8)
    octets = np.ascontiguousarray(words.astype("<u8")).view(np.uint8).reshape(shape)
    return np.unpackbits(octets, axis=-1, bitorder="little").astype(bool)


def _nibbles(zeros: Bytes) -> Words:
    """Return (tiles, G) words from (tiles, G, 16) zero points."""
    shifts = np.arange(TILE, dtype=np.uint64) * np.uint64(4)
    return np.bitwise_or.reduce(zeros.astype(np.uint64) << shifts, axis=-1)


def _zero_points(packed: SparseLinear) -> Bytes:
    if packed.zeros is None:
        return np.full(packed.scales.shape, 8, dtype=np.uint8)
    shifts = np.arange(TILE, dtype=np.uint64) * np.uint64(4)
    return ((packed.zeros[..., None] >> shifts) & np.uint64(15)).astype(np.uint8)


@dataclass(frozen=True)
class _Places:
    """Say where the codes of every block lie: start byte (rows, blocks) and the byte where each tile begins."""

    starts: NDArray[np.int64]
    tiles: Words


def _places(counts: NDArray[np.int64]) -> _Places:
    """Lay out blocks with these counts of codes, (rows, blocks): pairs first, rows within a pair, the odd one last."""
    rows, blocks = counts.shape
    n_pairs = blocks // 2
    lengths = counts[:, : 2 * n_pairs].reshape(rows, n_pairs, 2).max(axis=2, initial=0)
    if blocks % 2:
        lengths = np.concatenate([lengths, (counts[:, -1:] + 1) // 2], axis=1)
    tiled = _tiled(lengths)
    ends = np.cumsum(tiled.ravel()).astype(np.int64)
    starts = _rows_of((ends - tiled.ravel()).reshape(tiled.shape))
    both = np.repeat(starts, 2, axis=1)[:, :blocks]
    tiles = np.concatenate([[0], ends.reshape(len(tiled), -1)[:, -1]]) if rows else np.zeros(1)
    return _Places(both, tiles.astype(np.uint64))


def _positions(mask: Mask) -> tuple[NDArray[np.int64], Mask, _Places]:
    """Return, for every kept weight in (row, block, input) order, its byte and whether it is in the high nibble."""
    counts = mask.sum(axis=2).astype(np.int64)
    places = _places(counts)
    rank = (np.cumsum(mask, axis=2) - 1)[mask]
    row, block, _ = np.nonzero(mask)
    start, odd_last = places.starts[row, block], (block == mask.shape[1] - 1) & (mask.shape[1] % 2 == 1)
    byte = start + np.where(odd_last, rank // 2, rank)
    high = np.where(odd_last, rank % 2, block % 2).astype(bool)
    return byte, high, places


def _stream(codes: Bytes, mask: Mask) -> tuple[Bytes, Words]:
    byte, high, places = _positions(mask)
    stream = np.zeros(int(places.tiles[-1]), dtype=np.uint8)
    values = codes[mask]
    stream[byte[~high]] = values[~high]
    stream[byte[high]] |= values[high] << np.uint8(4)
    return stream, places.tiles


def _take_codes(packed: SparseLinear, mask: Mask, codes: Bytes) -> None:
    """Write the stored codes into (rows, blocks, 64)."""
    byte, high, places = _positions(mask)
    stream = _stored(packed)
    if len(stream) != int(places.tiles[-1]):
        raise ValueError(f"the masks keep {int(places.tiles[-1])} bytes of codes, there are {len(stream)}")
    if packed.offsets is not None and not np.array_equal(packed.offsets, places.tiles):
        raise ValueError("the offset table does not follow from the masks")
    if packed.kept >= 0 and np.any(mask.sum(axis=2) != packed.kept):
        raise ValueError(f"a mask keeps another number of weights than {packed.kept}")
    values = stream[byte]
    codes[mask] = np.where(high, values >> np.uint8(4), values & np.uint8(15))


def _check_sizes(packed: SparseLinear) -> None:
    rows, d_in = packed.shape
    if packed.block_size not in GROUPS or rows < 1 or not fits(d_in, packed.block_size):
        raise ValueError(f"a {packed.shape} layer in groups of {packed.block_size} has no sparse layout")
    tiles = -(-rows // TILE)
    wanted = {"masks": (tiles, d_in // BLOCK, TILE), "scales": (tiles, d_in // packed.block_size, TILE),
              "zeros": (tiles, d_in // packed.block_size), "offsets": (tiles + 1,)}  # fmt: skip
    for name, shape in wanted.items():
        part = getattr(packed, name)
        if part is not None and part.shape != shape:
            raise ValueError(f"{name} have shape {part.shape}, a {packed.shape} layer needs {shape}")
    if packed.codes.ndim != 1 or len(packed.codes) < 2 * GUARD:
        raise ValueError(f"the codes lack their {GUARD} guard bytes on either side")
    if (packed.offsets is None) != (packed.kept >= 0):
        raise ValueError("offsets belong to kept = -1 and to nothing else")
