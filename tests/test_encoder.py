"""An encoder goes the same road as a language model, up to the export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from command_line import awp_edge, succeeded
from tiny_models import build, whole, write_text

from awp_edge.artifacts import CompressedModel
from awp_edge.calibrate.runner import load_model

ROOT = Path(__file__).parents[1]


def test_a_compressed_encoder_is_a_model_again(tmp_path: Path) -> None:
    build("bert", tmp_path / "bert")
    text = write_text(tmp_path / "text.txt")
    succeeded("compress", tmp_path / "bert", tmp_path / "small", "--sparsity", 0.5, "--calibration", text,
              "--samples", 8, "--seq-len", 64, "--json")  # fmt: skip
    tokens = torch.arange(32)[None]
    model, dense = load_model(tmp_path / "small"), load_model(tmp_path / "bert")
    assert torch.allclose(dense(tokens)[0], whole(tmp_path / "bert")(tokens)[0], atol=1e-5)
    assert not torch.allclose(model(tokens)[0], dense(tokens)[0], atol=1e-3)
    stored = CompressedModel(tmp_path / "small")
    for name, tensor in stored.tensors.items():
        assert np.array_equal(model.get_parameter(tensor).detach().numpy(), stored.layer(name).dense())
    refused = awp_edge("export", tmp_path / "small", tmp_path / "edge").refused()
    assert "BertModel is not a causal language model" in refused


def test_embeddings_are_compared_with_the_dense_ones(tmp_path: Path) -> None:
    build("bert", tmp_path / "bert")
    calibration = write_text(tmp_path / "calibration.txt")
    lines = write_text(tmp_path / "words.txt", seed=1).read_text()
    text = tmp_path / "sentences.txt"
    text.write_text("\n".join(lines[i : i + 60] for i in range(0, 2400, 60)))
    command = [sys.executable, ROOT / "bench" / "encoder.py", tmp_path / "bert", "--calibration", calibration,
               "--sentences", text, "--count", "16", "--samples", "8", "--seq-len", "64", "--work", tmp_path / "work",
               "--output", tmp_path / "encoder.json", "--rows", "50%:wanda", "50%:awp-plus", "INT3:rtn",
               "INT3:awp-plus"]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE)
    results = json.loads((tmp_path / "encoder.json").read_text())["results"]
    assert [(row["setting"], row["method"]) for row in results["rows"]] == [
        ("50%", "wanda"), ("50%", "awp-plus"), ("INT3", "rtn"), ("INT3", "awp-plus"),
    ]  # fmt: skip
    assert results["sentences"] == 16
    for plain, better in zip(results["rows"][::2], results["rows"][1::2], strict=True):
        assert better["mean_relative_error"] < plain["mean_relative_error"]
        assert 0 < plain["mean_cosine"] < better["mean_cosine"] < 1
        assert plain["least_cosine"] <= plain["mean_cosine"] and 0 <= plain["same_neighbour"] <= 1
