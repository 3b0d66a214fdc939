"""What a run tells while it works and records when it is done: events, manifest, report, summary."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artifacts import KIND, SCHEMA_VERSION
from .checkpoint import State
from .models import SOURCE_FILE, ModelFolder
from .options import CompressOptions
from .storage import read_json

#: Of a layer's record: what differs from run to run.
CLOCKS = ("seconds", "cpu_seconds")


@dataclass(frozen=True)
class Event:
    """Tell a listener what just happened: `message` for a log line, the numbers for a progress bar.

    block: blocks finished.  layer, relative_error: of the layer just done.  elapsed_s, remaining_s: of the whole run.
    """

    message: str
    block: int = 0
    n_blocks: int = 0
    layer: str | None = None
    relative_error: float | None = None
    elapsed_s: float = 0.0
    remaining_s: float | None = None


Progress = Callable[[Event], None]


@dataclass(frozen=True)
class CompressSummary:
    """Return what a run did; `layers` holds every layer's name, relative_error, iterations, seconds and certificate.

    spec: the options of `CompressSpec` as the layers settled them.  calibration: as in the manifest.
    solve_seconds, solve_cpu_seconds: of the layers alone, without calibration and files, in all runs of this folder;
    the second adds up over threads and does not count what other processes took.
    """

    out: Path
    spec: Mapping[str, Any]
    mean_relative_error: float
    bits_per_weight: float
    sparsity: float
    seconds: float
    solve_seconds: float
    solve_cpu_seconds: float
    peak_memory_bytes: int
    layers: tuple[Mapping[str, Any], ...]
    calibration: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "out": str(self.out), "layers": [dict(layer) for layer in self.layers]}


def manifest_of(state: State, folder: ModelFolder) -> dict[str, Any]:
    """Return manifest.json: everything about the result that resume must reproduce byte for byte."""
    layers = [{key: value for key, value in layer.items() if key not in CLOCKS} for layer in state.layers]
    sizes = np.array([layer["shape"][0] * layer["shape"][1] for layer in layers], dtype=np.float64)
    weighted = {
        key: float(np.average([layer[key] for layer in layers], weights=sizes))
        for key in ("bits_per_weight", "sparsity")
    }
    source = folder.path / SOURCE_FILE
    about = read_json(source) if source.is_file() else {}
    model = {"hash": folder.hash(), "architecture": folder.architecture, "dtype": folder.storage_dtype(),
             "weights": about.get("weights", "as in the model folder")}  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION, "kind": KIND, "model": model, "request": state.request,
        "calibration": state.calibration, "spec": state.spec, "versions": state.request["versions"],
        "mean_relative_error": float(np.mean([layer["relative_error"] for layer in layers])), **weighted,
        "layers": layers, "files": dict(sorted(state.files.items())),
    }  # fmt: skip


def report_of(state: State, options: CompressOptions, *, seconds: float) -> dict[str, Any]:
    """Return report.json: timings, machine and memory, which differ from run to run."""
    return {
        "seconds": seconds,
        "stages": {name: spent for name, spent in state.seconds.items() if name != "total"},
        "solve_cpu_seconds": sum(layer.get("cpu_seconds", 0.0) for layer in state.layers),
        "runs": state.runs,
        "machine": machine(),
        "peak_memory_bytes": process_peak_bytes(),
        "threads": options.threads,
        "layers": {layer["name"]: layer["seconds"] for layer in state.layers},
    }


def summary_of(out: Path, manifest: Mapping[str, Any], report: Mapping[str, Any]) -> CompressSummary:
    """Return the summary of a finished folder from its own files."""
    keys = ("name", "relative_error", "iterations")
    layers = tuple(
        {
            **{key: layer[key] for key in keys},
            "seconds": report["layers"][layer["name"]],
            **({"certificate": layer["certificate"]} if "certificate" in layer else {}),
        }
        for layer in manifest["layers"]
    )
    return CompressSummary(
        out=out,
        spec=manifest["spec"],
        mean_relative_error=manifest["mean_relative_error"],
        bits_per_weight=manifest["bits_per_weight"],
        sparsity=manifest["sparsity"],
        seconds=report["seconds"],
        solve_seconds=report["stages"].get("solve", 0.0),
        solve_cpu_seconds=report.get("solve_cpu_seconds", 0.0),
        peak_memory_bytes=report["peak_memory_bytes"],
        layers=layers,
        calibration=manifest["calibration"],
    )


def process_peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def machine() -> dict[str, Any]:
    """Describe the machine in plain JSON values."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        model = next(lines, f":{model}").split(":", 1)[1].strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
