"""Find what damping C is worth at 50% zeros: `python bench/damping.py MODEL TABLE --calibration FILE --text FILE:A-B`.

TABLE is the folder of an `awp-edge table` run: its calibrations serve every value, each of which is a table of one row.
Takes about 2 minutes for a value and a calibration of SmolLM2-135M with 10 windows of text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import write

ROW = "awp-plus 50%"


def measure(damping: str, options: argparse.Namespace, *, saved: Sequence[Path]) -> dict[str, Any]:
    """Return the pooled row of one value: layer error, perplexity and KL over the calibrations."""
    command = [
        sys.executable, "-P", "-m", "awp_edge.cli", "table", "pruning", str(options.model), "--row", ROW,
        "--damping", damping, "--calibration", str(options.calibration), "--samples", str(options.samples),
        *(f"--statistics={folder}" for folder in saved), "--text", options.text, "--windows", str(options.windows),
        "--out", str(options.work / damping), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    row = {key: value for key, value in result["rows"][0].items() if key != "layers"}
    return {"damping": float(damping), "protocol": result["protocol"], **row}


def main() -> None:
    """Measure every value and write bench/results/damping.json once all are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="as in the table")
    parser.add_argument("--samples", type=int, default=32, help="as in the table")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--values", default="0,0.03,0.1")
    parser.add_argument("--work", type=Path, default=Path("build/damping"))
    options = parser.parse_args()
    values, saved = options.values.split(","), sorted(options.table.glob("statistics*"))
    if not saved:
        parser.error(f"{options.table} has no statistics: give the --out of awp-edge table")
    rows: list[dict[str, Any]] = []
    for damping in values:
        rows.append(measure(damping, options, saved=saved))
        write("damping", {"rows": rows}, complete=len(rows) == len(values))


if __name__ == "__main__":
    main()
