"""Sparse edge folders: exported for real, read back, run by ONNX Runtime and onnxruntime-genai, and every refusal."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from awp_edge import CompressSpec
from awp_edge.artifacts import CompressedModel
from awp_edge.errors import AwpError, UsageError

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")
ir = pytest.importorskip("onnx_ir")

import tiny_models  # noqa: E402
from awp_edge.export import graph, library, package, roofline, sparse_reference, variants  # noqa: E402
from awp_edge.export.check import check_weights  # noqa: E402
from awp_edge.export.compare import compare, limits, plot  # noqa: E402
from awp_edge.export.manifest import verify  # noqa: E402
from awp_edge.export.package import ExportOptions, ExportSummary, export_model  # noqa: E402
from awp_edge.export.passes.sparse import GATED, OPERATOR, read_sparse  # noqa: E402
from awp_edge.export.runtime import EdgeModel  # noqa: E402
from awp_edge.export.sparse_packing import halves  # noqa: E402
from awp_edge.export.variants import write_variant  # noqa: E402
from test_export import EXACT, compress  # noqa: E402

BALANCED = CompressSpec(method="magnitude", pattern="32/64", bits=4, group_size=64)
SHAPE = {"hidden_size": 128, "intermediate_size": 192}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed model whose layers have an even (128) and an odd (192) number of blocks."""
    folder = tmp_path_factory.mktemp("sparse")
    model = tiny_models.build("llama", folder / "model", **SHAPE)
    return compress(model, folder / "compressed", BALANCED)


