"""Edge folders: tiny models of several shapes exported for real, run for real, and every refusal."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awp_edge import CompressSpec, compress_layer
from awp_edge.artifacts import KIND, SCHEMA_VERSION, CompressedLayer, CompressedModel, block_file, write_block
from awp_edge.errors import AwpError, UsageError
from awp_edge.models import ModelFolder, copy_companions
from awp_edge.storage import StoredTensor, read_json, write_json, write_tensors

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")
ir = pytest.importorskip("onnx_ir")

import tiny_models  # noqa: E402
from awp_edge.export import graph  # noqa: E402
from awp_edge.export.check import check_weights, compare_logits, read_packed  # noqa: E402
from awp_edge.export.package import ExportOptions, ExportSummary, export_model  # noqa: E402
from awp_edge.export.passes import FactorMatMuls  # noqa: E402
from awp_edge.export.runtime import EdgeModel  # noqa: E402

from awp_edge.calibrate.runner import TorchModel  # noqa: E402

EXACT = 1e-9  # KL of float32 in another order of summation, nats a token


def compress(model: Path, out: Path, spec: CompressSpec, *, skip: str = "",
             gate: CompressSpec | None = None) -> Path:  # fmt: skip
    """Write a compressed folder with C = I: the format matters, not the statistics; `gate`: for gate projections."""
    (out / "blocks").mkdir(parents=True)
    folder, blocks, rest = ModelFolder(model), {}, {}
    records: list[dict[str, Any]] = []
    for tensor in folder.tensor_names():
        found = re.search(r"(?:layers|h)\.(\d+)\.\w+\.(?:\w+_proj|c_\w+)\.weight$", tensor)
        if found is None or (skip and skip in tensor):
            rest[tensor] = folder.stored(tensor)
            continue
        name, block = tensor.removesuffix(".weight"), int(found.group(1))
        weight = folder.tensor(tensor).astype(np.float32)
        weight = np.ascontiguousarray(weight.T) if ".c_" in tensor else weight
        asked = (gate or spec) if name.endswith("gate_proj") else spec
        result = compress_layer(weight, np.eye(weight.shape[1], dtype=np.float32), asked, backend="numpy")
        blocks.setdefault(block, []).append(CompressedLayer.of(name, result, bits=asked.bits))
        records.append({"name": name, "tensor": tensor, "block": block, "shape": list(weight.shape)})
    for block, layers in blocks.items():
        write_block(out / block_file(block), layers)
    write_tensors(out / "rest.safetensors", rest)
    copy_companions(model, out)
    manifest = {"schema_version": SCHEMA_VERSION, "kind": KIND, "layers": records, "files": {},
                "model": {"architecture": folder.architecture}}  # fmt: skip
    write_json(out / "manifest.json", manifest)
    return out


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportSummary]:
    """Half the weights pruned, the rest on 4 bits, tied int8 head, float32 activations."""
    folder = tmp_path_factory.mktemp("tied")
    model = tiny_models.build("llama", folder / "model")
    spec = CompressSpec(method="magnitude", sparsity=0.5, bits=4, group_size=32)
    source = compress(model, folder / "compressed", spec)
    return source, export_model(source, folder / "edge", ExportOptions(accuracy_level=0))


def test_the_summary_says_what_was_read_back(tied: tuple[Path, ExportSummary]) -> None:
    source, summary = tied
    layers = [CompressedModel(source).layer(name).dense() for name in CompressedModel(source).layer_names()]
    assert summary.weights.layers == len(layers) == 21
    assert summary.weights.weights == sum(layer.size for layer in layers)
    assert (
        summary.weights.zeros
        == sum(int((layer == 0).sum()) for layer in layers)
        >= summary.weights.weights / 2
    )
    assert summary.agreement.kl < summary.tolerated_kl and summary.agreement.top1 > 0.9
    assert json.loads(json.dumps(summary.as_dict()))["n_bytes"] == summary.n_bytes


def test_pruned_weights_carry_the_code_of_zero(tied: tuple[Path, ExportSummary]) -> None:
    """Every pruned weight's code equals its zero point in the bytes on disk; q, k and v are one matrix."""
    source, summary = tied
    compressed, nodes = CompressedModel(source), packed_nodes(summary.folder)
    names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
    masks = np.concatenate([compressed.layer(name).encoding.mask for name in names])
    codes = np.concatenate([compressed.layer(name).encoding.codes for name in names])
    packed = nodes["/model/layers.1/attn/qkv_proj/MatMulNBits"]
    np.testing.assert_array_equal(packed.codes(), codes)
    assert packed.zero_mask()[~masks].all()


