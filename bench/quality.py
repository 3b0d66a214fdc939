"""Measure the perplexity of every method: `python bench/quality.py MODEL --calibration C4 --text WIKITEXT`.

One calibration (dense stream, saved statistics) serves all rows; every row is an `awp-edge compress` and an
`awp-edge eval`, run as a user would. The figures an independent PyTorch prototype gave for SmolLM2-135M (64 windows of
2048 C4 tokens, 8 windows of WikiText-2) stand beside ours.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import write

#: name -> compress options, and the prototype's (perplexity, mean relative error).
ROWS: dict[str, tuple[list[str], tuple[float, float | None] | None]] = {
    "magnitude 50%": (["--method", "magnitude", "--sparsity", "0.5"], (342.6, 0.0612)),
    "wanda 50%": (["--method", "wanda", "--sparsity", "0.5"], (43.16, 0.0313)),
    "awp 50%": (["--method", "awp", "--sparsity", "0.5"], (37.91, 0.0220)),
    "wanda 60%": (["--method", "wanda", "--sparsity", "0.6"], (119.6, None)),
    "awp-plus 50%": (["--method", "awp-plus", "--sparsity", "0.5"], None),
    "awp-plus 50% fast": (["--method", "awp-plus", "--effort", "fast", "--sparsity", "0.5"], None),
    "awp-plus 50% max": (["--method", "awp-plus", "--effort", "max", "--sparsity", "0.5"], None),
    "awp-plus 50% undamped": (["--method", "awp-plus", "--damping", "0", "--sparsity", "0.5"], None),
    "awp-plus 50% max undamped": (
        ["--method", "awp-plus", "--effort", "max", "--damping", "0", "--sparsity", "0.5"],
        None,
    ),
    "alps 50%": (["--method", "alps", "--sparsity", "0.5"], (34.15, 0.0171)),
    "awp-plus 50% + INT4 g64": (
        ["--method", "awp-plus", "--sparsity", "0.5", "--bits", "4", "--group-size", "64"],
        None,
    ),
    "awp-plus 50% by layer": (["--sparsity", "0.5", "--allocate", "layer"], None),
    "awp-plus 50% by row": (["--sparsity", "0.5", "--allocate", "row"], None),
    "awp-plus 50% by row + INT4 g64": (
        ["--sparsity", "0.5", "--bits", "4", "--group-size", "64", "--allocate", "row"],
        None,
    ),
    "awp-plus 32/64 + INT4 g64": (["--pattern", "32/64", "--bits", "4", "--group-size", "64"], None),
    "awp-plus 32/64 + INT4 g64 by layer": (
        ["--pattern", "32/64", "--bits", "4", "--group-size", "64", "--allocate", "layer"],
        None,
    ),
    "awp-plus INT4 g64": (["--method", "awp-plus", "--bits", "4", "--group-size", "64"], None),
    "awp-plus INT3 g64": (["--method", "awp-plus", "--bits", "3", "--group-size", "64"], None),
    "awp-plus INT4 g64 by layer": (["--bits", "4", "--group-size", "64", "--allocate", "layer"], None),
    "awp-plus INT3 g64 by layer": (["--bits", "3", "--group-size", "64", "--allocate", "layer"], None),
    "rtn INT3 g64": (["--method", "rtn", "--bits", "3", "--group-size", "64"], None),
    "rtn INT4 g64": (["--method", "rtn", "--bits", "4", "--group-size", "64"], (25.36, 0.00951)),
}
DENSE_PERPLEXITY = 19.26


def awp_edge(*arguments: str) -> dict[str, Any]:
    """Run a command with --json and return its object; its progress stays visible."""
    command = [sys.executable, "-P", "-m", "awp_edge.cli", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def calibration_options(options: argparse.Namespace, arguments: list[str]) -> list[str]:
    """Return the command's own defaults, or the prototypes' protocol with statistics shared by all rows."""
    weights = ["--token-weights", options.token_weights]
    saved = "statistics" if options.token_weights == "uniform" else f"statistics-{options.token_weights}"
    if "--allocate" in arguments and options.token_weights != "loss":
        saved += "-gradients"  # a set of its own: the others are saved without
    shared = [*weights, "--one-shot", "--statistics", str(options.work / saved)]
    if options.defaults:
        return shared if options.one_shot else weights
    return ["--samples", "64", "--seq-len", "2048", *shared]


def measure(name: str, options: argparse.Namespace, *, backend: str) -> dict[str, Any]:
    """Return one row: compress, evaluate, compare with the prototype, delete the compressed folder."""
    arguments, prototype = ROWS[name]
    out = options.work / re.sub(r"[^\w+-]+", "-", f"{name}-{backend}")
    shutil.rmtree(out, ignore_errors=True)
    compressed = awp_edge(
        "compress", str(options.model), str(out), *arguments, "--calibration", options.calibration,
        *calibration_options(options, arguments), "--backend", backend,
    )  # fmt: skip
    evaluated = awp_edge("eval", str(out), "--text", str(options.text), "--windows", str(options.windows))
    shutil.rmtree(out)
    row = {
        "name": name,
        "backend": backend,
        "perplexity": evaluated["perplexity"],
        "mean_relative_error": compressed["mean_relative_error"],
        "seconds": compressed["seconds"],
        "solve_seconds": compressed["solve_seconds"],
        "peak_memory_bytes": compressed["peak_memory_bytes"],
        "bits_per_weight": compressed["bits_per_weight"],
        "prototype_perplexity": prototype[0] if prototype else None,
        "prototype_relative_error": prototype[1] if prototype else None,
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Measure every row in every backend and write bench/results/quality.json once all are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", required=True, help="a file, or self")
    parser.add_argument("--defaults", action="store_true", help="calibrate as the command does by default")
    parser.add_argument("--token-weights", default="uniform", help="uniform, norm or loss")
    parser.add_argument(
        "--one-shot", action="store_true", help="with --defaults: of the dense stream, for all rows"
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--backends", default="native,numpy")
    parser.add_argument("--rows", default="magnitude 50%,wanda 50%,awp 50%,wanda 60%,rtn INT4 g64")
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    parser.add_argument("--name", default="quality", help="results go to bench/results/NAME.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    dense = awp_edge(
        "eval", str(options.model), "--text", str(options.text), "--windows", str(options.windows)
    )
    results: dict[str, Any] = {
        "calibration": Path(options.calibration).name,
        "token_weights": options.token_weights,
        "text": options.text.name,
        "windows": dense["windows"],
        "dense_perplexity": dense["perplexity"],
        "prototype_dense_perplexity": DENSE_PERPLEXITY,
        "rows": [],
    }
    asked = [(name, backend) for backend in options.backends.split(",") for name in options.rows.split(",")]
    for name, backend in asked:
        results["rows"].append(measure(name, options, backend=backend))
        write(options.name, results, complete=len(results["rows"]) == len(asked))


if __name__ == "__main__":
    main()