@pytest.fixture(scope="module")
def edge(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSummary:
    out = tmp_path_factory.mktemp("edge") / "edge"
    return export_model(source, out, ExportOptions(weights="sparse", accuracy_level=0))


def test_every_weight_is_read_back(source: Path, edge: ExportSummary) -> None:
    weights = edge.weights
    assert weights is not None and edge.options.weights == "sparse"
    assert weights.sparse_layers == weights.layers == 21
    assert weights.zeros >= weights.weights / 2
    # 64 mask bits, 32 codes, a scale and a zero point a block; guards and filled-up tiles are small change.
    assert 3.3125 <= weights.bits_per_weight < 3.5
    assert edge.agreement is not None and edge.agreement.kl < 0.01  # the head's int8 alone
    compressed = CompressedModel(source)
    told = sum(compressed.layer(name).stored_bits() for name in compressed.layer_names())
    assert 0 <= told - 8 * weights.n_bytes <= 21 * 8 * 128  # stacked layers share their guards


def test_masks_on_disk_are_those_of_the_solver(source: Path, edge: ExportSummary) -> None:
    compressed = CompressedModel(source)
    names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
    node = nodes(edge.folder)["/model/layers.1/attn/qkv_proj/SparseMatMulNBits"]
    packed = read_sparse(node)
    assert packed.kept == 32 and packed.interleaved
    wanted = np.concatenate([compressed.layer(name).dense() for name in names])
    np.testing.assert_array_equal(packed.dense(), wanted)
    assert not (packed.unpack().mask & (wanted == 0)).sum() > 0.05 * wanted.size  # filled-up ones are few


def nodes(folder: Path) -> dict[str, ir.Node]:
    graph_nodes = ir.load(folder / graph.GRAPH_FILE).graph
    return {node.name: node for node in graph_nodes if node.op_type in (OPERATOR, GATED)}


def test_gate_and_up_are_one_node(source: Path, edge: ExportSummary) -> None:
    compressed = CompressedModel(source)
    node = nodes(edge.folder)["/model/layers.1/mlp/gate_proj/SparseGatedMatMulNBits"]
    for half, part in zip(halves(read_sparse(node)), ("gate", "up"), strict=True):
        np.testing.assert_array_equal(
            half.dense(), compressed.layer(f"model.layers.1.mlp.{part}_proj").dense()
        )
    kinds = [node.op_type for node in ir.load(edge.folder / graph.GRAPH_FILE).graph]
    assert kinds.count(GATED) == 3 and kinds.count(OPERATOR) == 9 and "Sigmoid" not in kinds


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ExportSummary:
    """A model whose gate projections keep fewer weights than the others."""
    folder = tmp_path_factory.mktemp("mixed")
    model = tiny_models.build("llama", folder / "model", **SHAPE)
    source = compress(model, folder / "compressed", BALANCED, gate=replace(BALANCED, pattern="24/64"))
    return export_model(source, folder / "edge", ExportOptions(accuracy_level=0, lm_head="fp32"))


def test_gate_and_up_of_different_k_stay_two_nodes(mixed: ExportSummary) -> None:
    found = nodes(mixed.folder)
    assert {read_sparse(node).kept for node in found.values()} == {24, 32}
    assert all(node.op_type == OPERATOR for node in found.values())
    assert mixed.agreement is not None and mixed.agreement.kl < EXACT


def test_limits_are_those_of_every_way_of_storage(
    mixed: ExportSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times add up: gates at twice the speed of the others take half as long a weight."""
    gates, others = 3 * 192 * 128, 3 * (128 * (128 + 64 + 64 + 128) + 2 * 192 * 128)
    speeds = {24: (2.0, 2.8, "stored"), 32: (1.0, 3.3, "expanded")}
    asked: list[dict[str, int]] = []

    def measured(*, read: float, **kind: int) -> dict[str, object]:
        asked.append(kind)
        rate, bits, form = speeds[kind["kept"]]
        rates = dict.fromkeys(("memory_gweights", "decode_gweights", "matrix_gweights"), rate)
        return {"bits_per_weight": bits, "form": form, "read_gb_s": read / 1e9, **rates}

    monkeypatch.setattr(roofline, "measure", measured)
    monkeypatch.setattr(roofline, "read_rate", lambda threads: 2e9)
    found = limits(ir.load(mixed.folder / graph.GRAPH_FILE), threads=1)
    kinds = [{"threads": 1, "kept": kept, "group": 64, "accuracy_level": 0} for kept in (24, 32)]
    assert sorted(asked, key=lambda kind: kind["kept"]) == kinds
    assert found is not None and found["form"] == "mixed"
    for what in ("decode", "matrix"):
        assert found[f"{what}_tokens_per_second"] == pytest.approx(1e9 / (gates / 2 + others))
    assert found["bits_per_weight"] == pytest.approx((2.8 * gates + 3.3 * others) / (gates + others))


def test_the_folder_carries_its_operator(edge: ExportSummary) -> None:
    verify(edge.folder)
    model = EdgeModel(edge.folder)
    assert library.LIBRARY in model.manifest["files"]
    assert model.config["model"]["decoder"]["session_options"]["custom_ops_library"] == library.LIBRARY


def test_the_library_has_the_name_that_cmake_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loadable modules end in .so on macOS too; only shared libraries end in .dylib there."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert runpy.run_path(library.__file__, run_name="awp_edge.export.mac")["LIBRARY"] == "libawp_edge_ops.so"


def test_generation_follows_the_logits(
    edge: ExportSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-genai finds the library beside the model, wherever the process stands."""
    monkeypatch.chdir(tmp_path)
    model = EdgeModel(edge.folder, threads=2)
    tokens = list(model.encode("the river"))
    expected: list[int] = []
    for _ in range(6):
        expected.append(int(np.concatenate(list(model.logits(tokens + expected)))[-1].argmax()))
    generator = model._generator(len(tokens) + 6)
    generator.append_tokens(tokens)
    while not generator.is_done():
        generator.generate_next_token()
    found = generator.get_sequence(0).tolist()
    assert found == (tokens + expected)[: len(found)] and len(found) > len(tokens)
    assert isinstance(model.generate("the river", max_tokens=6), str)


@pytest.fixture(scope="module")
def dense_edge(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSummary:
    options = ExportOptions(weights="dense", accuracy_level=0, lm_head="fp32")
    return export_model(source, tmp_path_factory.mktemp("dense") / "edge", options)


def test_dense_weights_of_the_same_model_agree(dense_edge: ExportSummary) -> None:
    """Groups of interleaved inputs reach MatMulNBits through a reordering; nothing else may change."""
    assert dense_edge.weights is not None and dense_edge.weights.sparse_layers == 0
    assert dense_edge.agreement is not None and dense_edge.agreement.kl < EXACT


@pytest.mark.parametrize("stored", ["edge", "dense_edge"])
def test_what_a_folder_is_compared_with_is_the_same_model(
    stored: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In float32 exactly; weights of either kind have their inputs in an order of their own."""
    folder = request.getfixturevalue(stored).folder
    write_variant(folder, tmp_path / "fp32", "fp32")
    window = np.arange(60) * 3
    found, wanted = (
        np.concatenate(list(EdgeModel(path).logits(window))) for path in (tmp_path / "fp32", folder)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert "Gather" not in {
        n.op_type for n in ir.load(tmp_path / "fp32" / graph.GRAPH_FILE).graph if "mlp" in n.name
    }


def test_dense_rivals_of_every_width() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 144), dtype=np.float32)
    assert variants._rounded(weight, "down_proj").block_size == 16
    assert variants._rounded(np.tile(weight, 8), "down_proj").block_size == 128
    with pytest.raises(AwpError, match="down_proj has 136 inputs, which no block of 16 or more divides"):
        variants._rounded(weight[:, :136], "down_proj")


def test_auto_is_sparse_and_int8_inputs_are_the_reference(source: Path, tmp_path: Path) -> None:
    summary = export_model(source, tmp_path / "edge", ExportOptions(accuracy_level=4))
    assert summary.options.weights == "sparse"
    assert summary.agreement is not None and summary.agreement.kl < 0.05
    packed = read_sparse(nodes(summary.folder)["/model/layers.0/mlp/down_proj/SparseMatMulNBits"])
    x = np.random.default_rng(0).standard_normal((3, 192)).astype(np.float32)
    np.testing.assert_array_equal(library.multiply(packed, x), sparse_reference.multiply(packed, x))


def test_a_library_for_another_processor(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "libother.so"
    other.write_bytes(b"\x7fELF RegisterCustomOps SparseGatedMatMulNBits of another processor")
    options = ExportOptions(operator_library=other)
    summary = export_model(source, tmp_path / "edge", options)
    assert (summary.folder / library.LIBRARY).read_bytes() == other.read_bytes()
    verify(summary.folder)
    assert EdgeModel(summary.folder).manifest["agreement"]["kl"] == summary.agreement.kl
    with pytest.raises(AwpError, match=r"ONNX Runtime cannot open .*libawp_edge_ops"):
        list(EdgeModel(summary.folder).logits([1]))
    (tmp_path / "note.txt").write_text("no library")
    with pytest.raises(
        UsageError,
        match=r"note\.txt is not an operator library of this version: give the libawp_edge_ops\.so",
    ):
        ExportOptions(operator_library=tmp_path / "note.txt")
    with pytest.raises(UsageError, match="is not a file"):
        ExportOptions(operator_library=tmp_path / "missing.so")
    with pytest.raises(UsageError, match="for sparse weights and these are stored dense: leave it out"):
        export_model(source, tmp_path / "dense", ExportOptions(weights="dense", operator_library=other))
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize(("choice", "named"), [
    ({"weights": "sparse"}, "--weights sparse"), ({"accuracy_level": 0}, "--accuracy-level"),
    ({"lm_head": "fp32", "operator_library": Path(__file__)}, "--lm-head, --operator-library"),
])  # fmt: skip
def test_options_that_plain_weights_have_no_use_for(choice: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=f"plain weights, which {named} cannot change: leave it out$"):
        ExportOptions(format="hf", **choice)
    assert ExportOptions(format="hf", weights="dense").accuracy_level is None


def test_running_needs_neither_torch_nor_onnx(edge: ExportSummary) -> None:
    code = (
        "import sys; from awp_edge.export.runtime import EdgeModel\n"
        f"EdgeModel({str(edge.folder)!r}).generate('the river', max_tokens=2)\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'onnx_ir'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_row_sparse_layers_keep_their_order(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model", **SHAPE)
    spec = CompressSpec(method="magnitude", sparsity=0.6, bits=4, group_size=64)
    source = compress(model, tmp_path / "compressed", spec)
    options = ExportOptions(weights="sparse", accuracy_level=0, lm_head="fp32")
    summary = export_model(source, tmp_path / "edge", options)
    assert summary.weights is not None and summary.weights.sparse_layers == 21
    assert summary.agreement is not None and summary.agreement.kl < EXACT
    packed = [read_sparse(node) for node in nodes(summary.folder).values()]
    assert all(p.kept == -1 and not p.interleaved for p in packed)
    assert package._weights("auto", package.Source(source), say=lambda _: None) == "dense"


def test_a_written_code_that_differs_is_found(source: Path, edge: ExportSummary, tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    shutil.copytree(edge.folder, folder)
    layer, node = "model.layers.2.mlp.down_proj", "/model/layers.2/mlp/down_proj/MatMul"
    matches = {node: (graph.Rows(layer, 0, 128),)}
    dense = lambda name: CompressedModel(source).layer(name).dense()  # noqa: E731
    assert check_weights(folder, matches, dense).sparse_layers == 1
    codes = ir.load(folder / graph.GRAPH_FILE).graph.initializers[f"{layer}.MatMul.codes"].const_value
    data = bytearray((folder / graph.DATA_FILE).read_bytes())
    data[codes.offset + 100] ^= 0x10
    (folder / graph.DATA_FILE).write_bytes(data)
    with pytest.raises(AwpError, match="the written graph holds other weights"):
        check_weights(folder, matches, dense)


def test_a_damaged_mask_is_an_error_status(edge: ExportSummary, tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    shutil.copytree(edge.folder, folder)
    masks = ir.load(folder / graph.GRAPH_FILE).graph.initializers["model.layers.2.mlp.down_proj.MatMul.masks"]
    data = bytearray((folder / graph.DATA_FILE).read_bytes())
    data[masks.const_value.offset] ^= 1
    (folder / graph.DATA_FILE).write_bytes(data)
    model = EdgeModel(folder)
    with pytest.raises(AwpError, match="a mask keeps another number of weights than `kept`"):
        list(model.logits([1, 2, 3]))
    with pytest.raises(AwpError, match="a mask keeps another number of weights than `kept`"):
        model.generate("the river")


def test_what_cannot_be_sparse_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    dense = compress(model, tmp_path / "rtn", CompressSpec(method="rtn", bits=4, group_size=32))
    with pytest.raises(
        AwpError, match=r"is not both pruned and quantized; compress with --pattern 32/64 --bits 4"
    ):
        export_model(dense, tmp_path / "edge", ExportOptions(weights="sparse"))
    with pytest.raises(AwpError, match="the model has no compressed layers"):
        export_model(model, tmp_path / "edge", ExportOptions(weights="sparse"))
    monkeypatch.setattr(library, "LIBRARY", "not-built.so")  # as where there was no compiler
    with pytest.raises(AwpError, match="the operator library, which was not built: install a C"):
        export_model(source, tmp_path / "edge", ExportOptions(weights="sparse"))
    said: list[str] = []
    assert package._weights("auto", package.Source(source), say=said.append) == "dense"
    assert "was not built" in said[0] and not (tmp_path / "edge").exists()


def test_comparison_with_dense_and_float_layers(edge: ExportSummary, tmp_path: Path) -> None:
    model = EdgeModel(edge.folder, threads=1)
    found = compare(model, prompt_tokens=8, tokens=4, repeats=1, say=lambda _: None)
    assert found["weights"] == "sparse" and found["against"].keys() == {"dense int4", "fp32"}
    for row in found["against"].values():
        assert row["decode_tokens_per_second"] > 0 and row["decode_speedup"] > 0
    assert found["against"]["fp32"]["bytes"] > found["against"]["dense int4"]["bytes"]
    bounds = found["limits"]
    assert bounds["bits_per_weight"] == pytest.approx(3.3125) and bounds["read_gb_s"] > 0.1
    assert found["decode_tokens_per_second"] < bounds["memory_tokens_per_second"]
    assert sorted(path.name for path in edge.folder.parent.iterdir()) == ["edge"]
    pytest.importorskip("matplotlib")
    plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_comparison_needs_kernels_that_run_here(
    edge: ExportSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = EdgeModel(edge.folder, threads=1)
    monkeypatch.setenv("AWP_ISA", "sse9")
    with pytest.raises(
        AwpError, match="AWP_ISA=sse9 names an instruction set that this machine does not run"
    ):
        compare(model, prompt_tokens=8, tokens=4, repeats=1, say=lambda _: None)
