"""The command line's contract: commands, JSON, exit codes, and the road on a tiny model."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from awp_edge.export import measure as measuring
from awp_edge.export.runtime import EdgeModel
from command_line import AWP_EDGE, awp_edge, succeeded, tree
from tiny_models import build, edit, write_text

import awp_edge as package
from awp_edge.cli import console
from awp_edge.errors import AwpError
from awp_edge.models import ModelFolder

COMMANDS = ("fetch", "plan", "compress", "report", "export", "eval", "generate", "bench", "table", "demo")
CALIBRATION = ("--samples", 4, "--seq-len", 64)


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A tiny model, a text, a compressed folder and an edge folder, all made by the commands."""
    folder = tmp_path_factory.mktemp("road")
    build("llama", folder / "model")
    write_text(folder / "text.txt", 2000)
    small = succeeded("compress", folder / "model", folder / "small", "--bits", 4, "--sparsity", 0.5,
                      "--calibration", folder / "text.txt", *CALIBRATION, "--json")  # fmt: skip
    edge = succeeded("export", folder / "small", folder / "edge", "--json")
    return folder, small.json, edge.json


def test_version():
    assert succeeded("--version").out == f"awp-edge {package.__version__}\n"


def test_help_lists_every_command():
    out = succeeded("--help").out
    assert [name for name in COMMANDS if not re.search(rf"^  {name} ", out, re.MULTILINE)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command):
    assert "--json" in succeeded(command, "--help").out


def test_the_command_line_starts_without_heavy_imports():
    code = "import sys, awp_edge.cli; awp_edge.cli.main(['--help']); print(sorted(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    modules = out.splitlines()[-1]
    assert not [name for name in ("torch", "transformers", "onnxruntime", "onnx") if f"'{name}'" in modules]


