"""The operators inside ONNX Runtime: their bits, their shapes, and an error status for every bad model."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from awp_edge.export import library, sparse_reference  # noqa: E402
from awp_edge.export.passes.sparse import GATED  # noqa: E402
from awp_edge.export.sparse_packing import SparseLinear, pack_sparse  # noqa: E402
from sparse_graphs import attributes, model, parts, session  # noqa: E402
from sparse_layers import random_layer  # noqa: E402


@pytest.fixture(scope="module")
def packed() -> SparseLinear:
    return pack_sparse(random_layer((600, 192)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 5), (300,), (2, 0), (1, 1, 3, 2)])
def test_every_shape_gives_the_bits_of_the_reference(
    packed: SparseLinear, shape: tuple[int, ...], threads: int
) -> None:
    a = np.random.default_rng(0).standard_normal((*shape, 192)).astype(np.float32)
    (y,) = session(model(parts(packed), attributes(packed)), threads=threads).run(None, {"a": a})
    expected = sparse_reference.multiply(packed, a.reshape(-1, 192)).reshape(*shape, 600)
    assert y.shape == expected.shape
    np.testing.assert_array_equal(y, expected)


def test_weights_at_odd_places_of_a_file(packed: SparseLinear, tmp_path: Path) -> None:
    """A mapped file holds each constant one byte off its alignment."""
    made = onnx.load_from_string(model(parts(packed), attributes(packed)))
    offset = 1
    with (tmp_path / "weights").open("wb") as file:
        for tensor in made.graph.initializer:
            file.seek(offset)
            size = file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "weights"), ("offset", str(offset)), ("length", str(size))):
                tensor.external_data.add(key=key, value=value)
            offset += size + 9 - size % 8
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    a = np.ones((2, 192), dtype=np.float32)
    (y,) = session(str(tmp_path / "model.onnx")).run(None, {"a": a})
    np.testing.assert_array_equal(y, sparse_reference.multiply(packed, a))


@pytest.mark.parametrize("kept", [None, 16, 32])
@pytest.mark.parametrize("level", [0, 4])
def test_every_kind_of_layer(kept: int | None, level: int) -> None:
    packed = pack_sparse(random_layer((40, 256), kept=kept, group=128))
    a = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    (y,) = session(model(parts(packed), attributes(packed, accuracy_level=level))).run(None, {"a": a})
    if level == 4:
        np.testing.assert_array_equal(y, sparse_reference.multiply(packed, a))
    else:
        np.testing.assert_allclose(y, a @ packed.dense().T, atol=1e-4)


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("rows", [0, 1, 2, 9])
def test_a_gated_product(rows: int, level: int) -> None:
    packed = pack_sparse(random_layer((96, 256), group=128))
    a = np.random.default_rng(0).standard_normal((rows, 256)).astype(np.float32)
    made = session(model(parts(packed), attributes(packed, accuracy_level=level), operator=GATED))
    (y,) = made.run(None, {"a": a})
    assert y.shape == (rows, 48)
    if level == 4:
        np.testing.assert_array_equal(y, sparse_reference.multiply_gated(packed, a))
    else:
        gate, up = np.split(a @ packed.dense().T, 2, axis=1)
        np.testing.assert_allclose(y, gate / (1 + np.exp(-gate)) * up, atol=1e-4)


def test_a_gate_in_broken_tiles_is_refused() -> None:
    packed = pack_sparse(random_layer((48, 64)))
    with pytest.raises(Exception, match="must have equally many rows, a multiple of 16"):
        session(model(parts(packed), attributes(packed), operator=GATED))


@pytest.mark.parametrize("expand", ["", "0", "1"])
@pytest.mark.skipif(library.kernels("avx2") is None, reason="no AVX2")
def test_expanded_weights_give_the_same_bits(
    packed: SparseLinear, monkeypatch: pytest.MonkeyPatch, expand: str
) -> None:
    monkeypatch.setenv("AWP_ISA", "avx2")
    monkeypatch.setenv("AWP_EXPAND", expand)
    made = session(model(parts(packed), attributes(packed)))
    a = np.random.default_rng(0).standard_normal((2, 192)).astype(np.float32)
    wanted = sparse_reference.multiply(packed, a)
    for rows in [2, *[1] * 100, 2]:  # more than the operator times to choose a form
        np.testing.assert_array_equal(made.run(None, {"a": a[:rows]})[0], wanted[:rows])
    assert library.expands(packed, "avx2") in {"": (False, True), "0": (False,), "1": (True,)}[expand]


def test_symmetric_layers_have_no_zeros() -> None:
    layer = random_layer((16, 64))
    layer.zeros[:] = 8
    layer.codes[~layer.mask] = 8
    packed = pack_sparse(layer)
    assert packed.zeros is None
    a = np.ones((2, 64), dtype=np.float32)
    (y,) = session(model(parts(packed), attributes(packed))).run(None, {"a": a})
    np.testing.assert_array_equal(y, sparse_reference.multiply(packed, a))


BAD = {
    "K": ({"K": 128}, "masks have the wrong size"),
    "N": ({"N": 0}, "N and K must be at least 1"),
    "N too large": ({"N": 2**40}, "N and K must be at least 1"),
    "block_size": ({"block_size": 32}, "block_size must be 64 or 128"),
    "a block that does not divide": ({"block_size": 128}, "block_size must divide K"),
    "kept": ({"kept": 31}, "another number of weights than `kept`"),
    "no offsets": ({"kept": -1}, "offsets belong to kept = -1"),
    "level": ({"accuracy_level": 2}, "accuracy_level must be 0 or 4"),
    "order": ({"interleaved": 2}, "interleaved must be 0 or 1"),
    "version": ({"format_version": 2}, "another format_version than this library reads"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_attributes(packed: SparseLinear, case: str) -> None:
    change, message = BAD[case]
    with pytest.raises(Exception, match=re.escape(message)):
        session(model(parts(packed), {**attributes(packed), **change}))


def test_missing_attributes_and_wrong_types(packed: SparseLinear) -> None:
    settings = attributes(packed)
    with pytest.raises(Exception, match="kept"):
        session(model(parts(packed), {key: value for key, value in settings.items() if key != "kept"}))
    with pytest.raises(Exception, match=r"Type Error|type"):
        session(model({**parts(packed), "masks": packed.masks.astype(np.int64)}, settings))


@pytest.mark.parametrize("part", ["masks", "zeros"])
def test_weights_that_are_no_constants(packed: SparseLinear, part: str) -> None:
    with pytest.raises(Exception, match="must be constants of the model"):
        made = session(model(parts(packed), attributes(packed), outside=part))
        made.run(None, {"a": np.ones((1, 192), np.float32), part: getattr(packed, part)})


def test_inputs_of_another_width(packed: SparseLinear) -> None:
    made = session(model(parts(packed), attributes(packed)))
    for shape in ((2, 191), (), (1,)):
        with pytest.raises(Exception, match="the last dimension of A must be K"):
            made.run(None, {"a": np.ones(shape, dtype=np.float32)})


def test_an_instruction_set_that_is_not_there(packed: SparseLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWP_ISA", "sse9")
    with pytest.raises(Exception, match="AWP_ISA names an instruction set that this machine does not run"):
        session(model(parts(packed), attributes(packed)))
    monkeypatch.setenv("AWP_ISA", "base")
    a = np.ones((1, 192), dtype=np.float32)
    (y,) = session(model(parts(packed), attributes(packed))).run(None, {"a": a})
    np.testing.assert_array_equal(y, sparse_reference.multiply(packed, a))


def test_a_runtime_that_is_too_old_is_refused_in_words() -> None:
    """Releases before 1.17 give no table of version 17; the one of version 1 begins with CreateStatus."""
    said: list[bytes] = []

    def create_status(code: int, text: bytes) -> int:
        said.append(text)
        return code

    status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(create_status)
    table = (ctypes.c_void_p * 1)(ctypes.cast(status, ctypes.c_void_p))
    get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(table) if version == 1 else None
    )
    base = (ctypes.c_void_p * 2)(ctypes.cast(get, ctypes.c_void_p), None)
    register = ctypes.CDLL(str(library.require_library())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 1
    assert said == [b"awp_edge needs ONNX Runtime 1.17 or newer"]


@pytest.mark.parametrize("seed", [0, 1])
def test_damaged_models_never_crash(seed: int) -> None:
    script = Path(__file__).with_name("sparse_graphs.py")
    done = subprocess.run(
        [sys.executable, "-P", "-c", _RUN.format(str(script.parent), seed)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, ran = map(int, re.findall(r"\d+", done.stdout))
    assert refused > 100 and ran > 10


_RUN = "import sys; sys.path.insert(0, {0!r}); from sparse_graphs import fuzz; print(fuzz({1}, 250))"
