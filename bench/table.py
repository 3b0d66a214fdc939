"""Keep a table that `awp-edge table all ... --out DIR` made: `python bench/table.py DIR`.

Writes bench/results/table.json without the errors of single layers, and copies the plots to docs/.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from common import RESULTS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PLOTS = ("perplexity", "layers", "convergence")


def main() -> None:
    """Copy one finished table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the --out of awp-edge table")
    folder = parser.parse_args().folder
    result = json.loads((folder / "all.json").read_text())
    rows = [{key: value for key, value in row.items() if key != "layers"} for row in result["rows"]]
    (RESULTS / "table.json").write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")
    for plot in PLOTS:
        shutil.copyfile(folder / f"all-{plot}.svg", DOCS / f"methods-{plot}.svg")


if __name__ == "__main__":
    main()