def test_compress_reports_what_it_did(road):
    folder, made, _ = road
    assert {"mean_relative_error", "seconds", "solve_seconds", "bits_per_weight", "layers"} <= made.keys()
    assert made["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert 4 < made["bits_per_weight"] < 6
    assert len(made["layers"]) == 21
    assert {"name", "relative_error", "iterations", "seconds"} <= made["layers"][0].keys()
    assert (folder / "small" / "manifest.json").is_file() and not (folder / "small.partial").exists()


def test_compress_says_what_zeros_do_not_bring(road, tmp_path):
    folder, *_ = road
    run = succeeded("compress", folder / "model", tmp_path / "out", "--sparsity", 0.5, "--method", "magnitude",
                    "--calibration", folder / "text.txt", *CALIBRATION)  # fmt: skip
    assert "neither speed nor size; 4 bits bring both" in run.out
    assert "mean relative error" in run.out and "bits per weight" in run.out and "exact zeros" in run.out


def test_bits_are_those_of_the_export_that_is_named(road, tmp_path):
    folder, *_ = road
    asked = (folder / "model", "--method", "wanda", "--pattern", "32/64", "--bits", 4)
    calibration = ("--calibration", folder / "text.txt", *CALIBRATION)
    for group, name in ((64, "sparse"), (32, "dense")):
        planned = succeeded("plan", *asked, "--group-size", group, *calibration)
        run = succeeded(
            "compress", asked[0], tmp_path / name, *asked[1:], "--group-size", group, *calibration
        )
        figures = [
            re.search(r"bits per weight\s+(\S+) in a (\w+) export", each.out) for each in (planned, run)
        ]
        assert [figure[2] for figure in figures] == [name, name]
        # A plan counts a zero point a group; a run leaves out those that are all alike.
        assert float(figures[0][1]) == pytest.approx(float(figures[1][1]), abs=0.15)
        # No sparse export in groups of 32.
        assert ("neither speed nor size\n" in run.out) == (name == "dense")
    scaled = succeeded("plan", folder / "model", "--method", "awq+wanda", *asked[3:], "--group-size", 64)
    assert "in a dense export" in scaled.out


def test_plan_needs_no_output_and_writes_nothing(road):
    folder, *_ = road
    before = tree(folder / "model")
    planned = succeeded("plan", folder / "model", "--bits", 4, "--json").json
    assert len(planned["layers"]) == 21 and planned["peak_memory_bytes"] > 0
    assert tree(folder / "model") == before
    assert "peak memory" in succeeded("plan", folder / "model", "--sparsity", 0.5).out


def test_export_checks_itself(road):
    _, _, edge = road
    assert edge["weights"]["layers"] == 21 and edge["weights"]["zeros"] > 0
    assert edge["agreement"]["kl"] <= edge["tolerated_kl"]


def test_eval_agrees_on_all_kinds_of_folders(road):
    folder, *_ = road
    options = ("--text", folder / "text.txt", "--seq-len", 64, "--windows", 4, "--json")
    dense = succeeded("eval", folder / "model", *options, "--against", folder / "model").json
    assert (dense["windows"], dense["kl"], dense["top1_agreement"]) == (4, 0.0, 1.0)
    small = succeeded("eval", folder / "small", *options, "--against", folder / "model").json
    edge = succeeded("eval", folder / "edge", *options, "--against", folder / "small").json
    assert small["kl"] > 0 and small["against_perplexity"] == pytest.approx(dense["perplexity"])
    assert edge["against_perplexity"] == pytest.approx(small["perplexity"])
    assert edge["kl"] < 0.1 * small["kl"]


def test_eval_keeps_to_the_context(road):
    folder, *_ = road
    asked = ("--text", folder / "text.txt", "--windows", 1)
    for kind in ("model", "small", "edge"):
        beyond = awp_edge("eval", folder / kind, *asked, "--seq-len", 129).refused()
        assert beyond == "awp-edge: 129 tokens are more than the context of 128"
    assert "1 windows of 128 tokens, the whole context" in succeeded("eval", folder / "small", *asked).out
    assert succeeded("eval", folder / "edge", *asked, "--json").json["seq_len"] == 128


def test_a_perplexity_beyond_all_numbers_is_written(road, tmp_path):
    folder, *_ = road
    damaged = shutil.copytree(folder / "model", tmp_path / "damaged")
    edit(damaged, "model.norm.weight", lambda norm: 1e5 * norm)
    asked = ("--seq-len", 64, "--windows", 1, "--output", tmp_path / "eval.json", "--json")
    told = succeeded("eval", damaged, "--text", folder / "text.txt", *asked).json
    assert told["perplexity"] is None and json.loads((tmp_path / "eval.json").read_text()) == told


def test_report_is_one_page(road, tmp_path):
    folder, *_ = road
    succeeded("eval", folder / "small", "--text", folder / "text.txt", "--seq-len", 64, "--windows", 1,
              "--output", tmp_path / "eval.json")  # fmt: skip
    page = Path(succeeded("report", folder / "small", "--results", tmp_path / "eval.json", "--output",
                          tmp_path / "page.html", "--json").json["report"])  # fmt: skip
    text = page.read_text()
    assert "<svg" in text and "Before and after" in text and "neither speed nor size" in text
    assert not re.search(r"(src|href)=|https?:", text)
    succeeded("report", folder / "small")
    assert (folder / "small" / "report.html").is_file()


def test_generate_and_bench(road):
    folder, *_ = road
    assert isinstance(
        succeeded("generate", folder / "edge", "--prompt", "the", "--max-tokens", 4, "--json").json["text"],
        str,
    )
    timed = succeeded(
        "bench", folder / "edge", "--prompt-tokens", 8, "--tokens", 4, "--threads", 1, "--json"
    ).json
    assert timed["bytes"] > 0 and timed["threads"] == 1
    for key in (
        "decode_tokens_per_second",
        "prefill_tokens_per_second",
        "time_to_first_token_s",
        "peak_memory_bytes",
    ):
        assert timed[key] > 0


def test_folders_measured_together_take_turns(road, tmp_path, monkeypatch):
    whole, bad = EdgeModel(road[0] / "edge", threads=1), tmp_path / "bad"
    said, order, run = [], [], measuring._Runner.run
    monkeypatch.setattr(measuring._Runner, "run", lambda runner: order.append(runner) or run(runner))
    first, second = measuring.measure([whole, whole], prompt_tokens=8, tokens=4, repeats=2, say=said.append)
    assert said == ["run 1 of 2", "run 2 of 2"] and first.keys() == second.keys()
    assert order[:2] == order[2:] and order[0] is not order[1]
    shutil.copytree(road[0] / "edge", bad)
    (bad / "model.onnx").write_bytes(bytes((bad / "model.onnx").stat().st_size))
    with pytest.raises(AwpError, match=r"could not run .*bad: .*cannot open"):
        measuring.measure([whole, EdgeModel(bad, threads=1)], prompt_tokens=8, tokens=4, repeats=1)


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_bench(road, tmp_path):
    pytest.importorskip("matplotlib")
    folder, *_ = road
    started = time.monotonic()
    asked = ("bench", folder / "edge", "--tokens", 100, "--repeats", 1000, "--plot")
    assert "give a .png or .svg file" in awp_edge(*asked, tmp_path / "out.abcd").refused(code=2)
    assert "give a .png or .svg file" in awp_edge(*asked, tmp_path / "out").refused(code=2)
    assert "there is no folder" in awp_edge(*asked, tmp_path / "none" / "out.svg").refused()
    assert time.monotonic() - started < 60 and not list(tmp_path.iterdir())


def test_time_left_does_not_count_what_was_done_before(monkeypatch, capsys):
    """A run that prepares for an hour, or takes up 20 of 30 blocks, still says how long the others take."""
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[-1])
    with console.progress("compressing") as advance:
        for minute, done in ((1, 20), (60, 20), (61, 21), (62, 22), (63, 23)):
            clock.append(60.0 * minute)
            advance(done, 30, "layer")
    counts = "20/30", "20/30", "21/30", "22/30, about 8 min left", "23/30, about 7 min left"
    assert capsys.readouterr().err.splitlines() == [f"compressing: layer {count}" for count in counts]


