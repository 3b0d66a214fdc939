"""The compressed folder: exact round trips, honest bits, and one clear line for every kind of damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy_stack
from safetensors.numpy import load_file

from awp_edge.artifacts import (
    CompressedLayer,
    CompressedModel,
    block_file,
    folder_kind,
    grid_bits,
    read_layer,
    write_block,
)
from awp_edge.errors import AwpError
from awp_edge.methods import CompressSpec, compress_layer
from awp_edge.models import ModelFolder
from awp_edge.solvers.base import Encoding
from awp_edge.storage import TensorFile, building, read_json, write_json

SPECS = [
    CompressSpec(sparsity=0.5),
    CompressSpec(method="wanda", pattern="2:4"),
    CompressSpec(method="rtn", bits=2, group_size=32),
    CompressSpec(method="rtn", bits=3, group_size=32),
    CompressSpec(method="rtn", bits=4, group_size=64),
    CompressSpec(method="rtn", bits=8, group_size=64),
    CompressSpec(method="wanda", bits=4, group_size=64, pattern="32/64"),
    CompressSpec(method="asvd", rank=5),
    CompressSpec(method="awq", bits=3, group_size=64),
    CompressSpec(method="wanda+awq", bits=4, group_size=64, sparsity=0.5),
]


def solved(
    spec: CompressSpec, *, d_out: int = 9, d_in: int = 128, seed: int = 0
) -> tuple[np.ndarray, CompressedLayer]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((d_out, d_in), dtype=np.float32)
    weight[0, :64] = 0  # an all-zero group
    gram = toy_stack.gram(rng.standard_normal((300, d_in), dtype=np.float32)).matrix
    result = compress_layer(weight, gram, spec, backend="numpy")
    return result.theta, CompressedLayer.of("block.linear", result, bits=spec.bits)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_layer_comes_back_bit_for_bit(tmp_path: Path, spec: CompressSpec) -> None:
    theta, layer = solved(spec)
    write_block(tmp_path / "block", [layer])
    back = read_layer(TensorFile(tmp_path / "block"), "block.linear")
    np.testing.assert_array_equal(back.dense(), theta)
    assert (back.shape, back.bits, back.stored_bits()) == (layer.shape, layer.bits, layer.stored_bits())
    for part in ("codes", "scales", "zeros", "mask", "left", "right", "input_scales"):
        before, after = getattr(layer.encoding, part), getattr(back.encoding, part)
        assert (before is None) == (after is None), part
        if before is not None:
            np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_equal_layers_give_equal_bytes(tmp_path: Path, spec: CompressSpec) -> None:
    for name in ("a", "b"):
        write_block(tmp_path / name, [solved(spec)[1]])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_safetensors_reader_opens_a_block(tmp_path: Path) -> None:
    _, layer = solved(SPECS[4])
    write_block(tmp_path / "block", [layer])
    tensors = load_file(tmp_path / "block")
    assert {name: (array.dtype.name, array.shape) for name, array in tensors.items()} == {
        "block.linear.codes": ("uint8", (9, 64)),
        "block.linear.scales": ("float16", (9, 2)),
        "block.linear.zeros": ("uint8", (9, 2)),
    }
    np.testing.assert_array_equal(tensors["block.linear.codes"] & 15, layer.encoding.codes[:, 0::2])
    np.testing.assert_array_equal(tensors["block.linear.codes"] >> 4, layer.encoding.codes[:, 1::2])


def test_an_odd_number_of_inputs_is_packed(tmp_path: Path) -> None:
    theta, layer = solved(CompressSpec(method="rtn", bits=4, group_size=63), d_in=63)
    write_block(tmp_path / "block", [layer])
    np.testing.assert_array_equal(read_layer(TensorFile(tmp_path / "block"), "block.linear").dense(), theta)


@pytest.mark.parametrize(
    ("bits", "group", "expected"),
    [
        (4, 64, 4 + 32 / 64 + 4 / 64),
        (3, 64, 4 + 32 / 64 + 4 / 64),
        (2, 64, 2 + 32 / 64 + 2 / 64),
        (8, 128, 8 + 40 / 128),
    ],
)
def test_bits_of_a_dense_export(bits: int, group: int, expected: float) -> None:
    assert grid_bits((10, 1024), bits, 1024 // group) / (10 * 1024) == expected


def test_the_zero_points_of_a_row_fill_whole_bytes() -> None:
    assert grid_bits((10, 64), 4, 1) / 640 == 4 + 32 / 64 + 8 / 64


def test_zero_points_in_the_middle_cost_nothing() -> None:
    codes = np.full((2, 64), 8, dtype=np.uint8)
    parts = Encoding(codes=codes, scales=np.ones((2, 1), np.float32), zeros=np.full((2, 1), 8, np.uint8))
    assert CompressedLayer("x", (2, 64), parts, bits=4).bits_per_weight() == 4.5


def test_zeros_and_factors_are_counted_as_stored() -> None:
    assert solved(SPECS[0])[1].bits_per_weight() == 32
    assert solved(SPECS[7])[1].bits_per_weight() == pytest.approx(32 * 5 * (9 + 128) / (9 * 128))


def test_input_scales_are_counted() -> None:
    plain, scaled = (
        solved(CompressSpec(method=method, bits=4, group_size=64))[1] for method in ("rtn", "awq")
    )
    assert scaled.stored_bits() == plain.stored_bits() + 32 * 128


def test_parts_that_are_not_the_weight_are_refused() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 64), dtype=np.float32)
    result = compress_layer(weight, np.eye(64, dtype=np.float32), SPECS[4], backend="numpy")
    result.encoding.codes[0, 0] ^= 1
    with pytest.raises(ValueError, match="do not give back the solver's weight"):
        CompressedLayer.of("x", result, bits=4)


def test_scales_that_are_not_half_precision_are_refused(tmp_path: Path) -> None:
    parts = Encoding(
        np.zeros((1, 32), np.uint8), np.full((1, 1), 0.1, np.float32), np.zeros((1, 1), np.uint8)
    )
    with pytest.raises(ValueError, match="scales are not float16 values"):
        write_block(tmp_path / "block", [CompressedLayer("x", (1, 32), parts, bits=4)])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    model = toy_stack.build(tmp_path / "model", n_blocks=2, dtype="BF16")
    toy_stack.compress(model, tmp_path / "out", method="rtn", bits=4, group_size=32)
    return tmp_path / "out"


def test_a_compressed_folder_holds_the_whole_model(compressed: Path) -> None:
    model, source = CompressedModel(compressed), ModelFolder(compressed.parent / "model")
    assert model.layer_names() == [f"layers.{b}.{n}" for b in range(2) for n in ("gate", "up", "down")]
    assert sorted([*model.rest_names(), *model.tensors.values()]) == source.tensor_names()
    for name in model.rest_names():
        assert model.rest(name).dtype == source.dtype(name) and model.rest_shape(name) == source.shape(name)
        np.testing.assert_array_equal(model.rest(name).bits, source.stored(name).bits)
    assert model.config == source.config
    model.verify()
    with pytest.raises(AwpError, match="has no compressed layer nothing"):
        model.layer("nothing")


def test_the_manifest_says_what_was_done(compressed: Path) -> None:
    manifest = CompressedModel(compressed).manifest
    source = ModelFolder(compressed.parent / "model")
    assert manifest["model"] == {
        "hash": source.hash(), "architecture": "ToyStack", "dtype": "BF16", "weights": "as in the model folder",
    }  # fmt: skip
    assert manifest["spec"]["bits"] == 4 and manifest["spec"]["group_size"] == 32
    assert manifest["calibration"]["source"] == "toy" and len(manifest["calibration"]["tokens_sha256"]) == 64
    layers = manifest["layers"]
    assert manifest["mean_relative_error"] == pytest.approx(
        np.mean([layer["relative_error"] for layer in layers])
    )
    assert {
        "name",
        "block",
        "shape",
        "relative_error",
        "iterations",
        "converged",
        "reason",
        "sparsity",
        "bits_per_weight",
    } <= set(layers[0])
    assert not any("seconds" in key for key in [*manifest, *layers[0]])
    assert set(read_json(compressed / "report.json")["layers"]) == {layer["name"] for layer in layers}


def change_manifest(folder: Path, **entries: object) -> None:
    write_json(folder / "manifest.json", {**read_json(folder / "manifest.json"), **entries})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), r"has no manifest\.json"),
        (lambda f: (f / "manifest.json").write_text("]"), "not valid JSON"),
        (lambda f: change_manifest(f, schema_version=99), "has schema version 99, this program reads 1"),
        (lambda f: change_manifest(f, kind="cake"), "does not describe a compressed model"),
        (lambda f: change_manifest(f, layers=None), "lacks its layers"),
        (lambda f: cut(f / block_file(1)), r"block-001\.safetensors: cut short: its tensors need \d+ bytes"),
        (lambda f: (f / block_file(1)).unlink(), r"cannot read .*block-001\.safetensors: No such file"),
        (lambda f: cut(f / "rest.safetensors"), r"rest\.safetensors: cut short"),
    ],
)
def test_a_damaged_folder_gets_one_line(compressed: Path, damage: object, message: str) -> None:
    damage(compressed)
    with pytest.raises(AwpError, match=message) as caught:
        CompressedModel(compressed)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_found(compressed: Path) -> None:
    path = compressed / block_file(0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        AwpError, match=r"block-000\.safetensors has SHA-256 .*, expected .*; copy the folder again"
    ):
        CompressedModel(compressed).verify()


def test_a_block_without_the_layer_gets_one_line(compressed: Path) -> None:
    (compressed / block_file(1)).write_bytes((compressed / block_file(0)).read_bytes())
    with pytest.raises(AwpError, match=r"does not describe layers\.1\.gate"):
        CompressedModel(compressed).layer("layers.1.gate")


def test_kinds_of_folders(compressed: Path, tmp_path: Path) -> None:
    assert folder_kind(compressed) == "compressed"
    assert folder_kind(tmp_path / "model") == "hf"
    (tmp_path / "edge").mkdir()
    write_json(tmp_path / "edge" / "genai_config.json", {})
    assert folder_kind(tmp_path / "edge") == "edge"
    (tmp_path / "empty").mkdir()
    for place, message in {"empty": "is neither a Hugging Face", "nowhere": "does not exist"}.items():
        with pytest.raises(AwpError, match=message):
            folder_kind(tmp_path / place)


def test_a_folder_is_built_by_one_owner_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with building(out) as partial:
        (partial / "half").write_text("mine")
        with (
            pytest.raises(AwpError, match=r"another process is working in .*out\.partial; wait for it"),
            building(out),
        ):
            pass
        assert (partial / "half").read_text() == "mine"
    assert [path.name for path in out.iterdir()] == ["half"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_had_built_goes(tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "work").mkdir(parents=True)
    with building(tmp_path / "out") as partial:
        assert not any(partial.iterdir())
    with pytest.raises(RuntimeError), building(tmp_path / "other") as partial:
        (partial / "half").write_text("")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
