"""The application: its commands, and the one place where an exception becomes one line and an exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated

import typer

from .. import __version__
from ..compress import Interrupted
from ..errors import AwpError, UsageError
from .command import register

FAILED, USAGE, STOPPED = 1, 2, 130

#: Which extra of the package brings a module.
EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "torch": "calibrate",
        "transformers": "calibrate",
        "gguf": "calibrate",
        "huggingface_hub": "calibrate",
        "datasets": "datasets",
        "tokenizers": "run",
        "onnxruntime": "run",
        "onnxruntime_genai": "run",
        "onnx": "export",
        "onnx_ir": "export",
        "psutil": "bench",
        "threadpoolctl": "bench",
        "matplotlib": "bench",
    }
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 (failed), 2 (usage), 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _quiet_libraries()
    # torch's idle OpenMP threads would spin on the cores that the native core computes on between two layers.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader went away (`| head`): the interpreter must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        code, message = _explain(error)
    _complain(message, as_json="--json" in arguments)
    return code


def _run(arguments: Sequence[str]) -> int:
    command = typer.main.get_command(_application())
    try:
        code = command.main(args=list(arguments) or ["--help"], prog_name="awp-edge", standalone_mode=False)
    except SystemExit as stop:
        code = stop.code
    if not arguments:
        return USAGE
    return code if isinstance(code, int) else 0


def _application() -> typer.Typer:
    from . import compression, demo, edge, evaluation, table

    app = typer.Typer(
        name="awp-edge",
        help="Compress language models on a CPU and run them on the edge with ONNX Runtime.",
        epilog="In a dense export zeros save neither time nor space; fewer bits do, and K/64 patterns with 4 bits.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_version_option)
    for group in (compression, edge, evaluation, table, demo):
        for name, (options, run) in group.COMMANDS.items():
            register(app, name, options=options, run=run)
    return app


def _version_option(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda asked: _show_version(asked),
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    pass


def _show_version(asked: object) -> None:
    if asked:
        typer.echo(f"awp-edge {__version__}")
        raise typer.Exit


def _explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the line for an exception."""
    if isinstance(error, KeyboardInterrupt | Interrupted | typer.Abort):
        return STOPPED, str(error) or "interrupted"
    if isinstance(error, AwpError):
        return USAGE if isinstance(error, UsageError) else FAILED, str(error)
    if hasattr(error, "format_message"):  # the parser's own complaint, whichever parser typer carries
        return USAGE, f"{error.format_message()} (awp-edge COMMAND --help lists the options)"
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").split(".")[0])):
        return FAILED, f"this needs the package {error.name}: pip install 'awp-edge[{extra}]'"
    if isinstance(error, MemoryError):
        return FAILED, f"out of memory: {error or 'use fewer --samples or a shorter --seq-len'}"
    return FAILED, f"{type(error).__name__}: {error}{_log_note(error)}"


def _log_note(error: BaseException) -> str:
    """Write the traceback to a file and return where it lies."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="awp-edge-", suffix=".log", delete=False) as log:
            log.write("".join(traceback.format_exception(error)))
        return f" (traceback in {log.name})"
    except OSError:
        return ""


def _complain(message: str, *, as_json: bool) -> None:
    line = " ".join(message.split())
    typer.echo(f"awp-edge: {line}", err=True)
    if as_json:
        typer.echo(json.dumps({"error": line}))


def _quiet_libraries() -> None:
    """Keep other packages' bars, warnings and advice out of our one-line answers."""
    for name, value in {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                        "TOKENIZERS_PARALLELISM": "false"}.items():  # fmt: skip
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR, format="awp-edge: %(message)s", stream=sys.stderr)
