"""The command `demo`: the whole road on SmolLM2-135M, built from the other commands, each step kept and timed."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..evaluate import evaluate
from ..models import ModelFolder
from ..storage import write_json
from .command import Options, Outcome
from .compression import CompressChoice, FetchChoice, compress, default_cache, fetch
from .console import columns, duration, progress, size
from .edge import BenchChoice, ExportChoice, GenerateChoice, bench, export, generate
from .evaluation import open_source
from .steps import Steps, finished_steps, folder_name, steps_in

MODEL = "smollm2-135m"
PROMPT = "Explain in one sentence why the sky is blue."
RESULT_FILE = "demo.json"

#: Row of the table -> what `compress` is asked for; None is the dense model.
ROWS: Mapping[str, Mapping[str, Any] | None] = MappingProxyType(
    {
        "dense fp32": None,
        "INT4": MappingProxyType({"bits": 4}),
        "32 of 64 + INT4": MappingProxyType({"bits": 4, "pattern": "32/64", "effort": "fast"}),
    }
)


@dataclass(frozen=True, kw_only=True)
class DemoChoice(Options):
    """Options of `demo`."""

    out: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where folders and results go; a second run reuses them.")
    ] = Path("demo")
    windows: Annotated[int, typer.Option(min=1, help="Windows of the evaluation.")] = 4
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 1024
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all usable cores by default.")] = None

    def kept(self) -> str:
        """Name the folder of the finished steps."""
        return finished_steps(self.out)


def demo(options: DemoChoice) -> Outcome:
    """Run every step on SmolLM2-135M.

    Fetch, compress, export, evaluate, bench and generate; print before and after.
    """
    model = default_cache() / MODEL
    if options.out.resolve() == model.parent.resolve():  # fetch would wait for ever for the lock of the steps
        raise UsageError(f"{options.out} is the cache of fetched models; choose another folder for the demo")
    with steps_in(options.out) as steps:
        return _demo(model, steps, options)


def _demo(model: Path, steps: Steps, options: DemoChoice) -> Outcome:
    steps.run(
        "fetch", str(model), lambda: fetch(FetchChoice(name=MODEL, directory=model)).payload, makes=model
    )
    run = _Demo(model, ModelFolder(model).hash(), steps, options)
    run.forget_other_weights()
    made = {name: run.row(name, asked) for name, asked in ROWS.items()}
    texts = {name: row.pop("text") for name, row in made.items()}
    result = {
        "rows": made,
        "generated": {"prompt": PROMPT, **texts},
        "evaluation": f"{options.windows} windows of {options.seq_len} tokens of the help texts of Python "
        f"{platform.python_version()} (pydoc_data.topics)",
        "seconds": steps.seconds(),
        "origin": steps.origin(),
        "made": steps.made(),
    }
    write_json(options.out / RESULT_FILE, result)
    return Outcome(result, _lines(result, options))


@dataclass(frozen=True)
class _Demo:
    """The rows of one model: what its weights decide is kept under their hash."""

    model: Path
    weights: str
    steps: Steps
    options: DemoChoice

    def forget_other_weights(self) -> None:
        """Delete what an earlier demo made of other weights, which `compress` would refuse to go on with."""
        for pattern in (
            "statistics/manifest.json",
            "*/compressed*/manifest.json",
            "*/compressed*/state.json",
        ):
            for record in self.options.out.glob(pattern):
                if self.weights not in record.read_text():
                    shutil.rmtree(record.parent)

    def row(self, name: str, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        """Make one edge folder and measure it."""
        options = self.options
        folder = options.out / folder_name(name.lower())
        source, edge = folder / "compressed", folder / "edge"
        row: dict[str, Any] = {"bits_per_weight": 32.0, "sparsity": 0.0}
        if asked is None:
            source = self.model
        else:
            # One-shot statistics serve both rows: the model writes its calibration text once.
            choice = CompressChoice(model=self.model, out=source, statistics=options.out / "statistics",
                                    threads=options.threads, resume=True, **asked)  # fmt: skip
            done = self._step(
                f"{name}: compress", dict(asked), lambda: compress(choice).payload, makes=source
            )
            row |= {key: done[key] for key in ("bits_per_weight", "sparsity", "mean_relative_error")}
        exported = ExportChoice(compressed=source, out=edge)
        self._step(f"{name}: export", str(source), lambda: _export_anew(exported), makes=edge)
        sizes = [options.windows, options.seq_len]
        row |= self._step(f"{name}: eval", sizes, lambda: _judge(edge, options))
        timed = BenchChoice(folder=edge, threads=options.threads)
        row |= self._step(f"{name}: bench", options.threads, lambda: bench(timed).payload)
        text = GenerateChoice(folder=edge, prompt=PROMPT, max_tokens=48, chat=True, threads=options.threads)
        return row | self._step(f"{name}: generate", PROMPT, lambda: generate(text).payload)

    def _step(
        self, name: str, key: Any, work: Callable[[], Mapping[str, Any]], *, makes: Path | None = None
    ) -> Any:
        return self.steps.run(name, [self.weights, key], work, makes=makes)


def _export_anew(choice: ExportChoice) -> Mapping[str, Any]:
    """Export over what an earlier demo left in its own folder."""
    shutil.rmtree(choice.out, ignore_errors=True)
    return export(choice).payload


def _judge(edge: Path, options: DemoChoice) -> dict[str, Any]:
    """Evaluate an edge folder against the dense one, on a text that every machine has."""
    dense = options.out / "dense-fp32" / "edge"
    against = None if edge == dense else open_source(dense, threads=options.threads)
    with progress("demo: evaluating") as advance:
        measured = evaluate(
            open_source(edge, threads=options.threads),
            python_help(),
            seq_len=options.seq_len,
            windows=options.windows,
            against=against,
            on_window=lambda done, total: advance(done, total, "window"),
            threads=options.threads,
        )
    return measured.as_dict()


def python_help() -> str:
    """Return the long help texts of this Python: half a megabyte of English technical prose, no download needed."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _lines(result: Mapping[str, Any], options: DemoChoice) -> Sequence[str]:
    header = ("", "folder", "bits/weight", "perplexity", "KL to dense", "same top-1", "prefill tok/s", "decode tok/s",
              "peak memory")  # fmt: skip
    table = columns([header, *(_cells(name, row) for name, row in result["rows"].items())])
    texts = [f"{name}: {text.strip()}" for name, text in result["generated"].items() if name != "prompt"]
    return [
        *table,
        "",
        f"perplexity, KL (nats a token) and top-1 agreement: {result['evaluation']}",
        "Fewer bits bring size and speed; zeros only where the export has an operator for them: 32 of 64 with INT4.",
        "",
        f"onnxruntime-genai, asked: {PROMPT}",
        *texts,
        "",
        f"{duration(sum(result['seconds'].values()))} in all on {result['origin']}; "
        f"details in {options.out / RESULT_FILE}",
    ]


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    compared = row.get("kl") is not None
    return (
        name,
        size(row["bytes"]),
        f"{row['bits_per_weight']:.2f}",
        f"{row['perplexity']:.2f}",
        f"{row['kl']:.4f}" if compared else "-",
        f"{row['top1_agreement']:.1%}" if compared else "-",
        f"{row['prefill_tokens_per_second']:.0f}",
        f"{row['decode_tokens_per_second']:.1f}",
        size(row["peak_memory_bytes"]),
    )


Declared = tuple[type[Options], Callable[[Any], Outcome]]
COMMANDS: Mapping[str, Declared] = MappingProxyType({"demo": (DemoChoice, demo)})
