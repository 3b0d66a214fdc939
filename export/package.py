"""Write an edge folder from a compressed one: graph, tokenizer, configuration, manifest, and proof that it runs."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..errors import AwpError, UsageError
from ..models import TOKENIZER_FILES
from ..storage import building, output_folder, read_json, writing
from . import check, graph
from .assemble import Kinds, write_graph
from .head import HEADS
from .hf import write_hf
from .library import LIBRARY, library_path, require_library
from .manifest import MANIFEST_FILE, add_facts, write_manifest
from .passes.sparse import GATED
from .runtime import EdgeModel
from .source import Source

Progress = Callable[[str], None]
FORMATS, WEIGHTS, LEVELS = ("genai", "hf"), ("auto", "dense", "sparse"), (None, 0, 4)


@dataclass(frozen=True)
class ExportOptions:
    """Choose what an export writes.

    Args:
        format: "genai" is a folder for onnxruntime-genai, "hf" one that transformers loads.
        weights: "sparse" stores the codes of nonzero weights alone, for the operator library that is put into the
            folder; "dense" stores every code; "auto" is sparse for 4 bits and a K/64 pattern, else dense.
        accuracy_level: 4 computes quantized layers with int8 activations, 0 with float32; None: 4 where the
            processor has fast int8 kernels.
        lm_head: "int8", "int4" or "fp32"; None: int8 for a compressed model, fp32 for a plain one.
        operator_library: put this build of the operator library, for another processor, into the folder once it is
            checked with the one of this machine.

    Raises:
        UsageError: a value that is not offered, or that the format "hf" has no use for.
    """

    format: str = "genai"
    weights: str = "auto"
    accuracy_level: int | None = None
    lm_head: str | None = None
    operator_library: Path | None = None

    def __post_init__(self) -> None:
        offered = {"format": FORMATS, "weights": WEIGHTS, "accuracy_level": LEVELS, "lm_head": (None, *HEADS)}
        for name, values in offered.items():
            if getattr(self, name) not in values:
                given = ", ".join(str(value) for value in values if value is not None)
                raise UsageError(
                    f"{name.replace('_', ' ')} {getattr(self, name)!r} is not offered: choose one of {given}"
                )
        if self.format == "hf":
            self._require_plain()
        if self.operator_library is not None:
            _require_operators(self.operator_library)

    def _require_plain(self) -> None:
        """Refuse what only a graph has: the Hugging Face format holds every weight as a plain number."""
        useless = {
            "--weights sparse": self.weights == "sparse", "--accuracy-level": self.accuracy_level is not None,
            "--lm-head": self.lm_head is not None, "--operator-library": self.operator_library is not None,
        }  # fmt: skip
        named = ", ".join(option for option, given in useless.items() if given)
        if named:
            raise UsageError(f"--format hf stores plain weights, which {named} cannot change: leave it out")


def _require_operators(library: Path) -> None:
    if not library.is_file():
        raise UsageError(f"operator library {library} is not a file")
    code = library.read_bytes()
    if not code.startswith(b"\x7fELF") or b"RegisterCustomOps" not in code or GATED.encode() not in code:
        raise UsageError(
            f"{library} is not an operator library of this version: give the libawp_edge_ops.so of a build"
        )


@dataclass(frozen=True)
class ExportSummary:
    """Report an export.

    weights: what was read back from the graph; None for format "hf" and for a plain model.
    agreement: logits against the compressed model in torch; None for format "hf".
    """

    folder: Path
    options: ExportOptions
    n_bytes: int
    weights: check.WeightCheck | None = None
    agreement: check.Agreement | None = None
    tolerated_kl: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "folder": str(self.folder), "options": _plain(self.options)}


def export_model(compressed: str | Path, out: str | Path, options: ExportOptions | None = None, *,
                 progress: Progress | None = None) -> ExportSummary:  # fmt: skip
    """Export a compressed or a plain model folder; the output appears by rename when it is complete and checked.

    Args:
        compressed: what `awp-edge compress` wrote, or a Hugging Face folder to export as it is.
        out: a folder that does not exist or is empty.
        options: see `ExportOptions`.
        progress: called with one line per stage.

    Raises:
        AwpError: a model that cannot be exported, an output that cannot be written, or an export that failed its check.
    """
    say = progress or (lambda message: None)
    source, target = Source(Path(compressed)), output_folder(out)
    options = _resolve(options or ExportOptions(), source, say=say)
    if options.format == "genai":
        _refuse_unsupported(source)
        source.check_groups()
    if source.compressed is not None:
        say("comparing the files with their hashes")
        source.compressed.verify()
    with building(target) as partial, writing(target):
        if options.format == "hf":
            say("writing the Hugging Face folder")
            write_hf(source, partial)
            summary = ExportSummary(target, options, _folder_bytes(partial))
        else:
            summary = _export_genai(source, partial, options=options, say=say)
    return replace(summary, folder=target)


def _plain(options: ExportOptions) -> dict[str, Any]:
    library = options.operator_library
    return {**asdict(options), "operator_library": None if library is None else library.name}


def default_accuracy_level() -> int:
    """Return 4 where ONNX Runtime has int8 kernels for this processor (AVX2, or Arm dot products), else 0."""
    flags = _processor_flags()
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 4 if not flags or "asimddp" in flags else 0
    return 4 if not flags or "avx2" in flags else 0


def _processor_flags() -> frozenset[str]:
    """Return what Linux lists for the first processor; empty on other systems."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    listed = [line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))]
    return frozenset(listed[0].split()) if listed else frozenset()


