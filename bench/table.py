"""Keep a table that `awp-edge table all ... --out DIR` made: `python bench/table.py DIR [--join]`.

Writes bench/results/table.json without the errors of single layers, and copies the plots to docs/. With `--join` rows
of the folder take the place of the same rows on record, or come to them, and everything else stays: for rows that
were measured later, on other days or machines. Of the plots only the one of perplexity is drawn again: the others need
the layers of all rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import RESULTS

from awp_edge.cli.steps import where_and_when
from awp_edge.methods import METHODS
from awp_edge.spec import CompressSpec
from awp_edge.table import ALL, MEASURES, rivals, setting_name, settings_of
from awp_edge.table_page import draw

DOCS = Path(__file__).resolve().parents[1] / "docs"
PLOTS = ("perplexity", "layers", "convergence")


def joined(kept: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results on record with other rows of the same texts and calibration in the place of theirs.

    Raises:
        SystemExit: rows that were measured on other texts.
    """
    if _texts(kept) != _texts(added):
        raise SystemExit(f"the rows on record are of {_texts(kept)}, the others of {_texts(added)}")
    label = next(iter(kept["dense"]))
    rows = {
        (row["method"], row["setting"]): _led_by(row, label)
        for result in (kept, added)
        for row in result["rows"]
    }
    every = [*kept["made"], *added["made"]]
    made = sorted(
        (one for i, one in enumerate(every) if one not in every[:i]), key=lambda one: str(one["date"])
    )
    protocol = f"{kept['protocol'].rpartition('; ')[0]}; {where_and_when(made)}."
    settings = [setting_name(CompressSpec(**setting)) for setting in settings_of(ALL)]
    methods = list(METHODS)
    found = sorted(
        rows.values(), key=lambda row: (settings.index(row["setting"]), methods.index(row["method"]))
    )
    return {**kept, "rows": found, "rivals": rivals(found), "made": made, "protocol": protocol}


def _led_by(row: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return a row with the measures of one text at its top, whichever text came first where it was measured."""
    return {**row, **{key: row["texts"][label][key] for key in (*MEASURES, "windows")}}


def _texts(result: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Return what was evaluated: windows, and the dense model's perplexity on them."""
    return {
        label: (dense["windows"], f"{dense['perplexity']:.3f}")
        for label, dense in sorted(result["dense"].items())
    }


def main() -> None:
    """Copy one finished table, or join its rows to those on record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the --out of awp-edge table")
    parser.add_argument("--join", action="store_true", help="leave the rows on record that the folder lacks")
    options = parser.parse_args()
    result = json.loads((options.folder / "all.json").read_text())
    rows = [{key: value for key, value in row.items() if key != "layers"} for row in result["rows"]]
    result = {**result, "rows": rows}
    path = RESULTS / "table.json"
    if options.join:
        result = joined(json.loads(path.read_text()), result)
    path.write_text(json.dumps(result, indent=1) + "\n")
    with TemporaryDirectory() as drawn:
        if options.join:
            draw({**result, "rows": [{**row, "layers": {}} for row in result["rows"]]}, Path(drawn))
        source = Path(drawn) if options.join else options.folder
        for plot in PLOTS[:1] if options.join else PLOTS:
            shutil.copyfile(source / f"all-{plot}.svg", DOCS / f"methods-{plot}.svg")


if __name__ == "__main__":
    main()
