"""What a run would do and cost, from config.json and the headers of the weight files: before any hour is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from .artifacts import LinearInfo, grid_bits, sparse_bits
from .calibrate.request import CalibrationRequest
from .certificate import MAX_INPUTS
from .constraints import RowSparse, Sparse
from .errors import AwpError
from .methods import METHODS, CompressSpec
from .models import ModelFolder
from .options import BATCH_TOKENS, GRADIENT_TOKENS, HEAD_TOKENS, SELF, CompressOptions, fit_spec

#: Interpreter, NumPy, torch and transformers at work, in bytes (measured on Linux x86-64, torch 2.13 for CPU).
BASE_BYTES = 600_000_000
#: The same before any block was streamed.
LOADED_BYTES = 450_000_000
#: Matrices the size of the largest layer that a solver holds at once.
SOLVER_MATRICES = 10
#: Matrices the size of C, in float32, that it holds beside C: resident memory measured on 64 x 1536 (awp-plus: 64 x
#: 3072), the core's and LAPACK's own included. Checking C takes two, low rank its roots; the others by method.
CHECK_SQUARES, ROOT_SQUARES = 2, 10
SQUARES: Mapping[str, int] = MappingProxyType(
    {"awp-plus": 6, "sparsegpt": 8, "gptq": 7, "gptq-actorder": 7, "alps": 12}
)
#: Names of the linears that read what attention made of the block's input.
OUTPUTS = frozenset({"o_proj", "out_proj", "c_proj", "dense", "wo"})
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
    kept = partial(_kept, spec=spec) if settled else lambda shape: None
    planned = tuple(
        PlannedLayer(layer.name, i, layer.shape, kept(layer.shape), bits[layer.name] / math.prod(layer.shape))
        for i, block in enumerate(blocks)
        for layer in block
    )
    samples, seq_len = calibration_size(folder, options)
    compressed = _compressed_bytes(folder, layers, spec)
    memory = peak_memory_bytes(folder, layers, options)
    kept_grams = 4 * len(blocks) * _gram_entries(_largest_block(layers))
    gradients = kept_grams if options.needs_gradients else 0
    saved = 4 * sum(map(_gram_entries, tree.whole)) * (2 if options.needs_gradients else 1)
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


def require_memory(folder: ModelFolder, layers: Sequence[LinearInfo], options: CompressOptions) -> None:
    """Raise AwpError where the estimated peak exceeds the limit that the options set."""
    limit = options.max_memory_bytes
    if limit is None:
        return
    needed = peak_memory_bytes(folder, layers, options)
    if needed > limit:
        advice = ", or use a calibration file instead of self" if options.writes_text else ""
        raise AwpError(
            f"the run needs about {needed / 1e9:.2f} GB of memory and --max-memory allows {limit / 1e9:.2f} GB; "
            f"raise the limit{advice}"
        )


def calibration_size(folder: ModelFolder, options: CompressOptions) -> tuple[int, int]:
    """Return samples and tokens a sample: as asked, else the defaults, capped by the model's context.

    Raises: UsageError where more tokens are asked for than the model can take.
    """
    asked = options.calibration
    request = CalibrationRequest(
        str(asked.get("source", SELF)), samples=asked.get("samples"), seq_len=asked.get("seq_len")
    ).sized(folder)
    assert request.samples is not None and request.seq_len is not None
    return request.samples, request.seq_len


def peak_memory_bytes(folder: ModelFolder, layers: Sequence[LinearInfo], options: CompressOptions) -> int:
    """Estimate the peak resident memory: the largest of the stages, over what the libraries need.

    Embedding: the table in float32.  Calibration: a block's weights, a batch's activations, Gram matrices in float64
    and float32.  Solving: the block dense and compressed, its Gram matrices, the solver's matrices of the largest
    layer.  Certificates: `certificate_bytes`.  Text from the model itself: every weight and the keys and values of all
    samples, in float32 (an upper bound: half of it where the processor multiplies bfloat16). Reused statistics need
    neither calibration nor text.
    """
    samples, seq_len = calibration_size(folder, options)
    hidden = _hidden_size(folder)
    block = _largest_block(layers)
    sizes = [math.prod(layer.shape) for layer in block]
    grams = _gram_entries(block) + max(layer.shape[1] for layer in block) ** 2
    batch = max(BATCH_TOKENS, seq_len) * (6 * hidden + 3 * max(max(layer.shape) for layer in block))
    squares = solver_squares(options.spec)
    solver = max(SOLVER_MATRICES * math.prod(x.shape) + squares * x.shape[1] ** 2 for x in block)
    width = max(x.shape[1] for x in block)
    certificate = certificate_bytes(width) if options.certificate else 0
    stages = [
        4 * max((math.prod(folder.shape(n)) for n in folder.tensor_names()), default=0),
        4 * (2 * sum(sizes) + solver + grams),
        4 * (2 * sum(sizes) + grams) + certificate,
    ]
    if options.statistics != "reused":
        stages.append(4 * (sum(sizes) + batch) + 12 * grams)
    if options.needs_gradients:  # what a block keeps for its way back; the head and some tokens' logits
        head = max((math.prod(folder.shape(n)) for n in folder.tensor_names()), default=0)
        stages += [
            4 * (sum(sizes) + 3 * batch) + 12 * grams,
            4 * (2 * head + 3 * HEAD_TOKENS * head // max(1, hidden)),
        ]
    streaming = BASE_BYTES + max(stages)
    if not options.writes_text:
        return streaming
    numbers = sum(math.prod(folder.shape(n)) for n in folder.tensor_names())
    cache = 2 * samples * seq_len * _n_blocks(folder) * _key_value_size(folder, hidden)
    return max(streaming, LOADED_BYTES + 4 * (numbers + cache))


def certificate_bytes(width: int) -> int:
    """Return what certificates hold beside C: eight matrices in float64, two and a half beyond MAX_INPUTS."""
    return (64 if width <= MAX_INPUTS else 20) * width**2


def solver_squares(spec: CompressSpec) -> int:
    """Return how many matrices the size of C a solver holds beside C."""
    if spec.kind == "low rank":
        return CHECK_SQUARES if not METHODS[spec.method].calibrated else ROOT_SQUARES
    # Interleaved, C once more in the order of the blocks.
    return SQUARES.get(spec.method, CHECK_SQUARES) + spec.interleaved


def _gram_entries(block: Sequence[LinearInfo]) -> int:
    """Estimate the entries of a block's Gram matrices.

    Linears of one parent and width share their input, but for the one that puts attention's heads together.
    """
    names = [(*layer.name.rpartition(".")[::2], layer.shape[1]) for layer in block]
    return sum(
        d_in * d_in for _, _, d_in in {(parent, leaf in OUTPUTS, d_in) for parent, leaf, d_in in names}
    )


def hidden_state_bytes(folder: ModelFolder, options: CompressOptions) -> int:
    """Return the bytes of the two hidden-state files, float32; before them those of all blocks for loss gradients."""
    samples, seq_len = calibration_size(folder, options)
    token = 4 * _hidden_size(folder)
    dense = (
        (_n_blocks(folder) + 3) * min(samples * seq_len, GRADIENT_TOKENS) if options.needs_gradients else 0
    )
    return token * max(2 * samples * seq_len, dense)


def _n_blocks(folder: ModelFolder) -> int:
    config = folder.text_config
    return int(config.get("num_hidden_layers") or config.get("n_layer") or 1)


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


def _kept(shape: tuple[int, int], spec: CompressSpec) -> int | None:
    if spec.rank is not None:
        return None
    constraint = spec.constraint(shape)
    support = constraint.support if isinstance(constraint, Sparse) else None
    if isinstance(support, RowSparse):
        return support.counts[0]
    descriptor = support.descriptor() if support is not None else ("dense", (0,), 0, 0)
    return shape[1] if descriptor[0] == "dense" else shape[1] * descriptor[1][0] // descriptor[2]


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


def _largest_block(layers: Sequence[LinearInfo]) -> list[LinearInfo]:
    """Return the layers of the block with most weights; a block is what its linears' names share up to a number."""
    blocks: dict[str, list[LinearInfo]] = {}
    for layer in layers:
        parts = layer.name.split(".")
        last = max((i for i, part in enumerate(parts) if part.isdigit()), default=0)
        blocks.setdefault(".".join(parts[: last + 1]), []).append(layer)
    return max(blocks.values(), key=lambda block: sum(math.prod(layer.shape) for layer in block))


def _hidden_size(folder: ModelFolder) -> int:
    config = folder.text_config
    return int(config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or 0)


def _key_value_size(folder: ModelFolder, hidden: int) -> int:
    config = folder.text_config
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    kept = int(config.get("num_key_value_heads") or heads)
    return kept * int(config.get("head_dim") or hidden // heads)
