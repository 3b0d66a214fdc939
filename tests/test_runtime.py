"""An edge folder in use: its tokenizer, timings, what a user may edit, and what is found damaged."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
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

from awp_edge.cli.evaluation import open_source
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


def greedy(model: EdgeModel, tokens: list[int], count: int) -> str:
    """Return the text of the most likely tokens, one after the other."""
    found: list[int] = []
    for _ in range(count):
        found.append(int(np.concatenate(list(model.logits(tokens + found)))[-1].argmax()))
    return model.decode(found)


def test_text_goes_on_behind_bytes_that_are_not_utf_8(exported: Path) -> None:
    model = EdgeModel(exported, threads=1)
    wanted = greedy(model, list(model.encode("the")), 6)
    assert "\ufffd" in wanted[:-1] and model.generate("the", max_tokens=6) == wanted


def test_prompts_begin_as_the_tokenizer_begins_a_text(edge: Path) -> None:
    """With its BOS, but not with the EOS it puts behind; a chat template has its own special tokens."""
    saved = read_json(edge / "tokenizer.json")
    special = {
        name: {"id": name, "ids": [token], "tokens": [name]} for name, token in (("<s>", 256), ("</s>", 257))
    }
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "</s>", "type_id": 0}}]  # fmt: skip
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    write_json(edge / "tokenizer.json", {**saved, "post_processor": processor})
    manifest = read_json(edge / "manifest.json")
    manifest["files"]["tokenizer.json"]["bytes"] = (edge / "tokenizer.json").stat().st_size
    write_json(edge / "manifest.json", manifest)
    (edge / "chat_template.jinja").write_text(
        "<s>{% for message in messages %}{{ message.content }}:{% endfor %}"
    )
    model = EdgeModel(edge, threads=1)
    text = list(model.encode("the"))
    assert model.generate("the", max_tokens=4) == greedy(model, [256, *text], 4) != greedy(model, text, 4)
    asked = [256, *model.encode("the:")]
    assert model.generate("the", max_tokens=4, chat=True) == greedy(model, asked, 4)
    with pytest.raises(AwpError, match="the prompt has 0 tokens"):
        model.generate("")


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


def test_a_graph_that_does_not_run_gets_one_line(edge: Path) -> None:
    config = read_json(edge / "genai_config.json")
    config["model"]["decoder"]["num_key_value_heads"] = 3
    write_json(edge / "genai_config.json", config)
    with pytest.raises(AwpError, match=r"^ONNX Runtime cannot run [^\n]+edge: [^\n]+$"):
        list(EdgeModel(edge).logits([1, 2]))


def test_a_generation_that_fails_gets_one_line(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory\nin a node")

    monkeypatch.setattr(EdgeModel, "_generator", fail)
    with pytest.raises(AwpError, match=r"^onnxruntime-genai cannot run [^\n]+: no memory$"):
        EdgeModel(exported).generate("the")


def test_bench_measures_in_a_process_of_its_own(exported: Path) -> None:
    """Also where prompt and tokens fill the context: the run that warms up is no longer than those measured."""
    model = EdgeModel(exported, threads=1)
    measured = model.bench(prompt_tokens=124, tokens=4, repeats=1)
    assert measured["bytes"] == model.n_bytes and measured["threads"] == 1
    assert min(measured[f"{part}_tokens_per_second"] for part in ("decode", "prefill")) > 0
    assert 0 < measured["time_to_first_token_s"] < 10 and measured["peak_memory_bytes"] > 1e7
    with pytest.raises(AwpError, match="more than the context of 128"):
        model.bench(prompt_tokens=100, tokens=29)


def test_a_damaged_folder_is_refused(edge: Path) -> None:
    verify(edge)
    data = edge / "model.onnx.data"
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    with pytest.raises(AwpError, match=r"model\.onnx\.data differs from the manifest's SHA-256"):
        open_source(edge)
    data.write_bytes(damaged[:-1])
    with pytest.raises(AwpError, match="the manifest says"):
        EdgeModel(edge)
    manifest = read_json(edge / "manifest.json")
    write_json(edge / "manifest.json", {**manifest, "schema_version": 99})
    with pytest.raises(AwpError, match="has schema version 99, this program reads 1"):
        EdgeModel(edge)
    (edge / "manifest.json").write_text("{")
    with pytest.raises(AwpError, match="not valid JSON"):
        EdgeModel(edge)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, ("tokenizer.json is damaged", "cannot use the tokenizer of")),
        ("genai_config.json", None, ("genai_config.json: not valid JSON",)),
        ("genai_config.json", "{}", ("genai_config.json lacks model.context_length",)),
        ("genai_config.json", "[]", ("genai_config.json lacks model.context_length",)),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda model: model.encode("the") + next(model.logits([1])),
        lambda model: model.generate("the", max_tokens=1),
    ],
    ids=["logits", "generate"],
)
def test_a_damaged_file_of_equal_size_gets_one_line(
    edge: Path, file: str, content: str | None, message: tuple[str, ...], use: Callable[[EdgeModel], object]
) -> None:
    path = edge / file
    path.write_text("x" * path.stat().st_size if content is None else content)
    with pytest.raises(AwpError, match="|".join(map(re.escape, message))) as caught:
        use(EdgeModel(edge))
    assert "\n" not in str(caught.value)
