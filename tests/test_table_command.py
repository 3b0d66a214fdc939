"""The command `table` on a tiny model: what it keeps, what it measures again and where it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import AWP_EDGE, awp_edge, succeeded
from tiny_models import build, write_text

from awp_edge.storage import sole_owner


def test_the_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    build("llama", tmp_path / "model")
    text = write_text(tmp_path / "text.txt", 2000)
    asked = ("table", "quantization", tmp_path / "model", "--text", text, "--text", f"{text}:3-9",
             "--calibration", text, "--samples", 4, "--seq-len", 64, "--windows", 2, "--group-size", 32,
             "--method", "rtn", "--method", "awq", "--out", tmp_path / "out", "--json")  # fmt: skip
    first = succeeded(*asked)
    rows = first.json["rows"]
    assert [(row["method"], row["setting"]) for row in rows] == [
        (method, bits) for bits in ("INT4", "INT3", "INT2") for method in ("rtn", "awq")
    ]
    for row in rows:
        assert row["kl"] > 0 and len(row["layers"]) == 21 and row["perplexity"] > 0
        assert set(row["texts"]) == {"text.txt", "text.txt:3-9"} and row["windows"] == 2
        assert row["texts"]["text.txt:3-9"]["perplexity"] != row["texts"]["text.txt"]["perplexity"]
    for weak, strong in zip(rows[::2], rows[1::2], strict=True):
        assert strong["mean_relative_error"] < weak["mean_relative_error"]
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["quantization-layers.svg", "quantization-perplexity.svg", "quantization.json",
                    "quantization.md", "statistics", "steps.json"]  # fmt: skip
    assert json.loads((tmp_path / "out" / "quantization.json").read_text())["rows"] == rows
    again = succeeded(*asked)
    assert again.json["rows"] == rows  # the seconds too: nothing was run twice
    steps = tmp_path / "out" / "steps.json"
    records = json.loads(steps.read_text())
    here = records["dense"]["made"]
    elsewhere = {
        "version": "0.0",
        "date": "2025-12-31",
        "machine": {**here["machine"], "cpu": "Another", "cores": 64},
    }
    records["dense"]["made"] = elsewhere
    del records["rtn INT4, statistics"]["made"]  # as an earlier version wrote it
    steps.write_text(json.dumps(records))
    later = succeeded(*asked).json
    assert later["rows"] == rows and later["made"] == [elsewhere, here]
    machines = f"Another, 64 cores and {here['machine']['cpu']}, {here['machine']['cores']} cores"
    days = f"2025-12-31 to {here['date']}, 1 of 7 steps on an unknown machine and day."
    assert later["protocol"].endswith(f"; {machines}, {days}")
    assert "unknown" in awp_edge(*asked[:1], "tables", *asked[2:-1]).refused(code=2)
    (tmp_path / "other").mkdir()
    namesake = write_text(tmp_path / "other" / "text.txt", 2000, seed=1)
    twice = awp_edge(*asked[:-3], "--text", namesake, "--out", tmp_path / "twice").refused(code=2)
    assert "would both be called text.txt: rename a file" in twice and not (tmp_path / "twice").exists()
    backwards = [f"{text}:9-3" if argument == text else argument for argument in asked[:-1]]
    assert "before the first" in awp_edge(*backwards).refused(code=2)


@pytest.mark.parametrize("rows", [0, 1])
def test_ctrl_c_says_where_a_table_goes_on(tmp_path: Path, rows: int) -> None:
    """Before the first row is done and after it, both while a row is compressed: tables have no --resume."""
    pytest.importorskip("matplotlib")
    build("llama", tmp_path / "model", num_hidden_layers=24)
    text = write_text(tmp_path / "text.txt", 2000)
    out = tmp_path / "out"
    asked = ("table", "quantization", tmp_path / "model", "--text", text, "--calibration", text, "--samples", 4,
             "--seq-len", 64, "--windows", 2, "--group-size", 32, "--method", "rtn", "--out", out)  # fmt: skip
    command = [*AWP_EDGE, *map(str, asked)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not any(out.glob(f"rtn-INT{4 - rows}-*.partial/state.json")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        printed, err = process.communicate(timeout=60)
    # Python ends by the signal itself where it met it inside an exec(), as of an import: 130 too for a shell.
    assert process.returncode in (130, -signal.SIGINT) and printed == "", (printed, err)
    kept = f"what was finished is kept in {out}; give the same command to go on"
    assert err.strip() == f"awp-edge: table was interrupted: {kept}"
    assert len(json.loads((out / "steps.json").read_text())) == 1 + rows
    shutil.copytree(out, tmp_path / "other")
    regrouped = [tmp_path / "other" if argument == out else argument for argument in asked]
    # What the unfinished row was compressed with is no longer asked for: it makes way.
    assert len(succeeded(*regrouped, "--group-size", 64, "--json").json["rows"]) == 3
    assert len(succeeded(*asked, "--json").json["rows"]) == 3
    assert not list(tmp_path.glob("*/*.partial"))


def test_a_row_stopped_in_its_evaluation_is_not_compressed_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    asked = (*small_table(tmp_path), "--row", "awq INT4")
    code = (
        "import sys, awp_edge.cli as cli, awp_edge.cli.table as table\n"
        "def stopped(*folder, **options): raise KeyboardInterrupt\n"
        "table.open_source = stopped\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-P", "-c", code, *map(str, asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    (compressed,) = (tmp_path / "out").glob("awq-INT4-*")
    report = json.loads((compressed / "report.json").read_text())
    (row,) = succeeded(*asked).json["rows"]
    assert row["seconds"] == report["stages"]["solve"]
    assert not list((tmp_path / "out").glob("awq-INT4-*"))


def test_several_calibrations_give_a_spread(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    build("llama", tmp_path / "model")
    text = write_text(tmp_path / "text.txt", 2000)
    asked = ("table", "all", tmp_path / "model", "--text", text, "--calibration", text, "--samples", 4, "--seq-len", 64,
             "--windows", 2, "--group-size", 32, "--row", "awp-plus 2:4", "--row", "rtn INT4", "--json")  # fmt: skip
    drawn = succeeded(*asked, "--subsets", 3, "--out", tmp_path / "drawn").json
    sparse, rounded = drawn["rows"]
    assert sparse["runs"] == 3 and sparse["error_spread"]["deviation"] > 0
    assert rounded["runs"] == 1 and "error_spread" not in rounded  # what it makes does not depend on C
    assert "perplexity_spread" not in rounded["texts"]["text.txt"]
    assert [len(layer["curves"]) for layer in drawn["convergence"]] == [3] * 4
    saved = [
        ("--statistics", tmp_path / "drawn" / name) for name in ("statistics", "statistics-1", "statistics-2")
    ]
    reused = succeeded(*asked, *(part for pair in saved for part in pair), "--out", tmp_path / "reused").json
    assert [row["mean_relative_error"] for row in reused["rows"]] == [
        row["mean_relative_error"] for row in drawn["rows"]
    ]
    assert not (tmp_path / "reused" / "statistics").exists()
    for draw_of in (1, 2):
        shutil.copytree(
            tmp_path / "drawn" / f"statistics-{draw_of}", tmp_path / f"run{draw_of}" / "statistics"
        )
    alike = [("--statistics", tmp_path / f"run{draw_of}" / "statistics") for draw_of in (1, 2)]
    apart = (*asked, *(part for pair in alike for part in pair), "--out", tmp_path / "apart")
    rows = succeeded(*apart).json["rows"]
    assert rows[0]["error_spread"]["runs"] == sparse["error_spread"]["runs"][1:]
    assert succeeded(*apart).json["rows"] == rows  # the seconds too: no row took the other's place
    none = awp_edge(*asked, "--statistics", tmp_path / "none", "--out", tmp_path / "both").refused()
    assert "none holds no complete statistics; make them with" in none
    both = awp_edge(*asked[:-1], "--subsets", 2, *saved[0], "--out", tmp_path / "both").refused(code=2)
    assert "give one" in both


def small_table(folder: Path, **model: Any) -> tuple[object, ...]:
    """Return the command for a table of a tiny model, with folder/text.txt and folder/calibration.txt."""
    build("llama", folder / "model", **model)
    text = write_text(folder / "text.txt", 2000)
    calibration = write_text(folder / "calibration.txt", 2000, seed=1)
    return ("table", "all", folder / "model", "--text", text, "--calibration", calibration, "--samples", 4,
            "--seq-len", 64, "--windows", 2, "--group-size", 32, "--out", folder / "out", "--json")  # fmt: skip


def test_edited_files_are_measured_again_and_moved_ones_are_not(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    asked = (*small_table(tmp_path), "--row", "awq INT4")
    first = succeeded(*asked).json
    (tmp_path / "elsewhere").mkdir()
    for name in ("model", "text.txt", "calibration.txt", "out"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = [tmp_path / "elsewhere" / a.name if isinstance(a, Path) else a for a in asked]
    assert succeeded(*moved).json["rows"] == first["rows"]  # the seconds too
    write_text(tmp_path / "elsewhere" / "text.txt", 2000, seed=2)
    edited = succeeded(*moved).json
    assert edited["dense"] != first["dense"]
    assert edited["rows"][0]["perplexity"] != first["rows"][0]["perplexity"]
    assert edited["rows"][0]["layers"] == first["rows"][0]["layers"]
    write_text(tmp_path / "elsewhere" / "calibration.txt", 2000, seed=3)
    statistics = tmp_path / "elsewhere" / "out" / "statistics"
    refused = awp_edge(*moved[:-3], *moved[-2:]).refused()
    assert f"choose another --out, or delete {statistics} to calibrate again" in refused
    shutil.rmtree(statistics)
    again = succeeded(*moved).json
    assert again["dense"] == edited["dense"] and again["rows"][0]["layers"] != edited["rows"][0]["layers"]


def test_a_model_of_odd_widths_gets_the_rows_that_fit(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    asked = small_table(tmp_path, hidden_size=96)
    asked = tuple(part for part in asked if part not in ("--seq-len", 64))
    refused = awp_edge(*asked, "--row", "wanda 32/64").refused(code=2)
    assert "the model's widths allow no row: 32/64 (" in refused
    assert not (tmp_path / "out").exists()
    result = succeeded(*asked, "--row", "rtn INT4", "--row", "wanda 32/64").json
    # All that the model can take.
    assert result["protocol"].startswith("Windows of 128 tokens: 2 of text.txt")
    assert [row["setting"] for row in result["rows"]] == ["INT4"]
    (reason,) = result["left_out"].values()
    assert list(result["left_out"]) == ["32/64"] and reason.endswith("needs 64 to divide d_in = 96")
    assert f"Left out: 32/64 ({reason})." in (tmp_path / "out" / "all.md").read_text().splitlines()
    named = succeeded(*asked, "--seq-len", 128, "--row", "rtn INT4").json
    assert named["rows"] == result["rows"]  # the seconds too


def test_a_missing_plotting_package_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "site" / "matplotlib").mkdir(parents=True)
    (tmp_path / "site" / "matplotlib" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    run = awp_edge(*small_table(tmp_path)[:-1], env={"PYTHONPATH": path})
    assert "pip install 'awp-edge[bench]'" in run.refused() and not (tmp_path / "out").exists()


def test_a_folder_of_steps_has_one_process(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    asked = small_table(tmp_path)[:-1]
    (tmp_path / "out").mkdir()
    with sole_owner(tmp_path / "out"):
        for command in (asked, ("demo", tmp_path / "out")):
            assert f"another process is working in {tmp_path / 'out'}; wait" in awp_edge(*command).refused()
    assert not list((tmp_path / "out").iterdir())
    cache = awp_edge("demo", tmp_path, env={"AWP_CACHE": str(tmp_path)}).refused(code=2)
    assert "is the cache of fetched models; choose another folder" in cache
