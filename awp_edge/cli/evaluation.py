"""The commands that judge a model: eval and report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from ..artifacts import CompressedModel, folder_kind
from ..calibrate.text import read_text
from ..errors import AwpError
from ..evaluate import DEFAULT_SEQ_LEN, Evaluation, LogitsSource, evaluate
from ..storage import write_json
from .command import Options, Outcome
from .console import facts, plain_json, progress


@dataclass(frozen=True, kw_only=True)
class EvalChoice(Options):
    """Options of `eval`."""

    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A Hugging Face, compressed or edge folder.")
    ]
    text: Annotated[Path, typer.Option(metavar="FILE", help="The text, .txt or .jsonl (its `text` fields).")]
    seq_len: Annotated[
        int | None,
        typer.Option(
            min=2, help=f"Tokens per window; {DEFAULT_SEQ_LEN}, or the context of a model that has less."
        ),
    ] = None
    windows: Annotated[int | None, typer.Option(min=1, help="Windows at most; all by default.")] = None
    against: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The dense model: adds KL divergence and top-1 agreement."),
    ] = None
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result here too (JSON).")] = (
        None
    )
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all usable cores by default.")] = None


def evaluation(options: EvalChoice) -> Outcome:
    """Measure perplexity on a text.

    Consecutive windows, as in the WikiText-2 protocol; --against adds KL divergence and top-1 agreement.
    """
    if options.output is not None:
        require_writable(options.output)
    text = read_text(options.text)
    measured = measure(
        options.folder,
        text,
        seq_len=options.seq_len,
        windows=options.windows,
        against=options.against,
        threads=options.threads,
    )
    payload = {"folder": str(options.folder), "text": str(options.text), **measured.as_dict()}
    if options.output is not None:
        write_json(options.output, plain_json(payload))
    return Outcome(payload, _evaluation_lines(measured, capped=options.seq_len is None))


def require_writable(file: Path) -> None:
    """Raise AwpError where a result could not be written when it is there, after minutes or hours."""
    parent = file.parent
    if not parent.is_dir():
        raise AwpError(f"cannot write {file}: {parent} is no folder; make it, or give another --output")
    if file.is_dir():
        raise AwpError(f"cannot write {file}: it is a folder; give a file as --output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise AwpError(f"cannot write {file}: {parent} cannot be written; give another --output")


def measure(
    folder: Path,
    text: str,
    *,
    seq_len: int | None,
    windows: int | None,
    against: Path | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Open one or two folders and measure, with progress on stderr; by default in windows that both can take."""
    folder_kind(folder)
    dense = None if against is None else open_source(against, threads=threads)
    model = open_source(folder, threads=threads)
    contexts = [source.context_length or DEFAULT_SEQ_LEN for source in (model, dense) if source is not None]
    with progress("evaluating") as advance:
        return evaluate(
            model,
            text,
            seq_len=seq_len or min(DEFAULT_SEQ_LEN, *contexts),
            windows=windows,
            against=dense,
            on_window=lambda done, total: advance(done, total, "window"),
            threads=threads,
        )


def open_source(folder: Path, *, threads: int | None = None) -> LogitsSource:
    """Open any kind of model folder: in ONNX Runtime if it is an edge folder, all of it read once, in torch otherwise.

    Raises: AwpError for a folder that cannot be opened, or an edge or compressed folder in which a file is not what was
        written.
    """
    kind = folder_kind(folder)
    if kind == "compressed":
        CompressedModel(folder).verify()
    if kind == "edge":
        from ..export.manifest import verify
        from ..export.runtime import EdgeModel

        verify(folder)
        return EdgeModel(folder, threads=threads)
    from ..calibrate.runner import TorchModel

    return TorchModel(folder, threads=threads)


def _evaluation_lines(measured: Evaluation, *, capped: bool) -> list[str]:
    scope = f"{measured.windows} windows of {measured.seq_len} tokens"
    if capped and measured.seq_len < DEFAULT_SEQ_LEN:
        scope += ", the whole context"
    pairs = [("perplexity", f"{measured.perplexity:.4g}  ({scope})")]
    if measured.kl is not None and measured.top1_agreement is not None:
        pairs += [
            ("perplexity of the other", f"{measured.against_perplexity:.4g}"),
            ("KL from the other", f"{measured.kl:.4g} nats a token"),
            ("same most likely token", f"{measured.top1_agreement:.1%}"),
        ]
    return facts(pairs)


@dataclass(frozen=True, kw_only=True)
class ReportChoice(Options):
    """Options of `report`."""

    compressed: Annotated[
        Path, typer.Argument(metavar="COMPRESSED", help="A folder that `awp-edge compress` wrote.")
    ]
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; COMPRESSED/report.html by default.")
    ] = None
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="JSON from `eval --output`, or of `bench --json`; may be repeated."
        ),
    ] = None


def report(options: ReportChoice) -> Outcome:
    """Write a self-contained HTML page about a compressed model.

    What was done, error per layer, sizes, timings, before and after.
    """
    from ..report import write_report

    if folder_kind(options.compressed) != "compressed":
        raise AwpError(
            f"{options.compressed} is not a compressed folder: give one that awp-edge compress made"
        )
    page = options.output or options.compressed / "report.html"
    write_report(options.compressed, page, results=options.results or ())
    return Outcome({"report": str(page), "bytes": page.stat().st_size}, [str(page)])


Declared = tuple[type[Options], Callable[[Any], Outcome]]
COMMANDS: Mapping[str, Declared] = MappingProxyType(
    {"eval": (EvalChoice, evaluation), "report": (ReportChoice, report)}
)
