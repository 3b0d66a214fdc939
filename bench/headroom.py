"""Estimate how far awp-plus is from the best support: `python bench/headroom.py MODEL --statistics DIR`.

A few rows of every linear of some blocks at 50%. From the support that the effort "max" ends with, a tabu search adds
the absent weight that gains most and drops the kept one that costs least, each exactly, everything else refitted; what
it moved stays where it is for some steps, so that it climbs out of supports that no single swap improves. The optimum
is at most the least f that it meets. DIR is what `awp-edge compress --one-shot --statistics DIR` saved. Takes about 2 s
a row of 576 inputs, ten times that for 1536.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import write
from numpy.typing import NDArray

from awp_edge import CompressSpec, Problem, compress_layer
from awp_edge.calibrate.saved import SavedStatistics
from awp_edge.models import ModelFolder

EFFORTS = ("fast", "default", "max")
#: Steps that a weight stays where the search has put it: drawn between these.
SHORTEST, LONGEST = 5, 20
Float64 = NDArray[np.float64]
Columns = NDArray[np.intp]


class Tableau:
    """One row's quadratic with the kept weights swept out: gains and losses of single weights on the diagonal."""

    def __init__(self, weight: Float64, gram: Float64, kept: Columns) -> None:
        d = len(weight)
        moved = gram @ weight
        self._cells = np.empty((d + 1, d + 1))
        self._cells[:d, :d], self._cells[:d, d], self._cells[d, :d] = gram, moved, moved
        self._cells[d, d] = weight @ moved
        scale = 1 / np.sqrt(self._cells.diagonal())
        self._cells *= scale[:, None] * scale
        self.kept = np.zeros(d, dtype=bool)
        for column in kept:
            self.turn(int(column))

    @property
    def error(self) -> float:
        """Return f(Theta) / f(0) of the support, refitted."""
        return float(self._cells[-1, -1])

    def change(self) -> Float64:
        """Return what f / f(0) falls by where an absent weight enters and rises by where a kept one leaves, (d,)."""
        return np.asarray(self._cells[:-1, -1] ** 2 / np.abs(self._cells.diagonal()[:-1]))

    def turn(self, column: int) -> None:
        """Let a weight enter, or leave if it is kept: one sweep."""
        sign = -1.0 if self.kept[column] else 1.0
        pivot = self._cells[column, column]
        line = self._cells[column] / pivot
        self._cells -= np.outer(self._cells[:, column], line)
        self._cells[column], self._cells[:, column] = sign * line, sign * line
        self._cells[column, column] = -1 / pivot
        self.kept[column] = not self.kept[column]


def searched(weight: Float64, gram: Float64, kept: Columns, *, steps: int) -> Columns:
    """Return the support of least f that a tabu search from another meets."""
    tableau, rng = Tableau(weight, gram, kept), np.random.default_rng(0)
    least, best, until = tableau.error, kept, np.zeros(len(weight), dtype=int)
    for step in range(steps):
        for entering in (True, False):
            change = tableau.change() if entering else -tableau.change()
            allowed = (tableau.kept != entering) & (until <= step)
            if not allowed.any():
                return best
            column = int(np.where(allowed, change, -np.inf).argmax())
            tableau.turn(column)
            until[column] = step + rng.integers(SHORTEST, LONGEST)
        if tableau.error < least:
            least, best = tableau.error, np.flatnonzero(tableau.kept)
    return best


def exact(weight: Float64, gram: Float64, kept: Columns) -> float:
    """Return f / f(0) of a support, refitted in float64."""
    moved = gram @ weight
    energy = float(weight @ moved)
    return (energy - float(moved[kept] @ np.linalg.solve(gram[np.ix_(kept, kept)], moved[kept]))) / energy


def measure(source: SavedStatistics, block: int, *, rows: int, steps: int) -> list[dict[str, Any]]:
    """Return every row's errors by effort and the least that was found."""
    grams, found = source.statistics(block), []
    for info in source.linears(block):
        weight, gram = source.weight(info.name), grams[info.input].matrix
        chosen = np.linspace(0, len(weight) - 1, rows).astype(int)
        problem, wide = Problem(weight[chosen], gram), gram.astype(np.float64)
        thetas = {
            e: compress_layer(problem.weight, gram, CompressSpec(sparsity=0.5, effort=e)).theta
            for e in EFFORTS
        }
        for i, row in enumerate(chosen):
            vector = problem.weight[i].astype(np.float64)
            supports = {effort: np.flatnonzero(theta[i]) for effort, theta in thetas.items()}
            supports["least"] = searched(vector, wide, supports["max"], steps=steps)
            errors = {name: exact(vector, wide, support) for name, support in supports.items()}
            found.append(
                {"layer": info.name, "type": info.name.rpartition(".")[2], "row": int(row), **errors}
            )
            print(found[-1], flush=True)
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, by effort, the mean excess over the least error found, in all and by type."""

    def mean(kind: str | None, effort: str) -> float:
        return float(
            np.mean(
                [
                    row[effort] / min(row[name] for name in ("least", *EFFORTS)) - 1
                    for row in rows
                    if kind in (None, row["type"])
                ]
            )
        )

    kinds = list(dict.fromkeys(row["type"] for row in rows))
    return {
        effort: {"all": mean(None, effort), **{kind: mean(kind, effort) for kind in kinds}}
        for effort in EFFORTS
    }


def main() -> None:
    """Measure and write bench/results/headroom.json once every block is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--statistics", type=Path, required=True)
    parser.add_argument("--blocks", default="3,10,17,27")
    parser.add_argument("--rows", type=int, default=4, help="rows of a linear")
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    source = SavedStatistics(ModelFolder(options.model), options.statistics)
    rows: list[dict[str, Any]] = []
    blocks = [int(block) for block in options.blocks.split(",")]
    for block in blocks:
        rows += measure(source, block, rows=options.rows, steps=options.steps)
        write(
            "headroom",
            {"blocks": options.blocks, "steps": options.steps, "excess": summary(rows), "rows": rows},
            complete=block == blocks[-1],
        )


if __name__ == "__main__":
    main()
