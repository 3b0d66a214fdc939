"""Byte layouts: exact round trips, and the operator of ONNX Runtime as the independent reader."""

from __future__ import annotations

import numpy as np
import pytest
from awp_edge.export.head import head_grid, pack_head
from awp_edge.export.packing import (
    STORED_BITS,
    PackedLinear,
    check_block_size,
    concatenate,
    pack_bits,
    pack_linear,
    unpack_bits,
)
from hypothesis import given
from hypothesis import strategies as st

from awp_edge.errors import AwpError


def random_layer(
    shape: tuple[int, int], *, bits: int, block_size: int, seed: int = 0
) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    n_blocks = -(-shape[1] // block_size)
    codes = rng.integers(0, 2**bits, shape, dtype=np.uint8)
    scales = rng.uniform(0.01, 1, (shape[0], n_blocks)).astype(np.float16)
    zeros = rng.integers(0, 2**bits, scales.shape, dtype=np.uint8)
    return codes, scales, zeros


def packed_layer(shape: tuple[int, int], *, bits: int, block_size: int, seed: int = 0) -> PackedLinear:
    codes, scales, zeros = random_layer(shape, bits=bits, block_size=block_size, seed=seed)
    return pack_linear(codes, scales, zeros, bits=bits, block_size=block_size)


@given(bits=st.sampled_from([2, 4, 8]), n=st.integers(0, 40), seed=st.integers(0, 9))
def test_bits_round_trip(bits: int, n: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (3, n), dtype=np.uint8)
    packed = pack_bits(values, bits)
    assert packed.shape == (3, -(-n * bits // 8))
    np.testing.assert_array_equal(unpack_bits(packed, bits, n), values)


def test_low_bits_come_first() -> None:
    np.testing.assert_array_equal(pack_bits(np.array([[1, 2, 3]], np.uint8), 4), [[0x21, 0x03]])
    np.testing.assert_array_equal(pack_bits(np.array([[1, 2, 3, 0, 2]], np.uint8), 2), [[0b00111001, 0b10]])


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    block=st.sampled_from([16, 32, 64]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 200),
    seed=st.integers(0, 9),
)
def test_layer_round_trip(bits: int, block: int, rows: int, columns: int, seed: int) -> None:
    codes, scales, zeros = random_layer((rows, columns), bits=bits, block_size=block, seed=seed)
    packed = pack_linear(codes, scales, zeros, bits=bits, block_size=block)
    n_blocks = -(-columns // block)
    assert packed.blocks.shape == (rows, n_blocks, block * STORED_BITS[bits] // 8)
    np.testing.assert_array_equal(packed.codes(), codes)
    np.testing.assert_array_equal(packed.zero_points(), zeros)
    group = np.arange(columns) // block
    expected = (codes.astype(np.float32) - zeros[:, group]) * scales.astype(np.float32)[:, group]
    np.testing.assert_array_equal(packed.dense(), expected)
    np.testing.assert_array_equal(packed.zero_mask(), codes == zeros[:, group])


def test_default_zero_points_are_left_out() -> None:
    codes, scales, zeros = random_layer((3, 64), bits=4, block_size=32)
    assert pack_linear(codes, scales, np.full_like(zeros, 8), bits=4, block_size=32).zeros is None
    assert pack_linear(codes % 8, scales, np.full_like(zeros, 4), bits=3, block_size=32).zeros is not None


def test_concatenate_keeps_every_row() -> None:
    asymmetric = packed_layer((3, 96), bits=4, block_size=32)
    codes, scales, zeros = random_layer((2, 96), bits=4, block_size=32, seed=1)
    symmetric = pack_linear(codes, scales, np.full_like(zeros, 8), bits=4, block_size=32)
    both = concatenate([asymmetric, symmetric])
    np.testing.assert_array_equal(both.dense(), np.concatenate([asymmetric.dense(), symmetric.dense()]))
    with pytest.raises(ValueError, match="cannot be stacked"):
        concatenate([asymmetric, packed_layer((3, 96), bits=4, block_size=16)])


def test_bad_arguments_are_refused() -> None:
    codes, scales, zeros = random_layer((3, 64), bits=4, block_size=32)
    with pytest.raises(ValueError, match="power of two"):
        pack_linear(codes, scales, zeros, bits=4, block_size=24)
    with pytest.raises(ValueError, match="need scales and zeros"):
        pack_linear(codes, scales[:, :1], zeros, bits=4, block_size=32)
    with pytest.raises(ValueError, match="does not fit"):
        pack_linear(codes + np.uint8(8), scales, zeros, bits=3, block_size=32)
    with pytest.raises(AwpError, match="--group-size 16 or 32 or 64"):
        check_block_size("layer", 192, 48)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("columns", "block"), [(64, 32), (96, 32), (80, 32), (48, 16)])
def test_onnx_runtime_reads_the_same_weights(bits: int, columns: int, block: int) -> None:
    """The operator applied to the identity returns the dense weight."""
    helper = pytest.importorskip("onnx.helper")
    runtime = pytest.importorskip("onnxruntime")
    packed = packed_layer((5, columns), bits=bits, block_size=block)
    feeds = {
        "a": np.eye(columns, dtype=np.float32),
        "b": packed.blocks,
        "s": packed.scales,
        "z": packed.zeros,
    }
    constants = [
        helper.make_tensor(key, 1 if key == "s" else 2, value.shape, value.tobytes(), raw=True)
        for key, value in feeds.items()
        if key != "a"
    ]
    node = helper.make_node(
        "MatMulNBits",
        ["a", "b", "s", "z"],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=5,
        bits=bits,
        block_size=block,
        accuracy_level=0,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("a", 1, [columns, columns])],
        [helper.make_tensor_value_info("y", 1, [columns, 5])],
        constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"a": feeds["a"]})
    np.testing.assert_allclose(y.T, packed.dense(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_head_is_within_a_step_of_its_grid(kind: str) -> None:
    weight = np.random.default_rng(0).standard_normal((9000, 48), dtype=np.float32)
    packed = pack_head(weight, kind)
    assert packed.block_size == 16 and packed.bits == int(kind[3:])
    step = np.repeat(packed.scales, 16, axis=1)
    # A rounded zero point moves an asymmetric grid by up to half a step, which clips the group's end by as much.
    assert (np.abs(packed.dense() - weight) <= (0.502 if kind == "int8" else 1.002) * step).all()
    assert head_grid("int8", 576).group_size == 64
    with pytest.raises(AwpError, match="use --lm-head fp32"):
        head_grid(kind, 40)
