"""Options that choose a method and a constraint: what is refused, and what is served with a note."""

from __future__ import annotations

from pathlib import Path

import pytest
from awp_edge.export.packing import check_block_size
from command_line import awp_edge, succeeded
from tiny_models import build, write_text

from awp_edge.errors import AwpError
from awp_edge.spec import CompressSpec

CALIBRATION = ("--samples", 4, "--seq-len", 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("model") / "model")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--pattern", "4:4"), "nothing to do: pattern 4:4 keeps every weight"),
        (("--pattern", "64/64"), "nothing to do"),
        (("--sparsity", 0.5, "--allocate", "columns"), "--allocate is uniform, layer, row"),
        (("--pattern", "2:4", "--allocate", "row"), "give --sparsity, --pattern K/64 or --bits"),
        (("--bits", 4, "--allocate", "row"), "--allocate row is for --sparsity"),
        (("--pattern", "54/64", "--allocate", "layer"), "12/64 to 52/64; --pattern 54/64 is outside"),
        (("--bits", 2, "--allocate", "layer"), "--allocate layer has nothing to choose at --bits 2"),
        (("--sparsity", 0.9, "--allocate", "row"), "--allocate gives rows 15% to 85% zeros"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_options_that_do_not_go_together(
    model: Path, tmp_path: Path, options: tuple[object, ...], expected: str
) -> None:
    assert expected in awp_edge("plan", model, *options).refused(code=2)
    assert expected in awp_edge("compress", model, tmp_path / "out", *options).refused(code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--sparsity", 0.5, "--group-size", 64), "--group-size 64 does nothing without --bits"),
        (("--method", "rtn", "--bits", 4, "--effort", "fast"), "--effort fast does nothing for rtn"),
        (("--rank", 8, "--effort", "max"), "--effort max does nothing for awp-plus low rank"),
    ],
    ids=str,
)
def test_options_that_do_nothing_are_noted(
    model: Path, tmp_path: Path, options: tuple[object, ...], expected: str
) -> None:
    text = write_text(tmp_path / "text.txt", 2000)
    assert f"note: {expected}" in succeeded("plan", model, *options).out
    done = succeeded("compress", model, tmp_path / "out", *options, "--calibration", text, *CALIBRATION)
    assert done.err.count(f"note: {expected}") == 1


def test_a_note_names_every_group_size_that_the_export_refuses() -> None:
    def taken(size: int) -> bool:
        try:
            check_block_size("a", 512, size)
        except AwpError:
            return False
        return True

    noted = {size: CompressSpec(bits=4, group_size=size).notes(()) for size in range(1, 300)}
    assert all(taken(size) == (notes == ()) for size, notes in noted.items())
    assert "genai refuses group size 48" in noted[48][0]
    assert CompressSpec(sparsity=0.5, group_size=48).notes(()) == ()


def test_what_the_export_will_refuse_is_said_once_before_the_run(model: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 2000)
    asked = ("--method", "awq", "--bits", 4, "--group-size", 8, "--calibration", text, *CALIBRATION)
    asked += ("--statistics", tmp_path / "statistics")
    planned = succeeded("plan", model, *asked)
    assert "saved statistics" in planned.out
    notes = [line for line in planned.out.splitlines() if "genai refuses" in line]
    assert len(notes) == 2 and "group size 8" in notes[0] and "input scales of awq" in notes[1]
    for name in ("calibrated", "from-saved-statistics"):
        lines = succeeded("compress", model, tmp_path / name, *asked).err.splitlines()
        assert [line for line in lines if line.startswith("note: ")] == notes
    saved = sum(path.stat().st_size for path in (tmp_path / "statistics").glob("*.safetensors"))
    assert succeeded("plan", model, *asked, "--json").json["statistics_bytes"] == 0
    for command in (("plan", model), ("compress", model, tmp_path / "other")):
        refused = awp_edge(*command, *asked, "--seed", 1).refused()
        assert "statistics was made with no --seed, not --seed 1; give the same" in refused
    (tmp_path / "statistics" / "manifest.json").unlink()
    counted = succeeded("plan", model, *asked, "--json").json["statistics_bytes"]
    assert counted == pytest.approx(saved, rel=0.05)