def packed_nodes(folder: Path) -> dict[str, Any]:
    model = ir.load(folder / graph.GRAPH_FILE)
    return {node.name: read_packed(node) for node in model.graph if node.op_type == "MatMulNBits"}


def test_the_tied_embedding_shares_the_head_bytes(tied: tuple[Path, ExportSummary]) -> None:
    """Both nodes read one initializer, and no float copy of the table is left."""
    model = ir.load(tied[1].folder / graph.GRAPH_FILE)
    (blocks,) = [
        v for name, v in model.graph.initializers.items() if name.startswith("lm_head") and "blocks" in name
    ]
    assert {node.op_type for node, _ in blocks.uses()} == {"MatMulNBits", "Reshape"}
    table = tiny_models.VOCAB * 64
    assert all(
        np.prod(v.shape.numpy()) * v.dtype.itemsize < 4 * table for v in model.graph.initializers.values()
    )


def test_logits_do_not_depend_on_the_chunks(tied: tuple[Path, ExportSummary]) -> None:
    model = EdgeModel(tied[1].folder, threads=1)
    window = np.arange(100) % 256
    whole = np.concatenate(list(model.logits(window)))
    parts = list(model.logits(window, chunk=33))
    assert [len(part) for part in parts] == [33, 33, 33, 1] and whole.shape == (100, model.vocab_size)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
    with pytest.raises(AwpError, match="129 tokens are more than the context of 128"):
        list(model.logits(np.zeros(129, dtype=np.int64)))
    with pytest.raises(AwpError, match="token 264 is outside the vocabulary of 264"):
        list(model.logits([264]))


def test_generation_follows_the_logits(tied: tuple[Path, ExportSummary]) -> None:
    """onnxruntime-genai's greedy text is the argmax of ONNX Runtime's logits, token by token."""
    model = EdgeModel(tied[1].folder, threads=2)
    prompt = "the river"
    tokens = list(model.encode(prompt))
    assert model.decode(tokens) == prompt and len(tokens) == len(prompt)
    expected = []
    for _ in range(6):
        expected.append(int(np.concatenate(list(model.logits(tokens + expected)))[-1].argmax()))
    assert model.generate(prompt, max_tokens=6) == model.decode(tokens + expected)[len(prompt) :]
    with pytest.raises(AwpError, match="leave room for one more"):
        model.generate("x" * 128)
    with pytest.raises(AwpError, match="leave out --chat"):
        model.generate(prompt, chat=True)  # the tiny tokenizer has no template


def test_a_written_weight_that_differs_is_found(tied: tuple[Path, ExportSummary], tmp_path: Path) -> None:
    """One code changed on disk: the check after writing names the node."""
    source, edge = CompressedModel(tied[0]), tmp_path / "edge"
    shutil.copytree(tied[1].folder, edge)
    layer, node = "model.layers.2.mlp.down_proj", "/model/layers.2/mlp/down_proj/MatMul"
    matches = {node: (graph.Rows(layer, 0, 64),)}
    dense = lambda name: source.layer(name).dense()  # noqa: E731
    assert check_weights(edge, matches, dense).zeros == (dense(layer) == 0).sum()
    blocks = ir.load(edge / graph.GRAPH_FILE).graph.initializers[f"{layer}.MatMul.blocks"].const_value
    data = bytearray((edge / graph.DATA_FILE).read_bytes())
    data[blocks.offset + 100] ^= 0x10
    (edge / graph.DATA_FILE).write_bytes(data)
    with pytest.raises(
        AwpError, match=r"layers\.2/mlp/down_proj/MatMul: the written graph holds other weights"
    ):
        check_weights(edge, matches, dense)


