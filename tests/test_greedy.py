"""The emulation of bench/greedy.py on a tiny model: its inputs are the operator's, and it tells another model apart."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402
from awp_edge.export import sparse_reference  # noqa: E402
from awp_edge.export.package import ExportOptions, export_model  # noqa: E402
from awp_edge.export.roofline import random_sparse  # noqa: E402
from awp_edge.export.runtime import EdgeModel  # noqa: E402
from awp_edge.export.sparse_packing import block_order  # noqa: E402
from test_export import compress  # noqa: E402
from test_sparse_export import BALANCED, SHAPE  # noqa: E402

from awp_edge.calibrate.runner import TorchModel  # noqa: E402

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(scope="module")
def greedy() -> ModuleType:
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("greedy", BENCH / "greedy.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCH))
    return module


def test_inputs_are_rounded_as_by_the_operator(greedy: ModuleType) -> None:
    packed = random_sparse((16, 192), kept=32, group=64)
    x = np.random.default_rng(0).standard_normal((3, 192)).astype(np.float32)
    x[1, :] = 0
    steps = sparse_reference.quantize(packed, x)
    order = block_order(192, turned=packed.interleaved)
    (rounded,) = greedy.int8_inputs(64, order)(None, (torch.from_numpy(x),))
    wanted = (steps.steps * steps.scales[..., None]).reshape(3, 192)
    np.testing.assert_allclose(rounded.numpy()[:, order], wanted, rtol=1e-6)


def test_the_emulation_follows_the_runtime(greedy: ModuleType, tmp_path: Path) -> None:
    compressed = compress(tiny_models.build("llama", tmp_path / "model", **SHAPE), tmp_path / "c", BALANCED)
    edge = export_model(
        compressed, tmp_path / "edge", ExportOptions(weights="sparse", accuracy_level=4)
    ).folder
    runtime = EdgeModel(edge, threads=1)
    model, double = (greedy.emulation(compressed, edge, threads=1, double=double) for double in (False, True))
    row = greedy.compared(model, double, runtime, "the river", tokens=12)
    assert row["tokens"] > 1 and greedy.report([row])["within"]
    plain = greedy.compared(TorchModel(compressed, threads=1), double, runtime, "the river", tokens=12)
    assert 0 < row["emulation_difference"]["mean"] < plain["logit_difference"]["mean"] / 2
    assert row["logit_difference"]["mean"] < plain["logit_difference"]["mean"] / 2


def test_a_token_may_be_another_where_the_lead_is_within_what_rounding_moves(greedy: ModuleType) -> None:
    logits = np.array([[1.0, 4.0, 3.0], [0.0, -1.0, 2.0]])
    moved = greedy.leads(logits, logits + np.array([[9.0, 0.25, 0.5], [0.0, 7.0, -0.5]]))
    np.testing.assert_array_equal(moved, [0.25, 0.5])
    for gap, moved, within in ((0.2, 0.2, True), (0.3, 0.2, False), (0.6, 0.7, False)):
        rows = [{"tokens": 5, "leaves": 1, "largest_gap": gap, "tolerance": moved}]
        assert greedy.report(rows)["within"] == within
