"""The commands that write an edge folder and run it: export, generate, bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .command import Options, Outcome
from .console import facts, note, size

if TYPE_CHECKING:
    from ..export.package import ExportSummary

Threads = Annotated[int | None, typer.Option(min=1, help="Threads; all usable cores by default.")]
EdgeFolder = Annotated[Path, typer.Argument(metavar="EDGE", help="A folder that `awp-edge export` wrote.")]


@dataclass(frozen=True, kw_only=True)
class ExportChoice(Options):
    """Options of `export`."""

    compressed: Annotated[
        Path,
        typer.Argument(metavar="COMPRESSED", help="A compressed folder, or a Hugging Face folder as it is."),
    ]
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist or is empty.")]
    format: Annotated[
        str, typer.Option(metavar="genai|hf", help="onnxruntime-genai, or a folder transformers loads.")
    ] = "genai"
    weights: Annotated[
        str,
        typer.Option(metavar="dense|sparse|auto", help="auto: sparse for K/64 with 4 bits, else dense."),
    ] = "auto"
    accuracy_level: Annotated[
        int | None,
        typer.Option(metavar="0|4", help="4: int8 activations, fast. 0: fp32. Default: 4 where it is fast."),
    ] = None
    lm_head: Annotated[
        str | None, typer.Option(metavar="int8|int4|fp32", help="The output head. Default: int8.")
    ] = None
    operator_library: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Put this operator library, for another processor, into the folder."
        ),
    ] = None


def export(options: ExportChoice) -> Outcome:
    """Write a folder that ONNX Runtime runs.

    Every weight is read back and the logits are compared with the compressed model's.
    """
    from ..export.package import ExportOptions, export_model

    chosen = ExportOptions(
        options.format, options.weights, options.accuracy_level, options.lm_head, options.operator_library
    )
    summary = export_model(options.compressed, options.out, chosen, progress=note)
    return Outcome(summary.as_dict(), _export_lines(summary))


def _export_lines(summary: ExportSummary) -> list[str]:
    lines = [f"{summary.folder}: {size(summary.n_bytes)}"]
    if summary.weights is not None:
        read = summary.weights
        lines.append(
            f"read back: {read.weights} weights of {read.layers} layers equal bit for bit, "
            f"{read.zeros} of them exactly zero"
        )
        if read.sparse_layers:
            lines.append(f"{read.sparse_layers} of them sparse: {read.bits_per_weight:.2f} bits a weight")
        elif read.zeros:
            lines.append("zeros are stored like other weights here: they bring neither speed nor size")
    if summary.agreement is not None:
        seen = summary.agreement
        lines.append(
            f"against the compressed model over {seen.tokens} tokens: KL {seen.kl:.2g} nats a token, "
            f"same most likely token for {seen.top1:.1%}"
        )
    return lines


@dataclass(frozen=True, kw_only=True)
class GenerateChoice(Options):
    """Options of `generate`."""

    folder: EdgeFolder
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The text to continue.")]
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens at most.")] = 64
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = (
        False
    )
    threads: Threads = None


def generate(options: GenerateChoice) -> Outcome:
    """Continue a prompt greedily with onnxruntime-genai."""
    from ..export.runtime import EdgeModel

    if not options.prompt:
        raise UsageError("--prompt is empty: give at least one word")
    model = EdgeModel(options.folder, threads=options.threads)
    text = model.generate(options.prompt, max_tokens=options.max_tokens, chat=options.chat)
    return Outcome({"text": text}, [text])


@dataclass(frozen=True, kw_only=True)
class BenchChoice(Options):
    """Options of `bench`."""

    folder: EdgeFolder
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 64
    repeats: Annotated[int, typer.Option(min=1, help="Runs, of which the median is given.")] = 3
    threads: Threads = None
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Measure dense INT4 and fp32 layers and the machine's limits beside it."
        ),
    ] = False
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the comparison (.png or .svg).")] = (
        None
    )


def bench(options: BenchChoice) -> Outcome:
    """Measure speed, memory and size of an edge folder.

    Prefill and decode speed, time to first token and peak memory, in a process of its own.
    """
    from ..export.runtime import EdgeModel

    model = EdgeModel(options.folder, threads=options.threads)
    sizes = {"prompt_tokens": options.prompt_tokens, "tokens": options.tokens, "repeats": options.repeats}
    if not options.compare and options.plot is None:
        measured = model.bench(**sizes)
        return Outcome(measured, _bench_lines(measured))
    from ..export.compare import compare, plot, require_plot

    if options.plot is not None:
        require_plot(options.plot)
    measured = compare(model, **sizes, say=note)
    if options.plot is not None:
        plot(measured, options.plot)
    return Outcome(measured, [*_bench_lines(measured), *_comparison_lines(measured)])


def _bench_lines(measured: Mapping[str, Any]) -> list[str]:
    return facts(
        [
            (
                "prefill",
                f"{measured['prefill_tokens_per_second']:.1f} tokens/s ({measured['prompt_tokens']} tokens)",
            ),
            ("decode", f"{measured['decode_tokens_per_second']:.1f} tokens/s ({measured['tokens']} tokens)"),
            ("time to first token", f"{measured['time_to_first_token_s']:.3f} s"),
            ("peak memory", size(measured["peak_memory_bytes"])),
            ("folder", size(measured["bytes"])),
            ("threads", str(measured["threads"])),
        ]
    )


def _comparison_lines(measured: Mapping[str, Any]) -> list[str]:
    lines = [
        f"against {kind}: decode {row['decode_speedup']:.2f}x of {row['decode_tokens_per_second']:.1f} tokens/s, "
        f"prefill {row['prefill_speedup']:.2f}x of {row['prefill_tokens_per_second']:.1f}, {size(row['bytes'])}"
        for kind, row in measured["against"].items()
    ]
    bounds = measured["limits"]
    if bounds is None:
        return lines
    lines.append(
        f"reading memory at {bounds['read_gb_s']:.1f} GB/s allows {bounds['memory_tokens_per_second']:.1f} tokens/s"
    )
    if "decode_tokens_per_second" in bounds:
        lines.append(
            f"expanding {bounds['decode_gweights']:.1f}e9 weights/s ({bounds['kernels']} kernels) allows "
            f"{bounds['decode_tokens_per_second']:.1f} tokens/s, products of many tokens "
            f"{bounds['matrix_tokens_per_second']:.0f}"
        )
    return lines


Declared = tuple[type[Options], Callable[[Any], Outcome]]
COMMANDS: Mapping[str, Declared] = MappingProxyType(
    {"export": (ExportChoice, export), "generate": (GenerateChoice, generate), "bench": (BenchChoice, bench)}
)
