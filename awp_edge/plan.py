"""What a run would do and cost, from config.json and the headers of the weight files: before any hour is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .artifacts import LinearInfo, grid_bits, sparse_bits
from .memory import (
    calibration_size,
    gram_entries,
    hidden_state_bytes,
    largest_block,
    peak_memory_bytes,
    require_memory,
)
from .methods import METHODS, CompressSpec
from .models import ModelFolder
from .options import GRADIENT_TOKENS, CompressOptions, fit_spec

#: Shares of the probe's product rate that whole stages reach.
CALIBRATION_EFFICIENCY, SOLVE_EFFICIENCY = 0.5, 0.6
#: What solving takes, in products W C: the paper's steps; measured on SmolLM2-135M for awp-plus, by kind and effort.
_PRODUCTS = {
    "awp": {"pruning": 200, "quantization": 10, "joint": 110},
    "awp-plus": {"pruning": 30, "quantization": 45, "joint": 90},
}
_EFFORT = {"fast": 0.5, "default": 1.0, "max": 5.0}


@dataclass(frozen=True)
class PlannedLayer:
    """Name a linear that would be compressed; kept: weights a row that stay, None where no row count is fixed."""

    name: str
    block: int
    shape: tuple[int, int]
    kept: int | None
    bits_per_weight: float


@dataclass(frozen=True)
class Plan:
    """Say what a run would do and cost. Bytes and seconds are estimates.

    left_alone: matrices inside the block stack that are not compressed.  weight_bytes: the model's files now.
    compressed_bytes: the compressed folder.  block_bytes: the compressed linears in an export (the head and the
    embeddings come on top).  disk_bytes: what OUT needs while it is built.  statistics_bytes: what the run adds to a
    folder of saved statistics.  fits: None without a memory limit.
    """

    model: str
    architecture: str
    dtype: str
    n_blocks: int
    spec: CompressSpec
    layers: tuple[PlannedLayer, ...]
    left_alone: tuple[str, ...]
    samples: int
    seq_len: int
    bits_per_weight: float
    weight_bytes: int
    compressed_bytes: int
    block_bytes: int
    disk_bytes: int
    statistics_bytes: int
    peak_memory_bytes: int
    fits: bool | None
    calibration_seconds: float
    solve_seconds: float
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def plan(folder: ModelFolder, options: CompressOptions) -> Plan:
    """Plan a run; takes seconds.

    Raises: UsageError where the options do not fit the layers; AwpError for a model without a block stack of linears.
    """
    tree = _module_tree(folder, options)
    blocks, layers = tree.blocks, tree.layers
    spec = fit_spec(options, layers)
    bits = {layer.name: _export_bits(layer.shape, spec) for layer in layers}
    settled = options.allocate == "uniform" or spec.kind == "quantization"
    kept = spec.kept if settled else lambda shape: None
    planned = tuple(
        PlannedLayer(layer.name, i, layer.shape, kept(layer.shape), bits[layer.name] / math.prod(layer.shape))
        for i, block in enumerate(blocks)
        for layer in block
    )
    samples, seq_len = calibration_size(folder, options)
    compressed = _compressed_bytes(folder, layers, spec)
    memory = peak_memory_bytes(folder, layers, options)
    kept_grams = 4 * len(blocks) * gram_entries(largest_block(layers))
    gradients = kept_grams if options.needs_gradients else 0
    saved = 4 * sum(map(gram_entries, tree.whole)) * (2 if options.needs_gradients else 1)
    calibration_s, solve_s = _seconds(layers, spec, options, tokens=samples * seq_len)
    streamed = hidden_state_bytes(folder, options) + gradients
    if options.statistics == "reused":
        calibration_s, streamed = 0.0, 0
    return Plan(
        model=str(folder.path), architecture=folder.architecture, dtype=folder.storage_dtype(), n_blocks=len(blocks),
        spec=spec, layers=planned, left_alone=_left_alone(folder, tree.stack, layers), samples=samples,
        seq_len=seq_len, bits_per_weight=sum(bits.values()) / sum(math.prod(layer.shape) for layer in layers),
        weight_bytes=folder.weight_bytes(), compressed_bytes=compressed, block_bytes=-(-sum(bits.values()) // 8),
        disk_bytes=compressed + streamed,
        statistics_bytes=saved if options.statistics == "saved" else 0, peak_memory_bytes=memory,
        fits=None if options.max_memory_bytes is None else memory <= options.max_memory_bytes,
        calibration_seconds=calibration_s, solve_seconds=solve_s,
        warnings=_warnings(folder, options, spec, tree=tree),
    )  # fmt: skip


def require_fit(folder: ModelFolder, options: CompressOptions) -> tuple[str, ...]:
    """Return `CompressSpec.notes` of a run that nothing refuses; takes seconds.

    Raises: UsageError where the options do not fit the layers; AwpError where the memory limit is too low.
    """
    layers = _module_tree(folder, options).layers
    spec = fit_spec(options, layers)
    require_memory(folder, layers, options)
    return spec.notes(layers)


@dataclass(frozen=True)
class _Tree:
    """Name the block stack, block by block all its linears and those to compress, and whether the model writes text."""

    stack: str
    whole: list[list[LinearInfo]]
    blocks: list[list[LinearInfo]]
    writes: bool

    @property
    def layers(self) -> list[LinearInfo]:
        return [layer for block in self.blocks for layer in block]


def _module_tree(folder: ModelFolder, options: CompressOptions) -> _Tree:
    from .calibrate.modules import Skeleton  # torch, for the module tree alone

    skeleton = Skeleton(folder, skip=options.skip)
    whole = [[LinearInfo(name, name, skeleton.shape(name)) for name in block] for block in skeleton.linears]
    kept = [[layer for layer in block if layer.name not in skeleton.skipped] for block in whole]
    return _Tree(skeleton.stack_name, whole, kept, bool(skeleton.model.can_generate()))


def product_rate(size: int = 768, repeats: int = 6) -> float:
    """Measure the machine's float32 matrix product, floating-point operations per second; takes milliseconds."""
    a = np.full((size, size), 0.5, dtype=np.float32)
    best = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _seconds(
    layers: Sequence[LinearInfo], spec: CompressSpec, options: CompressOptions, *, tokens: int
) -> tuple[float, float]:
    """Estimate calibration (forward passes and Gram products) and solving from the product rate."""
    rate = product_rate()
    passes = 1 if options.calibration.get("order") == "one-shot" else 2
    forward = sum(2 * math.prod(layer.shape) for layer in layers) * tokens * passes
    if options.needs_gradients:  # forward, forward again and back
        forward += sum(6 * math.prod(layer.shape) for layer in layers) * min(tokens, GRADIENT_TOKENS)
    # Half of a symmetric matrix is enough, and about half of the linears share their input with another.
    gram = sum(layer.shape[1] ** 2 for layer in layers) * tokens / 2
    per_step = sum(2 * layer.shape[0] * layer.shape[1] ** 2 for layer in layers)
    if spec.kind == "low rank":
        steps = 10.0
    else:
        steps = float(_PRODUCTS[spec.method][spec.kind]) if spec.method in _PRODUCTS else 1.0
        steps *= _EFFORT[spec.effort] if spec.method == "awp-plus" else 1.0
    return (forward + gram) / (rate * CALIBRATION_EFFICIENCY), per_step * steps / (rate * SOLVE_EFFICIENCY)


