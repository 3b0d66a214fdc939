"""The tables: which rows, what they would take packed, and the command on a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import AWP_EDGE, awp_edge, succeeded
from tiny_models import build, write_text

from awp_edge import METHODS, CompressSpec, Problem
from awp_edge.artifacts import LinearInfo
from awp_edge.convergence import convergence
from awp_edge.errors import UsageError
from awp_edge.options import DAMPING
from awp_edge.storage import sole_owner
from awp_edge.table import (
    ALL,
    SETTINGS,
    TABLES,
    Choice,
    fitting,
    packed_bits,
    pooled,
    rivals,
    setting_name,
    settings_of,
    table_rows,
)
from awp_edge.table_page import draw, markdown


@pytest.mark.parametrize("table", TABLES)
def test_every_method_that_can_has_its_rows(table: str) -> None:
    rows = list(table_rows(table, group_size=64))
    assert len({row.name for row in rows}) == len(rows)
    kinds = {row.spec.kind for row in rows}
    for method in METHODS:
        able = any(METHODS[method].handles(kind) for kind in kinds)
        assert able == any(row.spec.method == method for row in rows)


def test_rows_of_chosen_methods() -> None:
    rows = [row.name for row in table_rows("joint", group_size=64, choice=Choice(["wanda", "rtn"]))]
    assert rows == ["wanda 25% + INT4", "wanda 50% + INT4", "wanda 75% + INT4", "wanda 32/64 + INT4", "rtn INT3",
                    "rtn INT2"]  # fmt: skip
    named = Choice(rows=["awp* 2:4", "wanda 50%"])
    assert [row.name for row in table_rows(ALL, group_size=64, choice=named)] == [
        "wanda 50%", "awp 2:4", "awp-plus 2:4",
    ]  # fmt: skip


@pytest.mark.parametrize(("asked", "used"), [(0.1, 0.1), (None, DAMPING)])
def test_damping_is_named_in_rows_that_heed_it(asked: float | None, used: float) -> None:
    rows = {row.name: row.spec.damping for row in table_rows(ALL, group_size=64, damping=asked)}
    assert rows["awp-plus 50%"] == rows["awp-plus 32/64 + INT4"] == used
    assert {rows[name] for name in ("awp-plus INT4", "awp-plus rank 50%", "awp 50%", "wanda 2:4")} == {None}


def test_all_holds_every_setting_once() -> None:
    found = settings_of(ALL)
    assert all(setting in found for settings in SETTINGS.values() for setting in settings)
    assert len(found) == len({str(setting) for setting in found})


@pytest.mark.parametrize(
    ("table", "choice", "message"),
    [
        ("prunning", Choice(), "table 'prunning' is unknown: choose one of pruning, quantization"),
        ("pruning", Choice(["best"]), "method 'best' is unknown"),
        ("pruning", Choice(["rtn"]), "none of rtn does pruning"),
        ("pruning", Choice(rows=["wanda 55%"]), "none of wanda 55% does pruning"),
    ],
)
def test_bad_choices_get_one_line(table: str, choice: Choice, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(table_rows(table, group_size=64, choice=choice))
    assert str(caught.value).startswith(message)


def test_rows_that_the_widths_do_not_allow_are_left_out() -> None:
    layers = [LinearInfo("a", "a", (8, 64)), LinearInfo("b", "b", (8, 96))]
    rows = list(table_rows(ALL, group_size=32))
    kept, left_out = fitting(rows, layers)
    assert left_out == dict.fromkeys(
        ("32/64", "32/64 + INT4"), "b: pattern 32/64 needs 64 to divide d_in = 96"
    )
    assert kept == [row for row in rows if row.setting not in left_out]
    assert fitting(rows, layers[:1]) == (rows, {})
    with pytest.raises(
        UsageError, match=r"allow no row: INT4 \(group size 64 does not divide d_in = 96 of b\)"
    ):
        fitting(table_rows("quantization", group_size=64), layers)


def test_rivals_take_equal_storage() -> None:
    assert packed_bits(CompressSpec(sparsity=0.5, bits=4)) == 1 + 2 + 20 / 64
    assert packed_bits(CompressSpec(bits=3)) == 3 + 19 / 64
    assert packed_bits(CompressSpec(sparsity=0.75, bits=4)) == 1 + 1 + 20 / 64
    assert packed_bits(CompressSpec(bits=2)) == 2 + 18 / 64
    assert packed_bits(CompressSpec(sparsity=0.5)) == 9
    assert packed_bits(CompressSpec(pattern="2:4")) == 9
    assert packed_bits(CompressSpec(pattern="32/64", bits=4)) == 1 + 2 + 20 / 64
    assert packed_bits(CompressSpec(rank=0.5)) == 8


def test_names_of_settings() -> None:
    asked = ({"sparsity": 0.5}, {"bits": 3}, {"sparsity": 0.25, "bits": 4}, {"rank": 0.8}, {"pattern": "2:4"},
             {"pattern": "32/64", "bits": 4})  # fmt: skip
    assert [setting_name(CompressSpec(**options)) for options in asked] == [
        "50%", "INT3", "25% + INT4", "rank 80%", "2:4", "32/64 + INT4",
    ]  # fmt: skip


def measured(perplexity: float) -> dict[str, Any]:
    return {"perplexity": perplexity, "kl": 0.5, "top1_agreement": 0.7, "windows": 8}


def run(method: str, setting: str, perplexity: float, *, bits: float = 3.3) -> dict[str, Any]:
    return {"method": method, "setting": setting, "packed_bits": bits, "seconds": 3.0, "cpu_seconds": 5.0,
            "mean_relative_error": perplexity / 1000, "layers": {"a": 0.03, "b": 0.04},
            "texts": {"wiki": measured(perplexity), "c4": measured(2 * perplexity)}}  # fmt: skip


def test_runs_of_one_row_make_means_and_ranges() -> None:
    row = pooled([run("rtn", "INT3", 60.0), run("rtn", "INT3", 63.0), run("rtn", "INT3", 66.0)])
    assert row["perplexity"] == 63 and row["texts"]["c4"]["perplexity"] == 126 and row["runs"] == 3
    assert row["texts"]["wiki"]["perplexity_spread"] == {
        "min": 60,
        "max": 66,
        "deviation": 3,
        "runs": [60, 63, 66],
    }
    assert row["mean_relative_error"] == pytest.approx(0.063) and row["error_spread"]["max"] == 0.066
    assert "perplexity_spread" not in pooled([run("rtn", "INT3", 60.0)])["texts"]["wiki"]


def test_the_best_of_equal_storage_are_put_side_by_side() -> None:
    rows = [pooled([run(*asked)]) for asked in (("wanda", "50% + INT4", 58.0), ("awp-plus", "50% + INT4", 40.0),
            ("rtn", "INT3", 67.0), ("awp-plus", "INT3", 38.0), ("wanda", "75% + INT4", 900.0))]  # fmt: skip
    (pair,) = rivals(rows)
    assert (pair["sparse"]["perplexity"], pair["dense"]["perplexity"]) == (40, 38)
    assert pair["sparse"]["method"] == pair["dense"]["method"] == "awp-plus"


def test_rows_measured_again_join_those_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "bench"))
    from table import joined

    def result(day: str, *rows: tuple[str, str, float]) -> dict[str, Any]:
        made = [{"date": day, "machine": {"cpu": f"CPU of {day}", "cores": 2}}]
        return {"dense": {"wiki": {"windows": 5, "perplexity": 19.26}}, "rows": [pooled([run(*row)]) for row in rows],
                "rivals": [], "made": made, "protocol": f"5 windows; CPU of {day}, 2 cores, {day}."}  # fmt: skip

    kept = result("2026-01-01", ("wanda", "50% + INT4", 58.0), ("rtn", "INT3", 67.0))
    both = joined(kept, result("2026-01-03", ("rtn", "INT3", 66.0), ("awp", "INT3", 50.0)))
    # In the order of the tables (INT3 before 50% + INT4) and of the methods, whatever was measured first.
    assert [row["perplexity"] for row in both["rows"]] == pytest.approx([66, 50, 58])
    assert both["rivals"][0]["dense"]["method"] == "awp"
    assert both["protocol"] == (
        "5 windows; CPU of 2026-01-01, 2 cores and CPU of 2026-01-03, 2 cores, 2026-01-01 to 2026-01-03."
    )
    assert joined(both, kept)["made"] == both["made"]
    with pytest.raises(SystemExit, match="the rows on record are of"):
        joined(kept, {**kept, "dense": {"wiki": {"windows": 4, "perplexity": 19.26}}})


def test_markdown_and_plots(tmp_path: Path) -> None:
    rows = [
        pooled([run("rtn", "INT3", 66.81)]),
        pooled([run("awp-plus", "50%", 30.0), run("awp-plus", "50%", 32.0)]),
    ]
    curve = [
        {"steps": 1, "seconds": 0.1, "relative_error": 0.5},
        {"steps": 2, "seconds": 0.2, "relative_error": 0.4},
    ]
    result = {"table": "joint", "dense": {"wiki": measured(19.26), "c4": measured(20.0)}, "rows": rows,
              "protocol": "8 windows",
              "convergence": [{"layer": "a", "curves": {"awp": curve, "alps": curve}}]}  # fmt: skip
    lines = markdown(result).splitlines()
    assert lines[2] == "| dense |  | 19.26 | - | 20.00 | - | - | - | - | - | - |"
    assert lines[3] == "| rtn | INT3 | 66.81 | 0.5000 | 133.62 | 0.5000 | 0.06681 | 3 | 5 | - | 3.30 |"
    assert "| 31.00 (30.00-32.00) |" in lines[4]
    assert lines[-1] == "8 windows" and "Left out" not in markdown(result)
    left_out = {"INT3": "96 inputs", "2:4": "97 inputs", "INT2": "96 inputs"}
    noted = markdown({**result, "left_out": left_out}).splitlines()
    assert noted[-3:] == ["Left out: INT3, INT2 (96 inputs); 2:4 (97 inputs).", "", "8 windows"]
    pytest.importorskip("matplotlib")
    files = draw(result, tmp_path)
    assert [file.name for file in files] == [
        "joint-perplexity.svg",
        "joint-layers.svg",
        "joint-convergence.svg",
    ]
    before = [file.read_text() for file in files]
    assert all("<svg" in text for text in before)
    assert [file.read_text() for file in draw(result, tmp_path)] == before


def test_more_steps_leave_less_error() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 32)) @ rng.standard_normal((32, 32))
    curves = convergence(Problem(rng.standard_normal((16, 32)), x.T @ x / 256))
    assert set(curves) == {"awp", "alps", "awp-plus"}
    for curve in curves.values():
        errors = [point["relative_error"] for point in curve]
        assert [point["steps"] for point in curve] == sorted(point["steps"] for point in curve)
        assert all(point["seconds"] > 0 for point in curve) and errors[-1] < errors[0] < 1


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
    refused = awp_edge(*asked, "--row", "wanda 32/64").refused(code=2)
    assert "the model's widths allow no row: 32/64 (" in refused
    assert not (tmp_path / "out").exists()
    result = succeeded(*asked, "--row", "rtn INT4", "--row", "wanda 32/64").json
    assert [row["setting"] for row in result["rows"]] == ["INT4"]
    (reason,) = result["left_out"].values()
    assert list(result["left_out"]) == ["32/64"] and reason.endswith("needs 64 to divide d_in = 96")
    assert f"Left out: 32/64 ({reason})." in (tmp_path / "out" / "all.md").read_text().splitlines()


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