def _resolve(options: ExportOptions, source: Source, *, say: Progress) -> ExportOptions:
    if options.format == "hf":
        return replace(options, weights="dense")
    level = default_accuracy_level() if options.accuracy_level is None else options.accuracy_level
    head = options.lm_head or ("int8" if source.layers else "fp32")
    weights = _weights(options.weights, source, say=say)
    if options.operator_library is not None and weights == "dense":
        raise UsageError(
            "--operator-library is for sparse weights and these are stored dense: leave it out, "
            "or see what --weights sparse says"
        )
    return replace(options, weights=weights, accuracy_level=level, lm_head=head)


def _weights(asked: str, source: Source, *, say: Progress) -> str:
    """Return "sparse" or "dense".

    Raises:
        AwpError: sparse weights were asked for and no layer can have them, or the library was not built.
    """
    reasons = {name: source.unfit(name) for name in source.layers}
    if asked == "sparse":
        require_library()
        if all(reasons.values()):
            name, reason = next(iter(reasons.items()), ("the model", "has no compressed layers"))
            raise AwpError(f"{name} {reason}; compress with --pattern 32/64 --bits 4, or use --weights dense")
        return "sparse"
    if asked == "dense" or not reasons or any(reasons.values()) or not source.in_blocks():
        return "dense"
    if library_path() is None:
        say("the operator library was not built (no compiler at install time): weights are stored dense")
        return "dense"
    return "sparse"


def _refuse_unsupported(source: Source) -> None:
    name = source.architecture
    if not any((source.path / file).is_file() for file in TOKENIZER_FILES):
        raise AwpError(
            f"{source.path} has no tokenizer files; copy those of the model into it or use --format hf"
        )
    known = graph.known_architectures()
    if known and name in known and name.endswith("ForCausalLM"):
        return
    if not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise AwpError(f"{name} is not a causal language model, which an edge folder needs; use --format hf")
    raise AwpError(f"{name} is not known to the model builder of onnxruntime-genai; use --format hf")


def _export_genai(source: Source, partial: Path, *, options: ExportOptions, say: Progress) -> ExportSummary:
    work = partial / "work"
    level, head = int(options.accuracy_level or 0), str(options.lm_head)
    kinds = Kinds(head, level, sparse=options.weights == "sparse")
    written = write_graph(source, partial, work, kinds=kinds, say=say)
    say("reading every weight back")
    weights = None
    if source.layers:
        weights = check.check_weights(partial, written.matches, written.dense, factors=source.factors)
    shutil.rmtree(work)
    facts = {"source": _provenance(source), "options": _plain(options), "opset": _opsets(partial)}
    write_manifest(partial, {**facts, "weights": asdict(weights) if weights else None})
    say("comparing logits with the compressed model in torch")
    agreement = _compare(source, partial)
    limit = check.require_agreement(agreement, accuracy_level=level, head=head)
    if kinds.sparse and options.operator_library is not None:
        shutil.copyfile(options.operator_library, partial / LIBRARY)
        write_manifest(partial, read_json(partial / MANIFEST_FILE))
    add_facts(partial, {"agreement": asdict(agreement), "tolerated_kl": limit})
    return ExportSummary(partial, options, _folder_bytes(partial), weights, agreement, limit)


def _compare(source: Source, folder: Path) -> check.Agreement:
    """Compare the written folder in ONNX Runtime with the model in torch over one short window."""
    from ..calibrate.runner import TorchModel  # torch is loaded for this check alone

    edge, reference = EdgeModel(folder), TorchModel(source.path)
    tokens = edge.encode(check.SAMPLE)[: min(check.WINDOW, edge.context_length)]
    return check.compare_logits(reference.logits(tokens), edge.logits(tokens))


def _provenance(source: Source) -> dict[str, Any]:
    """Return what the folder was made from: the compressed model's manifest without its per-layer part."""
    if source.compressed is None:
        return {"kind": "hf", "architecture": source.architecture}
    kept = {key: value for key, value in source.compressed.manifest.items() if key not in ("layers", "files")}
    return {**kept, "kind": "compressed", "architecture": source.architecture}


def _opsets(folder: Path) -> dict[str, int]:
    return dict(ir.load(folder / graph.GRAPH_FILE).opset_imports)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
