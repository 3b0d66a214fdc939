"""What calibration costs beside the forward passes it needs: `python bench/calibration.py MODEL --calibration FILE`.

The bare passes are the model's own decoder stack in transformers over the same windows. Against them stands one-shot
calibration whole: weights read block by block, hidden states written to disk, every Gram matrix. They alternate.
bfloat16 Gram products are measured where the processor has them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, for both sides

import numpy as np
import torch
from common import write

from awp_edge import native
from awp_edge.calibrate import CalibrationRequest, open_statistics
from awp_edge.calibrate.modules import whole_model
from awp_edge.models import ModelFolder

BFLOAT16_ISAS = ("avx512bf16", "amx")


def calibrate(folder: ModelFolder, request: CalibrationRequest) -> tuple[float, np.ndarray]:
    """Return the seconds of all statistics, tokenizing left out, and the tokens."""
    with tempfile.TemporaryDirectory() as state:
        source: Any = open_statistics(folder, request, Path(state))
        tokens = np.load(Path(state) / "tokens.npy")
        start = time.perf_counter()
        for block in range(source.n_blocks):
            source.statistics(block)
            source.advance(block, {})
        return time.perf_counter() - start, tokens


def bare(folder: ModelFolder, tokens: np.ndarray) -> float:
    """Return the seconds of the decoder stack's forward passes, one window at a time, loading left out."""
    stack = whole_model(folder).base_model.eval()
    with torch.inference_mode():
        stack(torch.from_numpy(tokens[:1].astype(np.int64)), use_cache=False)
        start = time.perf_counter()
        for window in tokens:
            stack(torch.from_numpy(window[None].astype(np.int64)), use_cache=False)
        return time.perf_counter() - start


def main() -> None:
    """Alternate bare passes and calibrations, print the ratios and write bench/results/calibration.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = ModelFolder(options.model)
    products = ("float32", "bfloat16") if native.isa() in BFLOAT16_ISAS else ("float32",)
    rows: list[dict[str, float]] = []
    for _ in range(options.runs):
        row: dict[str, float] = {}
        for kind in products:
            request = CalibrationRequest(
                options.calibration, options.samples, options.seq_len,
                order="one-shot", products=kind, threads=options.threads,
            )  # fmt: skip
            row[kind], tokens = calibrate(folder, request)
        row["bare"] = bare(folder, tokens)
        rows.append(row)
        print({key: round(value, 2) for key, value in row.items()}, flush=True)
    ratios = {key: median(row[key] / row["bare"] for row in rows) for key in products}
    print({key: round(value, 3) for key, value in ratios.items()})
    settings = {key: getattr(options, key) for key in ("samples", "seq_len", "threads")}
    print(write("calibration", {**settings, "seconds": rows, "ratio_to_bare_forward": ratios}))


if __name__ == "__main__":
    main()
