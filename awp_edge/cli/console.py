"""What people see: progress on stderr, aligned text on stdout."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer

#: Seconds between progress lines where stderr is not a terminal.
QUIET_SECONDS = 15.0

#: advance(done, total, what)
Advance = Callable[[int, int, str], None]


def note(message: str) -> None:
    """Write one line of progress to stderr, on a terminal only: a log gets results and errors."""
    if sys.stderr.isatty():
        typer.echo(message, err=True)


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """Show steps done and the time left on stderr: a bar on a terminal, else a line every few seconds."""
    if not sys.stderr.isatty():
        yield _plain(title)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, what: bar.update(
            task, completed=done, total=total or None, description=f"{title}: {what}" if what else title
        )


def _plain(title: str) -> Advance:
    shown = time.monotonic()
    # Steps done when the run began, and after the first it made: what lies between may be preparation.
    found: int | None = None
    first: tuple[int, float] | None = None

    def advance(done: int, total: int, what: str) -> None:
        nonlocal shown, found, first
        now = time.monotonic()
        found = done if found is None else found
        if first is None and done > found:
            first = done, now
        if now - shown < QUIET_SECONDS:
            return
        shown = now
        count, left = f" {done}/{total}" if total else "", ""
        if first is not None and done > first[0]:
            seconds = (now - first[1]) / (done - first[0])
            left = f", about {duration(seconds * (total - done))} left"
        typer.echo(f"{title}: {what}{count}{left}", err=True)

    return advance


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def size(n_bytes: float) -> str:
    """Return bytes in MB or GB (powers of ten)."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as aligned lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def facts(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return name-value pairs as aligned lines."""
    width = max(len(name) for name, _ in pairs)
    return [f"{name.ljust(width)}  {value}" for name, value in pairs]


def plain_json(value: Any) -> Any:
    """Return a value that strict JSON takes: numbers that are not finite become null, NumPy scalars plain numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
