"""What a run holds in memory, and of activations on disk: estimated before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from .allocate import LEAST
from .artifacts import LinearInfo
from .calibrate.request import CalibrationRequest
from .certificate import MAX_INPUTS
from .errors import AwpError
from .methods import METHODS, CompressSpec
from .models import ModelFolder
from .native import thread_count
from .options import BATCH_TOKENS, GRADIENT_TOKENS, HEAD_TOKENS, SELF, CompressOptions

#: Interpreter, NumPy, torch and transformers at work, in bytes (measured on Linux x86-64, torch 2.13 for CPU).
BASE_BYTES = 600_000_000
#: The same before any block was streamed.
LOADED_BYTES = 450_000_000
#: Matrices the size of the largest layer that a solver holds at once.
SOLVER_MATRICES = 10
#: Matrices the size of C, in float32, that it holds beside C: resident memory measured on 64 x 1536 (awp-plus: 64 x
#: 3072, without its threads' factors), the core's and LAPACK's own included. Checking C takes less than one, low rank
#: its roots; the others by method.
CHECK_SQUARES, ROOT_SQUARES = 1, 10
SQUARES: Mapping[str, int] = MappingProxyType(
    {"awp-plus": 6, "sparsegpt": 8, "gptq": 7, "gptq-actorder": 7, "alps": 12}
)
#: Names of the linears that read what attention made of the block's input.
OUTPUTS = frozenset({"o_proj", "out_proj", "c_proj", "dense", "wo"})


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
    block = largest_block(layers)
    sizes = [math.prod(layer.shape) for layer in block]
    grams = gram_entries(block) + max(layer.shape[1] for layer in block) ** 2
    batch = max(BATCH_TOKENS, seq_len) * (6 * hidden + 3 * max(max(layer.shape) for layer in block))
    dense = 1 - (options.spec.pruned if options.allocate == "uniform" else LEAST)
    squares = solver_squares(options.spec, threads=thread_count(options.threads), dense=dense)
    solver = max(SOLVER_MATRICES * math.prod(x.shape) + math.ceil(squares * x.shape[1] ** 2) for x in block)
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
    cache = 2 * samples * seq_len * n_blocks(folder) * _key_value_size(folder, hidden)
    return max(streaming, LOADED_BYTES + 4 * (numbers + cache))


def certificate_bytes(width: int) -> int:
    """Return what certificates hold beside C: eight matrices in float64, two and a half beyond MAX_INPUTS."""
    return (64 if width <= MAX_INPUTS else 20) * width**2


def solver_squares(spec: CompressSpec, *, threads: int, dense: float) -> float:
    """Return how many matrices the size of C a solver holds beside C.

    dense: the largest share of a row that stays; each thread of awp-plus factors C on one row's support at a time.
    """
    if spec.kind == "low rank":
        return CHECK_SQUARES if not METHODS[spec.method].calibrated else ROOT_SQUARES
    factors = threads * dense**2 if spec.method == "awp-plus" and spec.kind != "quantization" else 0
    # Interleaved, C once more in the order of the blocks.
    return SQUARES.get(spec.method, CHECK_SQUARES) + spec.interleaved + factors


def gram_entries(block: Sequence[LinearInfo]) -> int:
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
    dense = (n_blocks(folder) + 3) * min(samples * seq_len, GRADIENT_TOKENS) if options.needs_gradients else 0
    return token * max(2 * samples * seq_len, dense)


def n_blocks(folder: ModelFolder) -> int:
    """Return how many blocks the configuration names."""
    config = folder.text_config
    return int(config.get("num_hidden_layers") or config.get("n_layer") or 1)


def largest_block(layers: Sequence[LinearInfo]) -> list[LinearInfo]:
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
