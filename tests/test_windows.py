"""Models whose attention has a window: exported for real, and checked beyond it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awp_edge.errors import AwpError
from awp_edge.storage import read_json, write_json

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")
ir = pytest.importorskip("onnx_ir")

import tiny_models  # noqa: E402
from awp_edge.export import graph, package  # noqa: E402
from awp_edge.export.check import Agreement, compare_logits, require_agreement, sample_length  # noqa: E402
from awp_edge.export.manifest import MANIFEST_FILE  # noqa: E402
from awp_edge.export.package import export_model  # noqa: E402
from awp_edge.export.runtime import EdgeModel  # noqa: E402
from test_export import EXACT  # noqa: E402


def test_a_window_of_all_layers_is_in_the_graph_and_within_the_check(tmp_path: Path) -> None:
    """The builder leaves it out; a graph without it agrees as far as the window goes, and the check goes further."""
    model = tiny_models.build("mistral", tmp_path / "model")
    summary = export_model(model, tmp_path / "edge")
    assert summary.agreement.kl < EXACT and summary.agreement.max_difference < 1e-4
    assert windows_of(summary.folder) == {80}
    written, manifest = ir.load(summary.folder / graph.GRAPH_FILE), read_json(summary.folder / MANIFEST_FILE)
    for node in written.graph:
        if node.op_type == "GroupQueryAttention":
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", -1)
    ir.save(written, summary.folder / graph.GRAPH_FILE)
    size = (summary.folder / graph.GRAPH_FILE).stat().st_size
    manifest["files"][graph.GRAPH_FILE]["bytes"] = size
    write_json(summary.folder / MANIFEST_FILE, manifest)
    agreement = package._compare(package.Source(model), summary.folder)
    assert agreement.tokens == 64 and agreement.kl > 0.01


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


@pytest.mark.parametrize(("config", "window"), [
    ({}, None), ({"sliding_window": None}, None), ({"sliding_window": 32}, 32),
    ({"sliding_window": 32, "use_sliding_window": False}, None),
    ({"sliding_window": 32, "use_sliding_window": True}, 32),
])  # fmt: skip
def test_the_check_goes_beyond_windows_that_are_used(config: dict[str, Any], window: int | None) -> None:
    assert graph.attention_window(config) == window
    assert sample_length(128, window) == (96 if window else 64)
    assert sample_length(16, window) == 16 and sample_length(80, 80) == 64


def test_the_last_logits_are_compared_whatever_the_chunks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50, 8), dtype=np.float32)
    chunks = lambda logits, size: np.split(logits, range(size, 50, size))  # noqa: E731
    found = compare_logits(chunks(a, 7), chunks(b, 30), last=20)
    assert found == compare_logits([a[-20:]], [b[-20:]]) and found.tokens == 20
    assert compare_logits(chunks(a, 7), chunks(b, 30), last=64) == compare_logits([a], [b])


@pytest.mark.parametrize(("level", "head", "advice"), [
    (4, "int8", "try --accuracy-level 0 or --lm-head fp32"), (0, "int8", "try --lm-head fp32"),
    (4, "fp32", "try --accuracy-level 0"), (0, "fp32", "use --format hf"),
])  # fmt: skip
def test_logits_that_are_off_name_what_was_not_tried(level: int, head: str, advice: str) -> None:
    assert require_agreement(Agreement(64, 0.0, 0.0, 1.0), accuracy_level=level, head=head) > 0
    for kl in (1.0, float("nan")):
        with pytest.raises(AwpError, match=f"nothing was written: {advice}$"):
            require_agreement(Agreement(64, 9.0, kl, 0.5), accuracy_level=level, head=head)