FAMILIES: Mapping[str, tuple[str, dict[str, object], CompressSpec, str, ExportOptions, float]] = {
    "biases, 3 bits": (
        "llama-untied", {"attention_bias": True}, CompressSpec(method="rtn", bits=3, group_size=64), "",
        ExportOptions(accuracy_level=0, lm_head="fp32"), EXACT,
    ),
    "low rank, int4 head": (
        "qwen3", {"tie_word_embeddings": True}, CompressSpec(method="asvd", rank=0.5), "",
        ExportOptions(lm_head="int4"), 0.3,
    ),
    "low rank, matrices that the builder splits": (
        "phi3", {}, CompressSpec(method="svd", rank=0.5), "", ExportOptions(accuracy_level=0, lm_head="fp32"), EXACT,
    ),
    "k skipped, 8 bits, int8 activations": (
        "llama", {}, CompressSpec(method="rtn", bits=8, group_size=16), "k_proj", ExportOptions(accuracy_level=4), 0.05,
    ),
    "pruned only, bfloat16": (
        "llama", {"dtype": "bfloat16"}, CompressSpec(method="magnitude", sparsity=0.5), "",
        ExportOptions(lm_head="fp32"), EXACT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAMILIES)
def test_every_kind_of_layer_runs(case: str, tmp_path: Path) -> None:
    family, config, spec, skip, options, tolerance = FAMILIES[case]
    model = tiny_models.build(family, tmp_path / "model", **config)
    source = compress(model, tmp_path / "compressed", spec, skip=skip)
    summary = export_model(source, tmp_path / "edge", options)
    assert summary.agreement.kl < tolerance
    assert summary.weights.layers == len(CompressedModel(source).layer_names())
    assert not list(tmp_path.glob("*.partial"))
    if tolerance == EXACT:
        assert summary.agreement.max_difference < 1e-4 and summary.agreement.top1 == 1


def test_a_plain_folder_is_exported_as_it_is(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    summary = export_model(model, tmp_path / "edge")
    assert summary.options.lm_head == "fp32" and summary.weights is None and summary.agreement.kl < EXACT
    with pytest.raises(AwpError, match="is an exported folder already"):
        export_model(summary.folder, tmp_path / "again")
    window = np.arange(40)
    again = compare_logits(TorchModel(model).logits(window), EdgeModel(summary.folder).logits(window))
    assert again.kl < EXACT and again.max_difference < 1e-4


PRUNED = CompressSpec(method="magnitude", sparsity=0.5)
NIBBLES = CompressSpec(method="rtn", bits=4, group_size=32)


@pytest.mark.parametrize(("family", "spec", "dtype"), [
    ("llama", PRUNED, "bfloat16"), ("llama", NIBBLES, "float32"), ("gpt2", NIBBLES, "float32"),
])  # fmt: skip
def test_transformers_loads_the_hf_format(
    family: str, spec: CompressSpec, dtype: str, tmp_path: Path
) -> None:
    """Weights are those of the compressed model; the model's dtype is kept where it holds them exactly."""
    model = tiny_models.build(family, tmp_path / "model", dtype="bfloat16")
    source = compress(model, tmp_path / "compressed", spec)
    summary = export_model(source, tmp_path / "hf", ExportOptions(format="hf"))
    written, compressed = ModelFolder(summary.folder), CompressedModel(source)
    assert written.config["dtype"] == dtype
    assert written.tensor_names() == ModelFolder(model).tensor_names()
    for name in compressed.layer_names():
        weight = written.tensor(f"{name}.weight")
        np.testing.assert_array_equal(
            weight.T if family == "gpt2" else weight, compressed.layer(name).dense()
        )
    window = np.arange(40)
    same = compare_logits(TorchModel(source).logits(window), TorchModel(summary.folder).logits(window))
    assert same.kl < EXACT


# ------------------------------------------------------------------------------------------------ tracing weights
def float_graph(weights: Mapping[str, np.ndarray]) -> Any:
    """Return a graph with one MatMul per (N, K) weight, named as its key."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["n", 64])
    nodes, constants = [], []
    for name, weight in weights.items():
        constants.append(ir.val(f"{name}.weight", const_value=ir.tensor(np.ascontiguousarray(weight.T))))
        nodes.append(ir.node("MatMul", [x, constants[-1]], name=name))
    outputs = [node.outputs[0] for node in nodes]
    made = ir.Graph([x], outputs, nodes=nodes, initializers=constants, opset_imports={"": 21})
    return ir.Model(made, ir_version=10)


def test_stacked_and_split_linears_are_traced() -> None:
    rng = np.random.default_rng(0)
    q, k, fused, other = (rng.standard_normal((rows, 64), dtype=np.float32) for rows in (8, 4, 12, 6))
    model = float_graph({"layers.0/qk": np.concatenate([q, k]), "layers.0/up": fused[:5],
                         "layers.0/router": other, "layers.0/gate": fused[5:]})  # fmt: skip
    layers = {"m.layers.0.q": q, "m.layers.0.k": k, "m.layers.0.fused": fused}
    matches = graph.match_layers(model, list(layers), layers.__getitem__)
    found = {
        node: [(part.layer[-1], part.start, part.stop) for part in rows] for node, rows in matches.items()
    }
    assert found == {"layers.0/qk": [("q", 0, 8), ("k", 0, 4)], "layers.0/up": [("d", 0, 5)],
                     "layers.0/gate": [("d", 5, 12)]}  # fmt: skip


def test_factors_of_split_linears_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    """Products would not do: those of a slice may differ in bits, and other factors may have the same."""
    rng = np.random.default_rng(0)
    left, right = (
        rng.standard_normal((12, 3), dtype=np.float32),
        rng.standard_normal((3, 64), dtype=np.float32),
    )
    weight = left @ right
    parts = {"layers.0/gate/MatMul": (0, 5), "layers.0/up/MatMul": (5, 12)}
    matches = {node: (graph.Rows("fused", *part),) for node, part in parts.items()}
    check = lambda: check_weights(tmp_path, matches, lambda _: weight, factors=lambda _: (left, right))  # noqa: E731

    def write(factor: float, shift: int) -> None:
        model = float_graph({node: weight[slice(*part)] for node, part in parts.items()})
        rows = np.roll(left, shift, axis=0)
        FactorMatMuls({node: (rows[slice(*part)] * factor, right / factor) for node, part in parts.items()})(
            model
        )
        ir.save(model, tmp_path / graph.GRAPH_FILE)

    write(np.float32(1), 0)
    assert check().layers == 1 and check().weights == weight.size
    for factor, shift in ((np.float32(2), 0), (np.float32(1), 1)):
        write(factor, shift)
        with pytest.raises(AwpError, match=r"layers\.0/gate/MatMul: the written graph holds other weights"):
            check()


def test_a_weight_that_differs_in_one_bit_is_an_error() -> None:
    weight = np.ones((8, 64), dtype=np.float32)
    changed = weight.copy()
    changed[5, 7] = np.nextafter(np.float32(1), np.float32(2))
    model = float_graph({"layers.0/o_proj/MatMul": changed})
    with pytest.raises(AwpError, match=r"layers\.0\.o_proj \(8, 64\).*layers\.0/o_proj/MatMul"):
        graph.match_layers(model, ["layers.0.o_proj"], lambda _: weight)


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(("choice", "message"), [
    ({"weights": "csr"}, "auto, dense, sparse"), ({"format": "gguf"}, "genai, hf"),
    ({"accuracy_level": 3}, "0, 4"), ({"lm_head": "int3"}, "int8, int4, fp32"),
])  # fmt: skip
def test_options_that_are_not_offered(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportOptions(**choice)


@pytest.mark.parametrize(("family", "message"), [
    ("bert", "BertModel is not a causal language model"),
    ("opt", "OPTForCausalLM is not known to the model builder"),
])  # fmt: skip
def test_models_that_cannot_be_exported(family: str, message: str, tmp_path: Path) -> None:
    model = tiny_models.build(family, tmp_path / "model")
    with pytest.raises(AwpError, match=message):
        export_model(model, tmp_path / "edge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_sources_that_cannot_be_exported(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    spec = CompressSpec(method="rtn", bits=4, group_size=8)
    source = compress(model, tmp_path / "compressed", spec)
    with pytest.raises(AwpError, match=r"group size 8 is not a power of two .* --group-size 16 or 32 or 64"):
        export_model(source, tmp_path / "edge")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(AwpError, match="has no tokenizer files"):
        export_model(source, tmp_path / "edge")
    write_json(source / "manifest.json", {**read_json(source / "manifest.json"), "schema_version": 0})
    with pytest.raises(AwpError, match="schema version 0"):
        export_model(source, tmp_path / "edge")
    assert not (tmp_path / "edge").exists() and not (tmp_path / "edge.partial").exists()


def test_scaled_inputs_need_a_plain_folder(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    source = compress(model, tmp_path / "compressed", CompressSpec(method="awq", bits=4, group_size=32))
    with pytest.raises(
        AwpError, match=r"has AWQ's input scales, .* use --format hf, or compress with the default method$"
    ):
        export_model(source, tmp_path / "edge")
    export_model(source, tmp_path / "hf", ExportOptions(format="hf"))
    compressed, written = CompressedModel(source), ModelFolder(tmp_path / "hf")
    for name in compressed.layer_names():
        np.testing.assert_array_equal(written.tensor(f"{name}.weight"), compressed.layer(name).dense())


def test_an_output_that_is_in_use_is_refused(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "precious").write_text("kept")
    with pytest.raises(AwpError, match="is not empty"):
        export_model(model, tmp_path / "edge", ExportOptions(format="hf"))
    assert [path.name for path in (tmp_path / "edge").iterdir()] == ["precious"]


def test_the_checkpoint_of_a_compression_is_never_removed(tmp_path: Path) -> None:
    """Export builds in the same OUT.partial; what a killed export left there is no obstacle."""
    model = tiny_models.build("llama", tmp_path / "model")
    partial = tmp_path / "edge.partial"
    (partial / "blocks").mkdir(parents=True)
    (partial / "state.json").write_text("{}")
    with pytest.raises(
        AwpError, match=r"edge\.partial holds an unfinished compression; finish it with .*--resume"
    ):
        export_model(model, tmp_path / "edge", ExportOptions(format="hf"))
    assert sorted(path.name for path in partial.iterdir()) == ["blocks", "state.json"]
    (partial / "state.json").unlink()
    export_model(model, tmp_path / "edge", ExportOptions(format="hf"))
    assert not partial.exists()


def test_what_the_builder_says_is_passed_on(tmp_path: Path) -> None:
    """A model the builder chokes on gives one line and leaves nothing."""
    model = tiny_models.build("llama", tmp_path / "model")
    tensors = ModelFolder(model)
    kept = {name: tensors.stored(name) for name in tensors.tensor_names() if "layers.2" not in name}
    write_tensors(model / "model.safetensors", {**kept, "extra": StoredTensor.of(np.zeros(1, np.float32))})
    write_json(model / "config.json", {**read_json(model / "config.json"), "num_attention_heads": 5})
    with pytest.raises(AwpError, match=r"^the model builder of onnxruntime-genai failed: [^\n]+ hf$"):
        export_model(model, tmp_path / "edge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