def test_a_reader_that_goes_away_is_no_error(road):
    folder, *_ = road
    command = [*AWP_EDGE, "plan", str(folder / "model"), "--bits", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode in (0, 1) and err == ""


def test_ctrl_c_leaves_a_state_that_resume_completes(tmp_path):
    model = build("llama", tmp_path / "model", num_hidden_layers=24)
    text = write_text(tmp_path / "text.txt", 20_000)
    asked = ("--sparsity", 0.5, "--calibration", text, "--samples", 64, "--seq-len", 128)
    arguments = [str(a) for a in ("compress", model, tmp_path / "out", *asked)]
    state = tmp_path / "out.partial" / "state.json"
    with subprocess.Popen(
        [*AWP_EDGE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (state.is_file() and '"next_block": 1' in state.read_text()):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert len(err.strip().split("\n")) == 1 and "--resume" in err and out == ""
    assert "--resume" in awp_edge(*arguments).refused()
    succeeded(*arguments, "--resume")
    succeeded("compress", model, tmp_path / "whole", *asked)
    whole, resumed = tree(tmp_path / "whole"), tree(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    # Only what tells the time may differ.
    assert {name for name in whole if whole[name] != resumed[name]} <= {"compress.log", "report.json"}


def test_what_does_not_fit_is_refused_before_text_is_written(tmp_path):
    model = build("bert", tmp_path / "bert")  # its next line would be that an encoder writes none
    new = ("compress", model, tmp_path / "out", "--bits", 4, "--statistics", tmp_path / "stats")
    assert "group size 48 does not divide" in awp_edge(*new, "--group-size", 48).refused(code=2)
    assert "--max-memory allows" in awp_edge(*new, "--max-memory", 0.01).refused()
    assert "cannot write its own" in awp_edge(*new).refused()
    assert not (tmp_path / "stats").exists()


def test_resume_of_a_finished_run_knows_its_text_by_its_contents(road, tmp_path):
    folder, *_ = road
    other = tmp_path / "other" / "text.txt"
    other.parent.mkdir()
    other.write_bytes((folder / "text.txt").read_bytes())
    asked = ("--bits", 4, "--method", "rtn", *CALIBRATION, "--one-shot", "--resume")
    finished = ("compress", folder / "model", tmp_path / "out", *asked)
    succeeded(*finished, "--calibration", folder / "text.txt")
    before = tree(tmp_path / "out")
    succeeded(*finished, "--calibration", other)
    write_text(other, 2000, seed=1)
    assert "text_sha256 was" in awp_edge(*finished, "--calibration", other).refused()
    unfinished = (tmp_path / "out").rename(tmp_path / "out.partial")
    assert "text_sha256 was" in awp_edge(*finished, "--calibration", other).refused()
    unfinished.rename(tmp_path / "out")
    succeeded("compress", folder / "model", tmp_path / "drawn", *asked, "--calibration", folder / "text.txt",
              "--statistics", tmp_path / "stats", "--seed", 3)  # fmt: skip
    saved = ("--calibration", folder / "text.txt", "--statistics", tmp_path / "stats")
    assert "tokens_sha256 was" in awp_edge(*finished, *saved).refused()
    assert tree(tmp_path / "out") == before


def test_the_demo_on_a_model_that_takes_seconds(tmp_path):
    model = build("llama", tmp_path / "cache" / "smollm2-135m", max_position_embeddings=256)
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    source = {"name": "smollm2-135m", "weights": "a stand-in", "model_hash": ModelFolder(model).hash()}
    (model / "source.json").write_text(json.dumps(source))
    before = tree(model)
    arguments = ("demo", tmp_path / "demo", "--seq-len", 64, "--windows", 2, "--json")
    first = succeeded(*arguments, env={"AWP_CACHE": str(tmp_path / "cache")}).json
    assert list(first["rows"]) == ["dense fp32", "INT4", "32 of 64 + INT4"]
    assert tree(model) == before
    folders = sorted(path.name for path in (tmp_path / "demo").iterdir() if (path / "edge").is_dir())
    assert folders == ["32-of-64-int4", "dense-fp32", "int4"]
    dense, *small = first["rows"].values()
    assert dense["kl"] is None and dense["bits_per_weight"] == 32
    assert all(
        row["kl"] > 0 and row["bytes"] < dense["bytes"] and row["bits_per_weight"] < 5 for row in small
    )
    assert first["generated"].keys() == {"prompt", *first["rows"]}
    again = succeeded(*arguments, env={"AWP_CACHE": str(tmp_path / "cache")}).json
    assert again["rows"] == first["rows"] and again["seconds"] == first["seconds"]
    assert again["made"] == first["made"] and len(first["made"]) == 1
    edit(model, "model.norm.weight", lambda norm: 2 * norm)
    other = succeeded(*arguments, env={"AWP_CACHE": str(tmp_path / "cache")}).json
    for row, before in zip(other["rows"].values(), first["rows"].values(), strict=True):
        assert row["perplexity"] != before["perplexity"] and row["load_s"] != before["load_s"]


def test_the_readme_example_runs(tmp_path):
    readme = Path(__file__).parent.parent / "README.md"
    [code] = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    error, zeros, dtype = out.split()
    assert 0 < float(error) < 0.3 and float(zeros) == pytest.approx(0.5, abs=0.05) and dtype == "uint8"


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (("--calibration", "nowhere.txt"), 1, "cannot read nowhere.txt"),
        (("--calibration", "C4"), 2, "text comes from self, c4"),
        (("--token-weights", "best"), 2, "--token-weights is uniform, norm, loss, not 'best'"),
        (("--statistics", "set", "--sequential"), 2, "it does not go with --sequential"),
        (("--seed", -1), 2, "--seed must be 0 or more, got -1"),
    ],
)
def test_plan_and_compress_refuse_the_same_at_once(road, tmp_path, options, code, expected):
    folder, *_ = road
    for command in (("plan", folder / "model"), ("compress", folder / "model", tmp_path / "out")):
        assert expected in awp_edge(*command, "--bits", 4, *options).refused(code=code)
    assert list(tmp_path.iterdir()) == []


def test_a_table_looks_for_its_calibration_before_it_evaluates(road, tmp_path):
    folder, *_ = road
    run = awp_edge("table", "quantization", folder / "model", "--text", folder / "text.txt", "--out", tmp_path / "t",
                   "--calibration", "nowhere.txt", "--seq-len", 64)  # fmt: skip
    assert "cannot read nowhere.txt" in run.refused() and "evaluating" not in run.err


def test_folders_of_another_kind_are_refused(road, tmp_path):
    folder, *_ = road
    line = awp_edge("plan", folder / "small", "--bits", 4).refused()
    assert "small is compressed already; give the model it was made from" in line
    before = tree(folder / "model")
    line = awp_edge("compress", folder / "model", tmp_path / "out", "--bits", 4, "--statistics", folder / "model",
                    "--calibration", folder / "text.txt", *CALIBRATION).refused()  # fmt: skip
    assert "which is no statistics; give an empty --statistics folder" in line
    assert tree(folder / "model") == before and not (tmp_path / "out").exists()


def test_a_text_that_fills_fewer_windows_is_noted(road, tmp_path):
    folder, *_ = road
    done = succeeded("compress", folder / "model", tmp_path / "out", "--bits", 4, "--method", "rtn",
                     "--calibration", folder / "text.txt", "--samples", 500, "--seq-len", 64)  # fmt: skip
    assert re.search(
        r"^note: the calibration text fills \d+ of the 500 windows asked for$", done.out, re.MULTILINE
    )


def test_a_changed_bit_is_found_before_the_export(road, tmp_path):
    folder, *_ = road
    small = shutil.copytree(folder / "small", tmp_path / "small")
    block = small / "blocks" / "block-001.safetensors"
    content = bytearray(block.read_bytes())
    content[-1] ^= 1
    block.write_bytes(content)
    assert "block-001.safetensors" in awp_edge("export", small, tmp_path / "edge").refused()
    assert not (tmp_path / "edge").exists()
