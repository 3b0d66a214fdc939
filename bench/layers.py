"""Compare awp-plus with every peer layer by layer: `python bench/layers.py MODEL --statistics DIR`.

One linear of every input group of some blocks (`--every-linear`: all), at every setting of `SETTINGS`; DIR is what
`awp-edge compress --one-shot --statistics DIR` saved. The gain of a layer is 1 - f / (the best peer's f). A second run
takes the peers from what the first wrote.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from common import RESULTS, stamp, write
from numpy.typing import NDArray

from awp_edge import CompressSpec, Problem, compress_layer
from awp_edge.calibrate.saved import SavedStatistics
from awp_edge.models import ModelFolder
from awp_edge.table import setting_name

PEERS = ("magnitude", "wanda", "sparsegpt", "alps", "awp")
SETTINGS: tuple[Mapping[str, Any], ...] = tuple(
    MappingProxyType(setting)
    for setting in (
        *({"sparsity": share} for share in (0.5, 0.6, 0.7, 0.8, 0.9)),
        *({"pattern": pattern} for pattern in ("2:4", "4:8", "32/64")),
    )
)
#: What is asked of awp-plus: nowhere worse than the best peer by more, and better by this on average.
ALLOWED, EXPECTED = 0.001, 0.015
EFFORTS = ("default", "max")


def problems(
    source: SavedStatistics, blocks: Sequence[int], *, every: bool = False
) -> Iterator[tuple[str, Problem]]:
    """Yield the first linear of every input group of the blocks, or every linear."""
    for block in blocks:
        grams = source.statistics(block)
        for info in source.linears(block):
            if every or info.name == info.input:
                yield info.name, Problem(source.weight(info.name), grams[info.input].matrix)


def measured(problem: Problem, spec: CompressSpec, *, threads: int) -> dict[str, Any]:
    """Return relative error and seconds of one method on one layer, and when and where they were measured."""
    start = time.perf_counter()
    result = compress_layer(problem.weight, problem.gram, spec, threads=threads)
    seconds = time.perf_counter() - start
    error = result.objective / problem.objective(np.zeros_like(problem.weight))
    return {"relative_error": error, "seconds": seconds, **stamp()}


def compared(
    problem: Problem,
    setting: Mapping[str, Any],
    known: Mapping[str, Any],
    *,
    efforts: Sequence[str],
    threads: int,
) -> dict[str, Any]:
    """Return every peer (as it was, where it is known), awp-plus at every effort, the gains over the best peer."""
    specs = {name: CompressSpec(name, **setting) for name in PEERS}
    ours = {f"awp-plus {effort}": CompressSpec(effort=effort, **setting) for effort in efforts}
    found = {
        name: known[name] if name in known else measured(problem, spec, threads=threads)
        for name, spec in specs.items()
    }
    found |= {name: measured(problem, spec, threads=threads) for name, spec in ours.items()}
    best = min(PEERS, key=lambda name: found[name]["relative_error"])
    gains = {
        effort: 1 - found[f"awp-plus {effort}"]["relative_error"] / found[best]["relative_error"]
        for effort in efforts
    }
    return {"methods": found, "best_peer": best, "gains": gains}


def summary(rows: Sequence[Mapping[str, Any]], effort: str) -> dict[str, Any]:
    """Return the mean and the least gain over the best peer, in all and by setting."""
    having = [row for row in rows if effort in row["gains"]]
    worst = min(having, key=lambda row: row["gains"][effort])
    settings = list(dict.fromkeys(row["setting"] for row in having))
    by_setting = {
        setting: _spread([row["gains"][effort] for row in having if row["setting"] == setting])
        for setting in settings
    }
    everything = _spread([row["gains"][effort] for row in having])
    return {
        **everything,
        "worst": {"layer": worst["layer"], "setting": worst["setting"], "peer": worst["best_peer"]},
        "never_worse": everything["min"] >= -ALLOWED,
        "better_on_average": everything["mean"] >= EXPECTED,
        "settings": by_setting,
    }


def summaries(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the summary of every effort that was measured."""
    return {
        effort: summary(rows, effort) for effort in EFFORTS if any(effort in row["gains"] for row in rows)
    }


def _spread(gains: Sequence[float]) -> dict[str, Any]:
    values: NDArray[np.float64] = np.array(gains)
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def main() -> None:
    """Measure and write bench/results/NAME.json, again after every setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--statistics", type=Path, required=True)
    parser.add_argument("--blocks", default="3,12,17,27")
    parser.add_argument("--every-linear", action="store_true")
    parser.add_argument("--settings", help="such as 50%%,2:4; all by default")
    parser.add_argument("--max-blocks", default="17", help="blocks where the effort max is measured as well")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="layers")
    options = parser.parse_args()
    source = SavedStatistics(ModelFolder(options.model), options.statistics)
    thorough = {int(block) for block in options.max_blocks.split(",") if block}
    rows = measured_before(options.name)
    for block in map(int, options.blocks.split(",")):
        efforts = EFFORTS if block in thorough else EFFORTS[:1]
        for name, problem in problems(source, [block], every=options.every_linear):
            for setting in SETTINGS:
                key = (name, setting_name(CompressSpec(**setting)))
                if options.settings and key[1] not in options.settings.split(","):
                    continue
                known = rows.get(key, {}).get("methods", {})
                row = compared(problem, setting, known, efforts=efforts, threads=options.threads)
                rows[key] = {"layer": name, "setting": key[1], **row}
                print(*key, row["best_peer"], row["gains"], flush=True)
                every = list(rows.values())
                write(options.name, {"threads": options.threads, "summary": summaries(every), "rows": every})


def measured_before(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return (layer, setting) -> the row of an earlier run, whose peers need not be run again."""
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        return {}
    earlier = json.loads(file.read_text())
    # Files of earlier versions say it once for all.
    made = {key: earlier["machine"][key] for key in ("date", "processor")}
    return {
        (row["layer"], row["setting"]): {
            **row, "methods": {method: {**made, **found} for method, found in row["methods"].items()}
        }
        for row in earlier["results"]["rows"]
    }  # fmt: skip


if __name__ == "__main__":
    main()
