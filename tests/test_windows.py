"""Models whose attention has a window: exported for real, and checked beyond it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awp_edge.errors import AwpError

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")
ir = pytest.importorskip("onnx_ir")

import tiny_models  # noqa: E402
from awp_edge.export import graph  # noqa: E402
from awp_edge.export.check import Agreement, compare_logits, require_agreement  # noqa: E402
from awp_edge.export.package import ExportOptions, export_model  # noqa: E402
from awp_edge.export.runtime import EdgeModel  # noqa: E402
from test_export import EXACT  # noqa: E402

from awp_edge.calibrate.runner import TorchModel  # noqa: E402


def test_a_window_of_all_layers_is_in_the_graph(tmp_path: Path) -> None:
    """The builder leaves it out, and the check of an export is too short to see that."""
    model = tiny_models.build("mistral", tmp_path / "model")
    edge = EdgeModel(export_model(model, tmp_path / "edge", ExportOptions(accuracy_level=0)).folder)
    assert windows_of(edge.folder) == {80}
    tokens = np.random.default_rng(0).integers(0, 256, edge.context_length)
    agreement = compare_logits(TorchModel(model).logits(tokens), edge.logits(tokens))
    assert agreement.tokens == 128 and agreement.kl < EXACT and agreement.max_difference < 1e-4


def windows_of(folder: Path) -> set[int]:
    nodes = [n for n in ir.load(folder / graph.GRAPH_FILE).graph if n.op_type == "GroupQueryAttention"]
    return {int(node.attributes["local_window_size"].value) for node in nodes}


def test_windows_of_some_layers_keep_whole_caches(tmp_path: Path) -> None:
    """Both runtimes take the folder far beyond the window, and generation follows the logits."""
    model = tiny_models.build("gemma2", tmp_path / "model")
    summary = export_model(model, tmp_path / "edge")
    assert summary.agreement.kl < EXACT and windows_of(summary.folder) == {16, -1}
    edge = EdgeModel(summary.folder)
    tokens = list(edge.encode("the river " * 4))
    expected: list[int] = []
    for _ in range(6):
        expected.append(int(np.concatenate(list(edge.logits(tokens + expected)))[-1].argmax()))
    assert len(set(expected)) > 1
    generator = edge._generator(len(tokens) + 6)
    generator.append_tokens(tokens)
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.get_sequence(0).tolist() == tokens + expected


SOME = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(("config", "expected"), [
    ({"model_type": "llama"}, None), ({"model_type": "llama", "sliding_window": 32}, None),
    ({"model_type": "qwen2", "sliding_window": None, "layer_types": SOME}, [-1, -1]),
    ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False}, [-1, -1]),
    ({"model_type": "gemma2", "sliding_window": 32, "layer_types": SOME}, [32, -1]),
    ({"model_type": "mistral", "sliding_window": 32}, [32, 32]),
    ({"model_type": "mistral", "sliding_window": None}, [-1, -1]),
    ({"model_type": "mistral"}, [4096, 4096]), ({"model_type": "phi3"}, [-1, -1]),
])  # fmt: skip
def test_windows_are_those_of_the_config(config: dict[str, Any], expected: list[int] | None) -> None:
    assert graph.windows({"num_hidden_layers": 2, **config}) == expected


def test_a_layer_with_another_window_is_refused() -> None:
    config = {"model_type": "gemma2", "num_hidden_layers": 2, "sliding_window": 32, "layer_types": SOME}
    for given, seen in (((32, -1), None), ((32, 32), "32 tokens back, the model all tokens;")):
        nodes = [
            ir.node("GroupQueryAttention", [], {"local_window_size": size}, name=f"/model/layers.{i}/attn")
            for i, size in enumerate(given)
        ]
        model = ir.Model(ir.Graph([], [], nodes=nodes, name="g"), ir_version=10)
        if seen is None:
            graph.set_windows(model, config)
        else:
            with pytest.raises(AwpError, match=seen):
                graph.set_windows(model, config)


@pytest.mark.parametrize(("level", "head", "advice"), [
    (4, "int8", "try --accuracy-level 0 or --lm-head fp32"), (0, "int8", "try --lm-head fp32"),
    (4, "fp32", "try --accuracy-level 0"), (0, "fp32", "use --format hf"),
])  # fmt: skip
def test_logits_that_are_off_name_what_was_not_tried(level: int, head: str, advice: str) -> None:
    assert require_agreement(Agreement(64, 0.0, 0.0, 1.0), accuracy_level=level, head=head) > 0
    for kl in (1.0, float("nan")):
        with pytest.raises(AwpError, match=f"nothing was written: {advice}$"):
            require_agreement(Agreement(64, 9.0, kl, 0.5), accuracy_level=level, head=head)