def _export_bits(shape: tuple[int, int], spec: CompressSpec) -> int:
    if spec.rank is not None:
        return 32 * spec.rank_for(shape) * sum(shape)
    if spec.bits is None:
        return 32 * math.prod(shape)
    if spec.sparse_export:
        return sparse_bits(shape, kept=spec.support(shape).descriptor()[1][0], group_size=spec.group_size)
    return _input_scale_bits(shape, spec) + grid_bits(shape, spec.bits, shape[1] // spec.group_size)


def _input_scale_bits(shape: tuple[int, int], spec: CompressSpec) -> int:
    return 32 * shape[1] if METHODS[spec.method].scales_inputs else 0


def _compressed_bytes(folder: ModelFolder, layers: Sequence[LinearInfo], spec: CompressSpec) -> int:
    own = 0
    for layer in layers:
        size, n_groups = math.prod(layer.shape), layer.shape[0] * layer.shape[1] // spec.group_size
        if spec.bits is None:
            own += _export_bits(layer.shape, spec) // 8
        else:
            own += (
                size // (2 if spec.bits <= 4 else 1)
                + 3 * n_groups
                + (size // 8 if spec.kind == "joint" else 0)
                + _input_scale_bits(layer.shape, spec) // 8
            )
    width = folder.weight_bytes() / max(1, sum(math.prod(folder.shape(n)) for n in folder.tensor_names()))
    return own + folder.weight_bytes() - int(width * sum(math.prod(layer.shape) for layer in layers))


def _left_alone(folder: ModelFolder, stack: str, layers: Sequence[LinearInfo]) -> tuple[str, ...]:
    """List the matrices of the block stack that are no kept linears."""
    taken = {folder.weight_name(layer.name) for layer in layers}
    inside = f".{stack.rpartition('.')[2]}."
    names = (name for name in folder.tensor_names() if inside in f".{name}" and len(folder.shape(name)) > 1)
    return tuple(name for name in names if name not in taken)


def _warnings(
    folder: ModelFolder, options: CompressOptions, spec: CompressSpec, *, tree: _Tree
) -> tuple[str, ...]:
    notes = [*spec.notes(tree.layers)]
    if folder.config.get("tie_word_embeddings"):
        notes.append("the output head shares the embedding table; both stay as they are")
    if "CausalLM" not in folder.architecture and "LMHead" not in folder.architecture:
        notes.append(
            f"{folder.architecture} is not a causal language model: compress works, export and generate do not"
        )
    if spec.bits is None and spec.rank is None:
        notes.append("zeros in a dense export bring neither size nor speed; add --bits 4")
    if spec.bits == 3:
        notes.append("3-bit codes are stored in 4 bits: the operator has no 3-bit form")
    if options.allocate != "uniform" and spec.kind == "quantization":
        notes.append(
            f"the run chooses every layer's width, {spec.bits} bits on average; bytes are those of {spec.bits} "
            "everywhere, and 3-bit codes take 4"
        )
    if options.writes_text and tree.writes:
        notes.append("self calibration writes its own text first; its time is not part of the estimate")
    elif options.writes_text:
        notes.append(f"{folder.architecture} cannot write its own calibration text: give --calibration FILE")
    return tuple(notes)
