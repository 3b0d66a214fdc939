"""The sparse byte layout: exact round trips, the documented bytes, and refusal of what does not hold together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from awp_edge.export import library
from awp_edge.export.sparse_packing import (
    GUARD,
    SparseCodes,
    SparseLinear,
    block_order,
    fits,
    halves,
    joined,
    pack_sparse,
    stack,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_layers import random_layer

from awp_edge.artifacts import sparse_bits


def dense_of(layer: SparseCodes) -> np.ndarray:
    order = block_order(layer.shape[1], turned=layer.interleaved)
    group = layer.shape[1] // layer.scales.shape[1]
    weight = np.empty(layer.shape, dtype=np.float32)
    steps = layer.codes[:, order].astype(np.float32) - np.repeat(layer.zeros, group, axis=1)
    weight[:, order] = steps * np.repeat(layer.scales.astype(np.float32), group, axis=1)
    return weight


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    blocks=st.integers(1, 6),
    wide=st.booleans(),
    kept=st.sampled_from([None, 1, 7, 16, 20, 24, 32, 33, 64]),
    turned=st.booleans(),
    seed=st.integers(0, 5),
)
def test_round_trip(*, rows: int, blocks: int, wide: bool, kept: int | None, turned: bool, seed: int) -> None:
    group = 128 if wide and blocks % 2 == 0 else 64
    layer = random_layer((rows, 64 * blocks), group=group, kept=kept, turned=turned, seed=seed)
    packed = pack_sparse(layer)
    back = packed.unpack()
    np.testing.assert_array_equal(back.codes, layer.codes)
    np.testing.assert_array_equal(back.mask & ~layer.mask, False if kept is None else back.mask & ~layer.mask)
    assert not (layer.mask & ~back.mask).any()
    np.testing.assert_array_equal(back.zeros, layer.zeros)
    np.testing.assert_array_equal(back.scales, layer.scales)
    np.testing.assert_array_equal(packed.dense(), dense_of(layer))
    assert packed.kept in (kept, -1) if kept else True


@pytest.mark.parametrize("kept", [32, 7, None])
@pytest.mark.parametrize("blocks", [2, 3])
def test_joined_layers_are_the_stacked_ones(kept: int | None, blocks: int) -> None:
    layers = [random_layer((32, 64 * blocks), kept=kept, seed=seed) for seed in (0, 1)]
    layers[0].zeros[:] = 8  # stored without zero points
    layers[0].codes[~layers[0].mask] = 8
    both = joined(*map(pack_sparse, layers))
    assert both.n_bytes == pack_sparse(stack(layers)).n_bytes and library.check(both, gated=True) is None
    np.testing.assert_array_equal(both.dense(), np.concatenate([dense_of(layer) for layer in layers]))
    for half, layer in zip(halves(both), layers, strict=True):
        assert library.check(half) is None
        np.testing.assert_array_equal(half.dense(), dense_of(layer))


@pytest.mark.parametrize(
    "other", [dict(shape=(16, 128)), dict(shape=(32, 128), kept=16), dict(shape=(24, 128))]
)
def test_unlike_layers_are_not_joined(other: dict[str, object]) -> None:
    first = pack_sparse(random_layer((other["shape"][0] if other["shape"][0] == 24 else 32, 128)))
    with pytest.raises(ValueError, match="are not stored alike"):
        joined(first, pack_sparse(random_layer(**other)))


def test_the_documented_bytes() -> None:
    """Two blocks of 64 inputs, interleaved: inputs 0, 2, 4, ... are block 0."""
    mask = np.zeros((1, 128), dtype=bool)
    codes = np.full((1, 128), 8, dtype=np.uint8)
    mask[0, [0, 6, 126]] = True  # block 0, inputs 0, 3, 63
    mask[0, [1, 3, 127]] = True  # block 1, inputs 0, 1, 63
    codes[0, [0, 6, 126]], codes[0, [1, 3, 127]] = [1, 2, 3], [4, 5, 6]
    layer = SparseCodes(codes, mask, np.ones((1, 1), np.float16), np.full((1, 1), 8, np.uint8), True)
    packed = pack_sparse(layer)
    assert packed.kept == 3 and packed.block_size == 128 and packed.zeros is None and packed.offsets is None
    assert packed.masks[0, 0, 0] == 1 | 1 << 3 | 1 << 63 and packed.masks[0, 1, 0] == 1 | 1 << 1 | 1 << 63
    assert packed.masks[0, 0, 5] == 7  # a row that fills up the tile
    np.testing.assert_array_equal(packed.codes[GUARD : GUARD + 3], [0x41, 0x52, 0x63])
    assert len(packed.codes) == GUARD + 16 * 3 + GUARD and not packed.codes[:GUARD].any()


def test_an_odd_last_block_is_in_order() -> None:
    layer = random_layer((16, 64), kept=3)
    packed = pack_sparse(layer)
    codes = layer.codes[0][layer.mask[0]]
    np.testing.assert_array_equal(packed.codes[GUARD : GUARD + 2], [codes[0] | codes[1] << 4, codes[2]])


def test_a_kept_weight_that_was_rounded_to_zero_is_filled_up() -> None:
    layer = random_layer((16, 128), kept=32)
    mask = layer.mask.copy()
    kept = np.flatnonzero(mask[3])[:2]
    mask[3, kept] = False
    codes = layer.codes.copy()
    order = np.argsort(block_order(128, turned=True))
    codes[3, kept] = layer.zeros[3, order[kept] // 64]
    packed = pack_sparse(replace(layer, mask=mask, codes=codes))
    assert packed.kept == 32 and packed.offsets is None
    np.testing.assert_array_equal(packed.unpack().codes, codes)


def test_sizes() -> None:
    """3.25 bits a weight at 32/64 with scales of 64, 3.125 with 128; a sixteenth more for zero points of 64."""
    weights = 160 * 1280
    for group, bits in ((64, 3.3125), (128, 3.15625)):
        packed = pack_sparse(random_layer((160, 1280), group=group))
        assert 8 * (packed.n_bytes - 2 * GUARD) == bits * weights
    for rows, d_in, group in ((33, 192, 64), (16, 256, 128)):
        packed = pack_sparse(random_layer((rows, d_in), group=group, kept=24))
        assert 8 * packed.n_bytes == sparse_bits((rows, d_in), kept=24, group_size=group)
    packed = pack_sparse(random_layer((160, 1280), kept=None))
    assert packed.kept == -1 and 3.3125 < 8 * packed.n_bytes / weights < 3.55


def test_stacking_and_rows() -> None:
    a, b = random_layer((5, 128), seed=1), random_layer((20, 128), seed=2)
    both = pack_sparse(stack([a, b.rows(3, 9)]))
    np.testing.assert_array_equal(both.dense(), np.concatenate([dense_of(a), dense_of(b)[3:9]]))
    with pytest.raises(ValueError, match="cannot be stacked"):
        stack([a, random_layer((5, 128), turned=False)])


def test_wider_groups_are_stored_as_128() -> None:
    layer = random_layer((4, 512), group=256)
    packed = pack_sparse(layer)
    assert packed.block_size == 128
    np.testing.assert_array_equal(packed.dense(), dense_of(layer))


def test_layers_that_do_not_fit() -> None:
    layer = random_layer((4, 128))
    assert fits(192, 64) and not fits(192, 128) and not fits(96, 32) and not fits(0, 64)
    for wrong, message in (
        (replace(layer, scales=layer.scales[:, :0], zeros=layer.zeros[:, :0]), "64 must divide"),
        (replace(layer, codes=layer.codes + np.uint8(8)), "below 16"),
        (replace(layer, scales=layer.scales.astype(np.float32) + 1e-6), "not float16 values"),
        (replace(layer, mask=np.zeros_like(layer.mask)), "outside the mask is not zero"),
    ):
        with pytest.raises(ValueError, match=message):
            pack_sparse(wrong)


DAMAGE = {
    "a bit of a mask": lambda p: replace(p, masks=_flip(p.masks)),
    "no guard": lambda p: replace(p, codes=p.codes[:100]),
    "a code too few": lambda p: replace(p, codes=p.codes[:-1]),
    "a code too many": lambda p: replace(p, codes=np.append(p.codes, np.uint8(0))),
    "another count": lambda p: replace(p, kept=31),
    "kept without offsets": lambda p: replace(p, kept=-1),
    "no scales": lambda p: replace(p, scales=p.scales[:0]),
    "half the scales": lambda p: replace(p, block_size=128),
    "other inputs": lambda p: replace(p, shape=(p.shape[0], p.shape[1] + 64)),
    "other rows": lambda p: replace(p, shape=(p.shape[0] + 16, p.shape[1])),
    "no rows": lambda p: replace(p, shape=(0, p.shape[1])),
    "huge rows": lambda p: replace(p, shape=(2**60, p.shape[1])),
    "short zeros": lambda p: replace(p, zeros=p.zeros[:0]),
}


def _flip(masks: np.ndarray) -> np.ndarray:
    changed = masks.copy()
    changed[0, 1, 2] ^= np.uint64(1 << 40)
    return changed


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_by_reader_and_operator(kind: str) -> None:
    packed = pack_sparse(random_layer((33, 192)))
    assert library.check(packed) is None
    damaged: SparseLinear = DAMAGE[kind](packed)
    with pytest.raises(ValueError):
        damaged.unpack()
    assert library.check(damaged)


def test_a_damaged_offset_table_is_found() -> None:
    packed = pack_sparse(random_layer((33, 192), kept=None))
    assert packed.offsets is not None and library.check(packed) is None
    offsets = packed.offsets.copy()
    offsets[1] += np.uint64(1)
    damaged = replace(packed, offsets=offsets)
    assert "offset table" in str(library.check(damaged))
    with pytest.raises(ValueError, match="offset table"):
        damaged.unpack()
