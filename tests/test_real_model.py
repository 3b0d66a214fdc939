"""The whole road on a real language model: fetch, compress, export, evaluate, generate."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import succeeded

from awp_edge.cli.compression import default_cache
from awp_edge.cli.demo import python_help

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model() -> Path:
    """SmolLM2-135M, kept between runs."""
    folder = default_cache() / "smollm2-135m"
    succeeded("fetch", "smollm2-135m", folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "help.txt"
    path.write_text(python_help(), encoding="utf-8")
    return path


def test_the_whole_road(model: Path, text: Path, tmp_path: Path) -> None:
    compressed, edge = tmp_path / "compressed", tmp_path / "edge"
    small = ("--calibration", text, "--samples", 2, "--seq-len", 512, "--one-shot")
    made = succeeded(
        "compress", model, compressed, "--method", "wanda", "--sparsity", 0.3, "--bits", 8, *small, "--json"
    ).json
    assert len(made["layers"]) == 210 and 0 < made["mean_relative_error"] < 0.02
    assert made["bits_per_weight"] < 8.7

    read_back = succeeded("export", compressed, edge, "--json").json["weights"]
    assert read_back["zeros"] > 0.299 * read_back["weights"]

    judged = succeeded(
        "eval", edge, "--text", text, "--seq-len", 512, "--windows", 1, "--against", model, "--json"
    ).json
    assert judged["kl"] < 0.2 and judged["top1_agreement"] > 0.8

    answer = succeeded(
        "generate", edge, "--prompt", "The capital of France is", "--max-tokens", 8, "--json"
    ).json
    assert "Paris" in answer["text"]
