"""How a command is declared: a frozen dataclass of options and a function from it to an outcome."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

from ..compress import Interrupted
from .console import plain_json


@dataclass(frozen=True)
class Outcome:
    """Hold what a command prints: the JSON object, or the lines for people."""

    payload: Mapping[str, Any]
    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that every command takes."""

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line of stdout, errors too.")
    ] = False

    def kept(self) -> str | None:
        """Say what Ctrl-C leaves and how to go on; None where nothing is left."""
        return None


def register(app: typer.Typer, name: str, *, options: type[Options], run: Callable[[Any], Outcome]) -> None:
    """Add a command whose options are the fields of a dataclass and whose help is the function's docstring."""

    def call(**values: Any) -> None:
        chosen = options(**values)
        try:
            outcome = run(chosen)
        except (KeyboardInterrupt, Interrupted) as stop:
            kept = chosen.kept()
            if kept is None and isinstance(stop, Interrupted):
                raise  # it says itself what it keeps
            raise Interrupted(f"{name} was interrupted: {kept or 'nothing was kept, run it again'}") from None
        lines = [json.dumps(plain_json(outcome.payload))] if chosen.json else outcome.lines
        typer.echo("\n".join(lines))

    # Typer reads a signature; a dataclass keeps the options of one command in one place, and shared ones in its base.
    call.__signature__ = _signature(options)  # type: ignore[attr-defined]
    call.__annotations__ = get_type_hints(options, include_extras=True)
    app.command(name, help=inspect.getdoc(run))(call)


def _signature(options: type[Options]) -> inspect.Signature:
    hints = get_type_hints(options, include_extras=True)
    parameters = []
    # The base class's fields come first; --json reads better at the end of the help.
    for field in sorted(fields(options), key=lambda field: field.name == "json"):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name]))
    return inspect.Signature(parameters)
