"""Measure what the 32/64 pattern costs beside 50% of every row: `python bench/patterns.py MODEL --statistics DIR`.

Every linear layer of some blocks is pruned by the default method both ways; the cost is the ratio of the layer errors.
DIR is what `awp-edge compress --one-shot --statistics DIR` saved.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import write

from awp_edge import CompressSpec, Problem, compress_layer
from awp_edge.calibrate.saved import SavedStatistics
from awp_edge.models import ModelFolder

#: What is asked of every layer type on average.
ALLOWED = 1.08
PATTERN, ROWS = CompressSpec(pattern="32/64"), CompressSpec(sparsity=0.5)


def error(problem: Problem, spec: CompressSpec, *, threads: int) -> float:
    """Return the relative error of one layer, compressed."""
    return problem.relative_error(compress_layer(problem.weight, problem.gram, spec, threads=threads).theta)


def measure(source: SavedStatistics, block: int, *, threads: int) -> list[dict[str, Any]]:
    """Return the two errors and their ratio for every linear layer of a block."""
    grams = source.statistics(block)
    rows = []
    for info in source.linears(block):
        problem = Problem(source.weight(info.name), grams[info.input].matrix)
        pattern, whole = (error(problem, spec, threads=threads) for spec in (PATTERN, ROWS))
        rows.append({"layer": info.name, "type": info.name.rpartition(".")[2], "shape": list(problem.shape),
                     "error_pattern": pattern, "error_row": whole, "ratio": pattern / whole})  # fmt: skip
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mean, largest ratio and the layers above what is allowed, by type."""
    found = []
    for kind in dict.fromkeys(row["type"] for row in rows):
        ratios = {row["layer"]: row["ratio"] for row in rows if row["type"] == kind}
        worst = max(ratios, key=lambda name: ratios[name])
        mean = sum(ratios.values()) / len(ratios)
        found.append({"type": kind, "layers": len(ratios), "mean_ratio": mean, "worst_ratio": ratios[worst],
                      "worst_layer": worst, "within": mean <= ALLOWED,
                      "outliers": [name for name in ratios if ratios[name] > ALLOWED]})  # fmt: skip
    return found


def main() -> None:
    """Measure and write bench/results/patterns.json once every block is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--statistics", type=Path, required=True)
    parser.add_argument("--blocks", default="0,3,6,9,12,15,18,21,24,27")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    source = SavedStatistics(ModelFolder(options.model), options.statistics)
    rows: list[dict[str, Any]] = []
    blocks = [int(block) for block in options.blocks.split(",")]
    for block in blocks:
        rows += measure(source, block, threads=options.threads)
        found = summary(rows)
        print(block, {one["type"]: round(one["mean_ratio"], 4) for one in found}, flush=True)
        write("patterns", {"blocks": options.blocks, "threads": options.threads, "allowed": ALLOWED,
                           "types": found, "rows": rows}, complete=block == blocks[-1])  # fmt: skip


if __name__ == "__main__":
    main()
