"""The sparse kernels: bit for bit the NumPy arithmetic on every instruction set here, Arm's under an emulator."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from awp_edge.export import library, sparse_reference
from awp_edge.export.sparse_packing import SparseLinear, pack_sparse
from rules import ROOT
from sparse_layers import random_layer

ISAS = [
    isa for isa in ("base", "avx2", "avx512", "avx512vnni", "neon", "neondot") if library.kernels(isa) == isa
]
LAYERS = {
    "32/64, odd blocks, tail rows": dict(shape=(37, 192)),
    "32/64, wide groups": dict(shape=(48, 512), group=128),
    "16/64": dict(shape=(16, 384), kept=16),
    "24/64, wide groups": dict(shape=(20, 256), kept=24, group=128),
    "40/64, wide groups": dict(shape=(33, 256), kept=40, group=128),
    "52/64, odd blocks": dict(shape=(24, 320), kept=52),
    "row-sparse": dict(shape=(40, 320), kept=None, turned=False),
    "row-sparse, wide groups": dict(shape=(16, 256), kept=None, turned=False, group=128),
    "one block": dict(shape=(5, 64), kept=31),
}


def packed_layer(kind: str) -> SparseLinear:
    return pack_sparse(random_layer(**LAYERS[kind]))


def inputs(packed: SparseLinear, rows: int) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((rows, packed.shape[1])).astype(np.float32)
    x[:, :7] *= 30  # outliers, as real activations have
    return x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", LAYERS)
def test_int8_inputs_give_the_bits_of_the_reference(kind: str, isa: str) -> None:
    packed = packed_layer(kind)
    for rows in (1, 3, 4, 9):
        x = inputs(packed, rows)
        wanted = sparse_reference.multiply(packed, x)
        np.testing.assert_array_equal(library.multiply(packed, x, isa=isa), wanted)
        np.testing.assert_array_equal(library.multiply(packed, x, isa=isa, expand=True), wanted)


def test_what_is_kept_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    if "avx2" not in ISAS:
        pytest.skip("no AVX2")
    wide, few = packed_layer("32/64, odd blocks, tail rows"), packed_layer("16/64")
    assert library.expanded_bytes(wide, "avx2") == 48 * 192 // 2
    assert library.expanded_bytes(few, "avx2") == library.expanded_bytes(wide, "base") == 0
    monkeypatch.setenv("AWP_EXPAND", "0")
    assert library.expanded_bytes(wide, "avx2") == 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kept", [32, 40, None])
def test_gated_products_give_the_bits_of_the_reference(kept: int | None, isa: str) -> None:
    packed = pack_sparse(random_layer((64, 192), kept=kept, turned=kept is not None))
    for rows in (1, 3, 9):
        x = inputs(packed, rows) * np.float32(3)  # gates far to either side
        wanted = sparse_reference.multiply_gated(packed, x)
        for expand in (False, True):
            found = library.multiply(packed, x, isa=isa, gated=True, expand=expand)
            np.testing.assert_array_equal(found, wanted)


def test_silu_is_within_a_few_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-90, 90, 100001), [0.0, -0.0, 1e-30, -1e-30, 200]]).astype(np.float32)
    exact = x / (1 + np.exp(-x.astype(np.float64)))
    found = sparse_reference.silu(x)
    assert np.abs(found - exact).max(where=x < -87, initial=0) < 1e-35
    assert (np.abs(sparse_reference.silu(np.float32([-1e35, -np.inf]))) < 1e-35).all()
    inside = x >= -87
    np.testing.assert_allclose(found[inside], exact[inside], rtol=4e-7, atol=0)
    assert np.isnan(sparse_reference.silu(np.float32([np.nan]))).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", LAYERS)
def test_float_inputs(kind: str, isa: str) -> None:
    packed = packed_layer(kind)
    x = inputs(packed, 9)
    expected = x.astype(np.float64) @ packed.dense().astype(np.float64).T
    found = library.multiply(packed, x, accuracy_level=0, isa=isa)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_sums_do_not_overflow(isa: str) -> None:
    """Every code 15 with zero point 0 and every input at its limit, dense and sparse."""
    for kept in (64, 32):
        layer = random_layer((16, 256), kept=kept, group=128)
        codes = np.where(layer.mask, 15, 0).astype(np.uint8)
        packed = pack_sparse(replace(layer, codes=codes, zeros=np.zeros_like(layer.zeros)))
        for sign in (1, -1):
            x = np.full((5, 256), sign, dtype=np.float32)
            np.testing.assert_array_equal(
                library.multiply(packed, x, isa=isa), sparse_reference.multiply(packed, x)
            )


def test_int8_inputs_are_close_to_exact_ones() -> None:
    packed = packed_layer("32/64, wide groups")
    x = np.random.default_rng(2).standard_normal((16, packed.shape[1])).astype(np.float32)
    exact = x @ packed.dense().T
    error = np.abs(library.multiply(packed, x) - exact)
    assert error.mean() < 0.02 * np.abs(exact).mean()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinite_inputs_are_not_hidden(value: float) -> None:
    packed = packed_layer("16/64")
    x = inputs(packed, 2)
    x[0, 5] = value
    for rows in (x[:1], x, np.repeat(x, 3, axis=0)):
        assert np.isnan(library.multiply(packed, rows)[0]).all()
    assert np.isfinite(library.multiply(packed, x)[1]).all()


def test_tiny_and_zero_inputs() -> None:
    packed = packed_layer("16/64")
    for size in (0.0, 1e-44, 1e-38):
        x = np.full((2, 384), size, dtype=np.float32)
        np.testing.assert_array_equal(library.multiply(packed, x), sparse_reference.multiply(packed, x))


def test_what_is_refused() -> None:
    packed = packed_layer("16/64")
    x = inputs(packed, 1)
    with pytest.raises(ValueError, match="do not fit"):
        library.multiply(packed, x[:, :-1])
    with pytest.raises(ValueError, match="another number of weights than `kept`"):
        library.multiply(replace(packed, kept=17), x)
    with pytest.raises(ValueError, match="does not run that instruction set"):
        library.multiply(packed, x, isa="sse9")


def test_the_library_states_its_version() -> None:
    assert library.version().startswith("awp-edge 0.") and library.version().endswith("format 1")
    assert library.kernels() in ISAS and library.kernels("nonsense") is None


def test_the_library_needs_nothing_and_shows_nothing_else() -> None:
    tools = [shutil.which(tool) for tool in ("nm", "ldd")]
    if not all(tools):
        pytest.skip("no binutils")
    names = subprocess.run(
        [tools[0], "-D", "--defined-only", library.require_library()], capture_output=True, text=True
    )
    shown = {line.split()[-1] for line in names.stdout.splitlines()}
    assert shown == {
        "RegisterCustomOps",
        *(
            f"awp_edge_{name}"
            for name in (
                "version",
                "packed_size",
                "isa",
                "check",
                "expanded_bytes",
                "expands",
                "multiply",
                "read",
            )
        ),
    }
    needed = subprocess.run([tools[1], library.require_library()], capture_output=True, text=True).stdout
    assert "libstdc++" not in needed and "onnxruntime" not in needed


@pytest.mark.slow
def test_arm_kernels_under_an_emulator(tmp_path: Path) -> None:
    """The cross-compiled library and tests: NEON with and without dot products give the reference's bits."""
    if not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64") and shutil.which("cmake")):
        pytest.skip("needs g++-aarch64-linux-gnu, qemu-user and cmake")
    script = ROOT / "cpp" / "cross" / "build_aarch64.sh"
    built = subprocess.run(["sh", script, tmp_path, "-DAWP_BUILD_TESTS=ON"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    assert "warning" not in built.stderr
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    for cpu, kernels in (("max", "neon\nneondot\n"), ("cortex-a53", "neon\n")):
        ran = subprocess.run(
            [*emulator, "-cpu", cpu, tmp_path / "cpp" / "test_sparse", "100"], capture_output=True, text=True
        )
        assert ran.returncode == 0 and ran.stdout.startswith(kernels), ran.stdout + ran.stderr
        assert ran.stdout.endswith("sparse: all checks passed\n")
