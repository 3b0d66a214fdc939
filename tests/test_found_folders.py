"""Model folders as they are found: old names, other people's quantization, stale files, several models in one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from command_line import awp_edge, succeeded
from safetensors.numpy import load_file, save_file
from tiny_models import CONTEXT, build, build_nested, edit, rename, shard, whole, write_text

from awp_edge.calibrate.modules import Skeleton
from awp_edge.calibrate.request import context_length
from awp_edge.calibrate.runner import load_model
from awp_edge.models import ModelFolder

ASKED = ("--bits", 4, "--samples", 2, "--seq-len", 32)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 2000)


def configure(folder: Path, **entries: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return folder


def quantized(folder: Path) -> Path:
    """Store every linear as bitsandbytes does in 8 bits."""
    stored = load_file(folder / "model.safetensors")
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        scale = np.abs(stored[name]).max(axis=1)
        stored[name] = np.rint(stored[name] / scale[:, None] * 127).astype(np.int8)
        stored[name.replace(".weight", ".SCB")] = scale
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return configure(folder, quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"})


def test_weights_that_are_integers_already_are_refused(text, tmp_path):
    folder, out = quantized(build("llama", tmp_path / "model")), tmp_path / "out"
    runs = (
        awp_edge("plan", folder, *ASKED),
        awp_edge("compress", folder, out, *ASKED, "--calibration", text),
        awp_edge("eval", folder, "--text", text, "--seq-len", 32),
    )
    assert all("q_proj.weight is stored as integers" in run.refused() for run in runs)
    assert not out.exists()


def test_code_in_a_folder_is_not_run(tmp_path):
    folder = configure(
        build("llama", tmp_path / "model"), model_type="mine", architectures=["MineForCausalLM"],
        auto_map={"AutoConfig": "configuration_mine.MineConfig"},
    )  # fmt: skip
    (folder / "configuration_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    run = awp_edge("plan", folder, *ASKED, "--json", input="y\n")
    assert "needs code of its own, which is not run" in run.refused()
    assert "needs code of its own" in run.json["error"] and not (tmp_path / "ran").exists()


def test_the_names_of_old_files_are_found(tmp_path):
    expected = whole(build("bert", tmp_path / "model"))
    tokens = torch.arange(12)[None]
    rename(tmp_path / "model", lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma"))
    rename(tmp_path / "model", lambda name: name.replace("LayerNorm.bias", "LayerNorm.beta"))
    Skeleton(ModelFolder(tmp_path / "model")).outside()
    assert torch.allclose(load_model(tmp_path / "model")(tokens)[0], expected(tokens)[0], atol=1e-5)


def test_a_mask_that_no_model_reads_may_be_infinite(text, tmp_path):
    folder = build("gpt-neox", tmp_path / "model", dtype="float16")
    stored = load_file(folder / "model.safetensors")
    mask = {"gpt_neox.layers.0.attention.masked_bias": np.array(-np.inf, dtype=np.float16)}
    save_file({**stored, **mask}, folder / "model.safetensors", metadata={"format": "pt"})
    succeeded("compress", folder, tmp_path / "out", *ASKED, "--calibration", text)


def test_a_single_file_goes_before_an_index(tmp_path):
    folder, newer = build("llama", tmp_path / "model"), build("llama", tmp_path / "newer", seed=1)
    shard(folder)
    shutil.copyfile(newer / "model.safetensors", folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()[name].numpy()
    assert np.array_equal(ModelFolder(folder).tensor(name), loaded)


def test_positions_behind_the_padding_are_the_context(text, tmp_path):
    folder = build("roberta", tmp_path / "model")
    assert context_length(ModelFolder(folder)) == CONTEXT
    bare = configure(build("roberta", tmp_path / "bare"), pad_token_id=None)
    assert context_length(ModelFolder(bare)) == CONTEXT
    longest = ("--bits", 4, "--samples", 2, "--calibration", text)
    succeeded("compress", folder, tmp_path / "out", *longest)
    refused = awp_edge("compress", folder, tmp_path / "more", *longest, "--seq-len", CONTEXT + 1)
    assert f"exceeds the {CONTEXT} positions" in refused.refused(code=2)


def test_the_text_model_is_compressed_where_another_is_deeper(tmp_path):
    skeleton = Skeleton(ModelFolder(build_nested(tmp_path / "model", vision_blocks=5)))
    assert skeleton.stack_name == "model.language_model.layers" and len(skeleton.stack) == 3


def test_a_kernel_for_other_machines_is_not_asked_for(tmp_path):
    folder = configure(build("llama", tmp_path / "model"), _attn_implementation="flash_attention_2")
    assert len(succeeded("plan", folder, *ASKED, "--json").json["layers"]) == 21


def test_a_layer_of_tiny_weights_has_an_error(text, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    edit(build("llama", tmp_path / "model"), name, lambda weight: weight * 1e-30)
    done = succeeded(
        "compress", tmp_path / "model", tmp_path / "out", *ASKED, "--calibration", text, "--json"
    )
    [tiny] = [layer for layer in done.json["layers"] if f"{layer['name']}.weight" == name]
    assert 0 < tiny["relative_error"] < 1.001


def test_statistics_in_the_output_are_refused_before_the_run(text, tmp_path):
    folder = build("llama", tmp_path / "model")
    for inside in ("out", "out/statistics", "out.partial", "out.partial/statistics"):
        asked = ("--calibration", text, "--statistics", tmp_path / inside)
        line = awp_edge("compress", folder, tmp_path / "out", *ASKED, *asked).refused(code=2)
        assert "give a folder outside of OUT" in line
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_damaged_compressed_folder_is_not_evaluated(text, tmp_path):
    out = tmp_path / "out"
    succeeded("compress", build("llama", tmp_path / "model"), out, *ASKED, "--calibration", text)
    block = out / "blocks" / "block-001.safetensors"
    content = bytearray(block.read_bytes())
    content[-100] ^= 1
    block.write_bytes(content)
    assert "block-001.safetensors" in awp_edge("eval", out, "--text", text, "--seq-len", 32).refused()


@pytest.mark.parametrize("options", [("--max-memory", "inf"), ("--seed", 2**64)], ids=str)
def test_numbers_beyond_all_use_are_refused(options, tmp_path):
    refused = awp_edge("plan", build("llama", tmp_path / "model"), *ASKED, *options).refused(code=2)
    assert options[0] in refused
