"""The tables: which rows, what they would take packed, their page and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awp_edge import METHODS, CompressSpec, Problem
from awp_edge.artifacts import LinearInfo
from awp_edge.convergence import convergence
from awp_edge.errors import UsageError
from awp_edge.options import DAMPING
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
