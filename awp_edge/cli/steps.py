"""Steps that are run once: their results lie in a file, so that a second run of a long command goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..storage import read_json, write_json
from .console import note

STEPS_FILE = "steps.json"


class Steps:
    """Run named steps once: a step whose parameters and results are on record is not run again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / STEPS_FILE
        self.done: dict[str, Any] = read_json(self._file) if self._file.is_file() else {}

    def run(
        self, name: str, key: Any, work: Callable[[], Mapping[str, Any]], *, makes: Path | None = None
    ) -> Any:
        """Return the step's result, from the record where its key is the same and what it made is still there."""
        record = self.done.get(name)
        if record is not None and record["key"] == key and (makes is None or makes.is_dir()):
            return record["result"]
        note(name)
        start = time.perf_counter()
        result = dict(work())
        self.done[name] = {"key": key, "result": result, "seconds": time.perf_counter() - start}
        write_json(self._file, self.done)
        return result

    def seconds(self) -> dict[str, float]:
        """Return how long each step took when it was run."""
        return {name: record["seconds"] for name, record in self.done.items()}
