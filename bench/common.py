"""What every benchmark shares: the machine's description and the results folder."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from awp_edge import native

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("awp-edge", "numpy", "torch", "transformers", "onnxruntime", "onnxruntime-genai")


def machine() -> dict[str, Any]:
    """Return processor, cores, memory, versions, instruction set and date."""
    return {
        **stamp(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "isa": native.isa() if native.available() else None,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def stamp() -> dict[str, str]:
    """Return date and processor, for a measurement that later runs keep."""
    return {"date": datetime.date.today().isoformat(), "processor": _processor()}


def write(name: str, results: Any, *, complete: bool = True) -> Path:
    """Write results with the machine's description to bench/results/NAME.json.

    What is not complete goes to NAME.partial.json: an interrupted run leaves the whole table of an earlier one alone.
    """
    RESULTS.mkdir(exist_ok=True)
    partial = RESULTS / f"{name}.partial.json"
    partial.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    return partial.replace(RESULTS / f"{name}.json") if complete else partial


def best_seconds(call: Callable[[], object], *, runs: int) -> float:
    """Return the shortest of several timed calls, in seconds, after one untimed call."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            family = {k.strip(): v.strip() for k, _, v in (row.partition(":") for row in _first_core())}
            return f"{family['model name']} (family {family.get('cpu family')}, model {family.get('model')})"
    return platform.machine()


def _first_core() -> list[str]:
    return Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
