"""Steps that are run once: their results lie in a file, so that a second run of a long command goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import __version__
from ..record import machine
from ..storage import read_json, sole_owner, write_json, writing
from .console import note

STEPS_FILE = "steps.json"


def folder_name(row: str) -> str:
    """Return the name of a row's folder."""
    return re.sub(r"[^\w.-]+", "-", row)


def finished_steps(folder: Path) -> str:
    """Say what an interrupted run leaves: its steps, and the blocks that a compression had finished."""
    return f"what was finished is kept in {folder}; give the same command to go on"


def where_and_when(made: Sequence[Mapping[str, Any]]) -> str:
    """Say on which machines and between which days steps were measured, in the order of `Steps.made`."""
    places = dict.fromkeys(f"{one['machine']['cpu']}, {one['machine']['cores']} cores" for one in made)
    days = dict.fromkeys((made[0]["date"], made[-1]["date"]))
    return f"{' and '.join(places)}, {' to '.join(days)}"


@contextmanager
def steps_in(folder: Path) -> Iterator[Steps]:
    """Give the steps of a folder, which is made where it is missing, to this process alone.

    Raises: AwpError where another process has them, or the folder or its record cannot be used.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with sole_owner(folder):
        yield Steps(folder)


class Steps:
    """Run named steps once: a step whose parameters and results are on record is not run again.

    Two processes with one record lose each other's steps: `steps_in` opens it for one.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / STEPS_FILE
        self.done: dict[str, Any] = read_json(self._file) if self._file.is_file() else {}
        self._taken: list[str] = []

    def run(
        self, name: str, key: Any, work: Callable[[], Mapping[str, Any]], *, makes: Path | None = None
    ) -> Any:
        """Return the step's result, from the record where its key is the same and what it made is still there."""
        self._taken.append(name)
        record = self.done.get(name)
        if record is not None and record["key"] == key and (makes is None or makes.is_dir()):
            return record["result"]
        note(name)
        start = time.perf_counter()
        result = dict(work())
        seconds = time.perf_counter() - start
        # Beside the key, not in it: a step is not measured again for being of another day.
        made = {"version": __version__, "date": time.strftime("%Y-%m-%d"), "machine": machine()}
        self.done[name] = {"key": key, "result": result, "seconds": seconds, "made": made}
        write_json(self._file, self.done)
        return result

    def made(self) -> list[dict[str, Any]]:
        """Return version, date and machine of the steps taken in this run, each once, by date."""
        known = [self.done[name]["made"] for name in self._taken if "made" in self.done[name]]
        return sorted(
            (one for i, one in enumerate(known) if one not in known[:i]), key=lambda one: one["date"]
        )

    def origin(self) -> str:
        """Say where and when the steps taken in this run were measured, which need not be here and today."""
        made = self.made()
        parts = [where_and_when(made)] if made else []
        silent = sum("made" not in self.done[name] for name in self._taken)
        if silent:
            parts.append(f"{silent} of {len(self._taken)} steps on an unknown machine and day")
        return ", ".join(parts)

    def seconds(self) -> dict[str, float]:
        """Return how long each step took when it was run."""
        return {name: record["seconds"] for name, record in self.done.items()}
