"""The tables: which rows, what they would take packed, and the command on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import awp_edge, succeeded
from tiny_models import build, write_text

from awp_edge import METHODS, CompressSpec
from awp_edge.errors import UsageError
from awp_edge.table import SETTINGS, draw, markdown, packed_bits, setting_name, table_rows


@pytest.mark.parametrize("table", SETTINGS)
def test_every_method_that_can_has_its_rows(table: str) -> None:
    rows = list(table_rows(table, group_size=64))
    assert len({row.name for row in rows}) == len(rows)
    kinds = {row.spec.kind for row in rows}
    for method in METHODS:
        able = any(METHODS[method].handles(kind) for kind in kinds)
        assert able == any(row.spec.method == method for row in rows)


def test_rows_of_chosen_methods() -> None:
    rows = [row.name for row in table_rows("joint", group_size=64, methods=["wanda", "rtn"])]
    assert rows == ["wanda 25% + INT4", "wanda 50% + INT4", "wanda 75% + INT4", "rtn INT3", "rtn INT2"]


@pytest.mark.parametrize(
    ("table", "methods", "message"),
    [
        ("prunning", None, "table 'prunning' is unknown: choose one of pruning, quantization"),
        ("pruning", ["best"], "method 'best' is unknown"),
        ("pruning", ["rtn"], "none of rtn does pruning"),
    ],
)
def test_bad_choices_get_one_line(table: str, methods: list[str] | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(table_rows(table, group_size=64, methods=methods))
    assert str(caught.value).startswith(message)


def test_rivals_take_equal_storage() -> None:
    assert packed_bits(CompressSpec(sparsity=0.5, bits=4)) == 1 + 2 + 20 / 64
    assert packed_bits(CompressSpec(bits=3)) == 3 + 19 / 64
    assert packed_bits(CompressSpec(sparsity=0.75, bits=4)) == 1 + 1 + 20 / 64
    assert packed_bits(CompressSpec(bits=2)) == 2 + 18 / 64
    assert packed_bits(CompressSpec(sparsity=0.5)) == 9
    assert packed_bits(CompressSpec(rank=0.5)) == 8


def test_names_of_settings() -> None:
    asked = ({"sparsity": 0.5}, {"bits": 3}, {"sparsity": 0.25, "bits": 4}, {"rank": 0.8})
    assert [setting_name(CompressSpec(**options)) for options in asked] == [
        "50%", "INT3", "25% + INT4", "rank 80%",
    ]  # fmt: skip


def test_markdown_and_plots(tmp_path: Path) -> None:
    row = {"method": "rtn", "setting": "INT3", "perplexity": 66.81, "packed_bits": 3.3, "kl": 0.5, "seconds": 3.0,
           "mean_relative_error": 0.0379, "layers": [{"relative_error": 0.03}, {"relative_error": 0.04}]}  # fmt: skip
    result = {"table": "joint", "dense": {"perplexity": 19.26}, "rows": [row], "protocol": "8 windows"}
    lines = markdown(result).splitlines()
    assert lines[2] == "| dense |  | 19.26 | - | - | - | - | - |"
    assert lines[3] == "| rtn | INT3 | 66.81 | 0.5000 | 0.03790 | 3 | - | 3.30 |"
    assert lines[-1] == "8 windows"
    pytest.importorskip("matplotlib")
    assert [file.name for file in draw(result, tmp_path)] == ["joint-perplexity.svg", "joint-layers.svg"]
    assert all(
        "<svg" in (tmp_path / name).read_text() for name in ("joint-perplexity.svg", "joint-layers.svg")
    )


def test_the_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    build("llama", tmp_path / "model")
    text = write_text(tmp_path / "text.txt", 2000)
    asked = ("table", "quantization", tmp_path / "model", "--text", text, "--calibration", text, "--samples", 4,
             "--seq-len", 64, "--windows", 2, "--group-size", 32, "--method", "rtn", "--method", "awq",
             "--out", tmp_path / "out", "--json")  # fmt: skip
    first = succeeded(*asked)
    rows = first.json["rows"]
    assert [(row["method"], row["setting"]) for row in rows] == [
        (method, bits) for bits in ("INT4", "INT3", "INT2") for method in ("rtn", "awq")
    ]
    for row in rows:
        assert row["kl"] > 0 and len(row["layers"]) == 21 and row["perplexity"] > 0
    for weak, strong in zip(rows[::2], rows[1::2], strict=True):
        assert strong["mean_relative_error"] < weak["mean_relative_error"]
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["quantization-layers.svg", "quantization-perplexity.svg", "quantization.json",
                    "quantization.md", "statistics", "steps.json"]  # fmt: skip
    assert json.loads((tmp_path / "out" / "quantization.json").read_text())["rows"] == rows
    again = succeeded(*asked)
    assert again.json["rows"] == rows  # the seconds too: nothing was run twice
    assert "unknown" in awp_edge(*asked[:1], "tables", *asked[2:-1]).refused(code=2)
