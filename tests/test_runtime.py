"""An edge folder in use: its tokenizer, timings, what a user may edit, and what is found damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")
pytest.importorskip("onnx_ir")

import tiny_models
from awp_edge.export.manifest import verify
from awp_edge.export.package import export_model
from awp_edge.export.runtime import EdgeModel

from awp_edge.errors import AwpError
from awp_edge.storage import read_json, write_json


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    return export_model(tiny_models.build("llama", folder / "model"), folder / "edge").folder


@pytest.fixture
def edge(exported: Path, tmp_path: Path) -> Path:
    """A folder to edit."""
    return Path(shutil.copytree(exported, tmp_path / "edge"))


def test_the_whole_text_is_encoded_whatever_the_tokenizer_was_saved_with(edge: Path) -> None:
    text = "the river " * 20
    tokens = EdgeModel(edge).encode(text)
    saved = read_json(edge / "tokenizer.json")
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 257,
               "pad_type_id": 0, "pad_token": "</s>"}  # fmt: skip
    write_json(edge / "tokenizer.json", {**saved, "truncation": truncation, "padding": padding})
    manifest = read_json(edge / "manifest.json")
    manifest["files"]["tokenizer.json"]["bytes"] = (edge / "tokenizer.json").stat().st_size
    write_json(edge / "manifest.json", manifest)
    assert len(tokens) == len(text)
    np.testing.assert_array_equal(EdgeModel(edge).encode(text), tokens)


def test_the_configuration_may_be_edited(edge: Path) -> None:
    """As the documentation says for devices with other numbers of cores."""
    config = read_json(edge / "genai_config.json")
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = 2
    write_json(edge / "genai_config.json", config)
    assert len(EdgeModel(edge).generate("the", max_tokens=2)) > 0
    verify(edge)
    (edge / "genai_config.json").unlink()
    with pytest.raises(AwpError, match=r"genai_config\.json has None bytes"):
        EdgeModel(edge)


def test_bench_measures_in_a_process_of_its_own(exported: Path) -> None:
    """Also where prompt and tokens fill the context: the run that warms up is no longer than those measured."""
    model = EdgeModel(exported, threads=1)
    measured = model.bench(prompt_tokens=124, tokens=4, repeats=1)
    assert measured["bytes"] == model.n_bytes and measured["threads"] == 1
    assert min(measured[f"{part}_tokens_per_second"] for part in ("decode", "prefill")) > 0
    assert 0 < measured["time_to_first_token_s"] < 10 and measured["peak_memory_bytes"] > 1e7
    with pytest.raises(AwpError, match="more than the context of 128"):
        model.bench(prompt_tokens=100, tokens=29)
