"""Everything a user can get wrong: one clear line, the right exit code, nothing half-written."""

import json
import resource
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from command_line import awp_edge, obey_permissions, succeeded, tree
from tiny_models import build, edit, shard, write_text

CALIBRATION = ("--samples", 4, "--seq-len", 64)
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 2000)


@pytest.fixture(scope="module")
def compressed(model, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("compressed") / "small"
    succeeded("compress", model, out, "--bits", 4, "--calibration", text, *CALIBRATION)
    return out


@pytest.fixture
def damaged(model, tmp_path):
    return shutil.copytree(model, tmp_path / "damaged")


@pytest.fixture
def compress(text, tmp_path):
    """Run compress into a folder of its own; require that a refusal leaves nothing behind."""

    def run(model, *options, code=1, calibration=text, **process):
        out = tmp_path / "out"
        asked = options or ("--sparsity", 0.5)
        done = awp_edge("compress", model, out, *asked, "--calibration", calibration, *CALIBRATION, **process)
        line = done.refused(code=code)
        assert not out.exists() and not out.with_name("out.partial").exists()
        return line

    return run


# Folders


def test_a_missing_folder(compress, tmp_path):
    assert "does not exist" in compress(tmp_path / "none")


def test_a_folder_without_a_model(compress, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json" in compress(tmp_path / "empty")


def test_a_file_in_place_of_a_folder(compress, text):
    assert "text.txt" in compress(text)


@pytest.mark.parametrize(
    ("locked", "code", "expected"),
    [
        (".", 2, "not readable"),
        ("config.json", 1, "Permission denied"),
        ("model.safetensors", 1, "Permission denied"),
    ],
)
def test_a_model_without_permission_to_read(compress, damaged, locked, code, expected):
    (damaged / locked).chmod(0)
    try:
        line = compress(damaged, code=code, preexec_fn=obey_permissions)
    finally:
        (damaged / locked).chmod(0o755)
    assert expected in line and "damaged" in line


def test_a_config_that_is_not_json(compress, damaged):
    (damaged / "config.json").write_text("{")
    assert "config.json" in compress(damaged)


def test_truncated_weights(compress, damaged):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "cut short" in compress(damaged)


def test_a_truncated_header(compress, damaged):
    (damaged / "model.safetensors").write_bytes(struct.pack("<Q", 5000) + b"{")
    assert "cut short" in compress(damaged)


def test_a_missing_shard(compress, damaged):
    shard(damaged)
    next(damaged.glob("model-00002*")).unlink()
    assert "model-00002" in compress(damaged)


def test_a_model_without_a_block_stack_of_linears(compress, tmp_path):
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    assert "block" in compress(tmp_path / "resnet")


def test_the_unknown_architecture(compress, damaged):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(
        json.dumps({**config, "model_type": "nosuch", "architectures": ["NoSuch"]})
    )
    assert "nosuch" in compress(damaged).lower()


# Weights and activations


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(compress, damaged, value):
    edit(damaged, Q_PROJ, lambda w: w.index_fill(0, torch.tensor([3]), value))
    assert "layers.1.self_attn.q_proj" in compress(damaged)


def test_activations_that_are_not_finite(compress, damaged):
    edit(damaged, "model.layers.0.mlp.down_proj.weight", lambda w: w * 3e38)
    edit(damaged, "model.layers.0.mlp.up_proj.weight", lambda w: w * 1e38)
    assert "NaN or infinite" in compress(damaged)


# Options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((("--method", "awp")), "nothing to do"),
        ((("--sparsity", 1.0)), "[0, 1)"),
        ((("--sparsity", -0.1)), "[0, 1)"),
        ((("--sparsity", "nan")), "[0, 1)"),
        ((("--bits", 5)), "bits"),
        ((("--bits", 4, "--group-size", 48)), "48"),
        ((("--bits", 4, "--group-size", "many")), "group-size"),
        ((("--bits", 4, "--group-size", "\u00b2")), "group-size"),
        ((("--sparsity", 0.999)), "k = 0"),
        ((("--pattern", "2:4", "--sparsity", 0.3)), "2:4"),
        ((("--pattern", "half")), "half"),
        ((("--pattern", "3:7")), "7"),
        ((("--rank", 0.5, "--bits", 4)), "--rank"),
        ((("--rank", 0)), "rank"),
        ((("--method", "nosuch", "--bits", 4)), "nosuch"),
        ((("--method", "rtn", "--sparsity", 0.5)), "rtn"),
        ((("--bits", 4, "--backend", "cuda")), "backend"),
        ((("--bits", 4, "--threads", 0)), "--threads"),
        ((("--bits", 4, "--skip", "*")), "skip"),
        ((("--bits", 4, "--skip", "nosuch")), "nosuch"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_options_that_cannot_be_served(compress, model, options, expected):
    assert expected in compress(model, *options, code=2)


def test_a_usage_error_is_json_too(model, tmp_path):
    run = awp_edge("compress", model, tmp_path / "out", "--json")
    assert run.json["error"] in run.refused(code=2)
    run = awp_edge("compress", model, "--nosuch", "--json")
    assert run.json["error"] in run.refused(code=2)


def test_too_little_memory(compress, model):
    assert "--max-memory" in compress(model, "--bits", 4, "--max-memory", 0.01)


# Texts


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [("empty.txt", "", "text"), ("short.txt", "too short", "64"), ("bad.jsonl", '{"txt": 1}\n', "line 1")],
)
def test_calibration_texts_that_will_not_do(compress, model, tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    assert expected in compress(model, calibration=tmp_path / name)


def test_a_calibration_text_that_is_not_there(compress, model, tmp_path):
    assert "none.txt" in compress(model, calibration=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("content", "expected"), [("", "0 tokens"), ("too short", "one window needs 64"), (None, "cannot read")]
)
def test_evaluation_texts_that_will_not_do(model, tmp_path, content, expected):
    if content is not None:
        (tmp_path / "t.txt").write_text(content)
    assert expected in awp_edge("eval", model, "--text", tmp_path / "t.txt", "--seq-len", 64).refused()


# Outputs


@pytest.mark.parametrize("output", ["none/eval.json", "file/eval.json", "folder"])
def test_an_evaluation_whose_result_cannot_be_written_does_not_begin(model, tmp_path, output):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    run = awp_edge("eval", model, "--text", tmp_path / "not-even-read.txt", "--output", tmp_path / output)
    assert f"cannot write {tmp_path / output}: " in run.refused()


def test_an_output_that_is_not_empty(model, text, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    run = awp_edge("compress", model, tmp_path / "out", "--bits", 4, "--calibration", text, *CALIBRATION)
    assert "not empty" in run.refused()
    assert tree(tmp_path) == {"out/mine": b"keep"}


def test_an_output_that_cannot_be_written(model, text, tmp_path):
    (tmp_path / "file").write_text("")
    run = awp_edge(
        "compress", model, tmp_path / "file" / "out", "--bits", 4, "--calibration", text, *CALIBRATION
    )
    assert "file" in run.refused()
    assert tree(tmp_path) == {"file": b""}


def test_a_full_disk(compress, model):
    """A limit on file size stands for it: the first large write fails in the same place."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    assert "awp-edge" in compress(model, "--sparsity", 0.5, preexec_fn=limit)


@pytest.mark.parametrize("form", ["genai", "hf"])
def test_a_full_disk_in_an_export(compressed, tmp_path, form):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    line = awp_edge("export", compressed, tmp_path / "edge", "--format", form, preexec_fn=limit).refused()
    assert "edge" in line and ("File too large" in line or "no space left" in line)
    assert not list(tmp_path.iterdir())


def test_an_export_folder_that_is_not_empty_or_not_writable(compressed, tmp_path):
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "mine").write_text("keep")
    assert "not empty" in awp_edge("export", compressed, tmp_path / "edge").refused()
    below = tmp_path / "edge" / "mine" / "edge"
    assert "mine" in awp_edge("export", compressed, below).refused()
    assert tree(tmp_path) == {"edge/mine": b"keep"}


def test_fetching_into_a_folder_that_is_not_empty(tmp_path):
    (tmp_path / "mine").write_text("keep")
    assert "not empty" in awp_edge("fetch", "smollm2-135m", tmp_path).refused()
    assert tree(tmp_path) == {"mine": b"keep"}


# Unfinished runs


@pytest.fixture
def unfinished(model, text, tmp_path):
    """An OUT.partial with one finished block, as an interrupted run leaves it."""
    code = (
        "import awp_edge.compress as c, awp_edge.cli as cli, sys\n"
        "from awp_edge.calibrate.stream import BlockStream\n"
        "advance, calls = BlockStream.advance, []\n"
        "def once(self, block, weights):\n"
        "    if block: raise KeyboardInterrupt\n"
        "    advance(self, block, weights)\n"
        "BlockStream.advance = once\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    asked = ("compress", model, tmp_path / "out", "--sparsity", 0.5, "--calibration", text, *CALIBRATION)
    arguments = [str(word) for word in asked]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert (tmp_path / "out.partial" / "state.json").is_file()
    return arguments


def test_resuming_with_other_options(unfinished, tmp_path):
    before = tree(tmp_path / "out.partial")
    changed = [a if a != "0.5" else "0.6" for a in unfinished]
    assert "sparsity was 0.5 and is now 0.6" in awp_edge(*changed, "--resume").refused()
    assert {k: v for k, v in tree(tmp_path / "out.partial").items() if k != "compress.log"} == {
        k: v for k, v in before.items() if k != "compress.log"
    }


@pytest.mark.parametrize("file", ["state.json", "blocks/block-000.safetensors", "state/tokens.npy", "hidden"])
def test_a_corrupted_checkpoint(unfinished, tmp_path, file):
    partial = tmp_path / "out.partial"
    path = next(partial.glob("state/hidden-*")) if file == "hidden" else partial / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line = awp_edge(*unfinished, "--resume").refused()
    assert file == "state.json" or line.endswith(f"delete {partial} and start again")
    assert not (tmp_path / "out").exists()


# Other commands


def test_a_wrong_schema_version(compressed, tmp_path):
    copy = shutil.copytree(compressed, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    assert "99" in awp_edge("export", copy, tmp_path / "edge").refused()
    assert "99" in awp_edge("report", copy).refused()
    assert not (tmp_path / "edge").exists() and not (copy / "report.html").exists()


def test_a_compressed_folder_that_lost_bytes(compressed, tmp_path):
    copy = shutil.copytree(compressed, tmp_path / "copy")
    block = copy / "blocks" / "block-001.safetensors"
    block.write_bytes(block.read_bytes()[:-10])
    assert "block-001" in awp_edge("export", copy, tmp_path / "edge").refused()
    assert not (tmp_path / "edge").exists() and not (tmp_path / "edge.partial").exists()


def test_export_of_something_that_is_no_causal_language_model(tmp_path):
    build("bert", tmp_path / "bert")
    assert "causal" in awp_edge("export", tmp_path / "bert", tmp_path / "edge").refused()
    assert not (tmp_path / "edge").exists()


def test_export_of_a_compressed_encoder(text, tmp_path):
    build("bert", tmp_path / "bert")
    succeeded(
        "compress", tmp_path / "bert", tmp_path / "small", "--bits", 4, "--calibration", text, *CALIBRATION
    )
    assert "causal" in awp_edge("export", tmp_path / "small", tmp_path / "edge").refused()
    assert {path.name for path in tmp_path.iterdir()} == {"bert", "small"}


def test_evaluation_of_something_that_is_no_causal_language_model(tmp_path, text):
    build("bert", tmp_path / "bert")
    assert "causal" in awp_edge("eval", tmp_path / "bert", "--text", text, "--seq-len", 64).refused()


def test_folders_of_the_wrong_kind(model, compressed, text, tmp_path):
    assert "compressed" in awp_edge("report", model).refused()
    for command in (("generate", compressed, "--prompt", "x"), ("bench", model)):
        assert "export" in awp_edge(*command).refused()
    assert "not exist" in awp_edge("eval", tmp_path / "none", "--text", text).refused()


@pytest.mark.parametrize(
    "options", [("--format", "gguf"), ("--weights", "packed"), ("--accuracy-level", 3), ("--lm-head", "fp8")]
)
def test_export_options_that_are_not_offered(compressed, tmp_path, options):
    assert str(options[1]) in awp_edge("export", compressed, tmp_path / "edge", *options).refused(code=2)
    assert not (tmp_path / "edge").exists()


def test_models_that_do_not_belong_together(model, text, tmp_path):
    other = build("llama", tmp_path / "other", vocab_size=300)
    run = awp_edge("eval", model, "--against", other, "--text", text, "--seq-len", 64)
    assert "264 and 300" in run.refused()


def test_an_unknown_model_name(tmp_path):
    assert "smollm2-135m" in awp_edge("fetch", "nosuch", tmp_path / "m").refused(code=2)
    assert not (tmp_path / "m").exists()


def test_a_missing_package_names_the_extra(model, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
    )
    run = awp_edge("plan", model, "--bits", 4, env={"PYTHONPATH": str(tmp_path)})
    assert "pip install 'awp-edge[calibrate]'" in run.refused()


def test_an_unexpected_error_is_one_line_and_a_log(model, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('first\\nsecond')\n")
    run = awp_edge("plan", model, "--bits", 4, env={"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)})
    assert run.code == 1 and len(run.err.strip().split("\n")) == 1
    assert "RuntimeError: first second" in run.err
    [log] = tmp_path.glob("awp-edge-*.log")
    assert str(log) in run.err and "Traceback" in log.read_text()
