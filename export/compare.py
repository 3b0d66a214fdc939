"""Measure an edge folder beside the same model with dense INT4 and float32 layers and the machine's limits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from ..errors import AwpError, UsageError
from ..storage import writing
from .graph import GRAPH_FILE
from .library import library_path
from .measure import measure, require_sizes
from .passes.sparse import OPERATORS, read_sparse
from .runtime import EdgeModel
from .sparse_packing import SparseLinear
from .variants import VARIANTS, read_bytes, sparse_weights, weight_nodes, write_variant

Progress = Callable[[str], None]
_RATES = (
    "decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_s", "peak_memory_bytes", "bytes",
)  # fmt: skip


class _Kind(NamedTuple):
    """Say how a layer is stored and multiplied, as `roofline.measure` takes it."""

    kept: int
    group: int
    accuracy_level: int


def compare(
    model: EdgeModel, *, prompt_tokens: int, tokens: int, repeats: int, say: Progress
) -> dict[str, Any]:
    """Return what `measure` says of the folder and its variants, in turns, with ratios and limits.

    Returns:
        the folder's own measurements and, under "against", those of "dense int4" and "fp32" with how many times slower
        they decode and prefill; under "limits" see `limits`.

    Raises:
        AwpError: as `measure`, or a folder without quantized layers.
    """
    graph = ir.load(model.folder / GRAPH_FILE)
    if not weight_nodes(graph):
        raise AwpError(
            f"{model.folder} has no quantized layers to compare; give a folder exported from --bits 4"
        )
    sizes = {"prompt_tokens": prompt_tokens, "tokens": tokens, "repeats": repeats}
    require_sizes(model, **sizes)
    _require_kernels()
    with tempfile.TemporaryDirectory(dir=model.folder.resolve().parent) as scratch:
        models = [model]
        for i, kind in enumerate(VARIANTS):
            say(f"writing it with {kind} layers")
            write_variant(model.folder, Path(scratch) / str(i), kind)
            models.append(EdgeModel(Path(scratch) / str(i), threads=model.threads))
        own, *others = measure(models, **sizes, say=say)
    found = {**own, "weights": "sparse" if sparse_weights(graph) else "dense"}
    against = {}
    for kind, other in zip(VARIANTS, others, strict=True):
        against[kind] = {key: other[key] for key in _RATES}
        for what in ("decode", "prefill"):
            rate = f"{what}_tokens_per_second"
            against[kind][f"{what}_speedup"] = found[rate] / other[rate]
    say("measuring the limits of the machine")
    return {**found, "against": against, "limits": limits(graph, threads=model.threads)}


def _require_kernels() -> None:
    """Raise where the limits could not be measured, before minutes are measured for them."""
    if library_path() is None:
        return
    from . import library

    if library.kernels() is None:
        isa = os.environ.get("AWP_ISA", "")
        raise AwpError(f"AWP_ISA={isa} names an instruction set that this machine does not run")


def limits(graph: ir.Model, *, threads: int) -> dict[str, Any] | None:
    """Return the machine's three limits as tokens a second of this model, see `roofline`; None without the library.

    memory: every constant that a token needs, in the faster form, read once.  decode: its sparse weights expanded
    and multiplied, from the cache.  matrix: the same for many tokens at once, a bound of prefill. Every way in which
    layers are stored is measured.
    """
    if library_path() is None:
        return None
    from . import roofline

    kinds: dict[_Kind, list[SparseLinear]] = {}
    for node in [node for node in graph.graph if node.op_type in OPERATORS]:
        packed = read_sparse(node)
        level = int(node.attributes["accuracy_level"].value)
        kinds.setdefault(_Kind(packed.kept, packed.block_size, level), []).append(packed)
    read, n_bytes = roofline.read_rate(threads), read_bytes(graph)
    parts = []
    for kind, layers in kinds.items():
        measured = roofline.measure(threads=threads, **kind._asdict(), read=read)
        parts.append((measured, sum(packed.shape[0] * packed.shape[1] for packed in layers)))
        if measured["form"] == "expanded":
            n_bytes += sum(roofline.read_besides(p, accuracy_level=kind.accuracy_level) for p in layers)
    found = roofline.combined(parts) if parts else roofline.measure(threads=threads, read=read)
    found["memory_tokens_per_second"] = 1e9 * found["read_gb_s"] / n_bytes
    weights = sparse_weights(graph)
    if weights:
        found["decode_tokens_per_second"] = 1e9 * found["decode_gweights"] / weights
        found["matrix_tokens_per_second"] = 1e9 * found["matrix_gweights"] / weights
    return found


def require_plot(path: Path) -> None:
    """Raise where a plot could not be written, before minutes are measured for it.

    Raises:
        UsageError: a suffix that matplotlib does not write.
        AwpError: matplotlib is not installed, or there is no folder to write into.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise AwpError("a plot needs matplotlib; pip install 'awp-edge[bench]'") from None
    if path.suffix.lower().lstrip(".") not in FigureCanvasBase.get_supported_filetypes():
        raise UsageError(f"--plot {path} is not of a kind that can be drawn: give a .png or .svg file")
    if not path.absolute().parent.is_dir():
        raise AwpError(f"--plot {path}: there is no folder {path.parent}; make it first")


def plot(measured: dict[str, Any], path: Path) -> None:
    """Draw decode and prefill of the three ways of storage, the limits as lines.

    Raises:
        AwpError: as `require_plot`, or a file that cannot be written.
    """
    require_plot(path)
    from matplotlib.figure import Figure

    rows = {measured["weights"]: measured, **measured["against"]}
    figure = Figure(figsize=(9, 4), layout="constrained")
    bounds = measured["limits"] or {}
    for axes, what, shown in zip(
        figure.subplots(1, 2), ("decode", "prefill"), (("memory", "decode"), ("matrix",)), strict=True
    ):
        axes.bar(list(rows), [row[f"{what}_tokens_per_second"] for row in rows.values()], color="#4477aa")
        axes.set_title(what)
        axes.set_ylabel("tokens/s")
        for name, style in zip(shown, ("--", ":"), strict=False):
            limit = bounds.get(f"{name}_tokens_per_second")
            if limit is not None:
                axes.axhline(limit, color="#cc6677", linestyle=style, label=f"limit: {name}")
        if axes.lines:
            axes.legend()
    with writing(path):
        figure.savefig(path)
