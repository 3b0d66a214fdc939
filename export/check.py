"""Read a written folder back: the weights bit for bit, the logits within a stated tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import AwpError
from .graph import GRAPH_FILE, Matches
from .packing import PackedLinear
from .passes.common import array_of, name_of
from .passes.factor import factor_names
from .passes.pack import packed_name

Floats = NDArray[np.float32]

#: Words whose first tokens are the window of the check; any text does, real words are what models are made for.
SAMPLE = (
    "The river runs from the mountains to the sea, past villages, farms and old stone bridges. In spring the snow "
    "melts and the water rises; children count the boats and their parents mend the nets. A traveller who asked "
    "how far it was to the coast was told: two days on foot, one day on horseback, half a day by boat."
)
WINDOW = 64


@dataclass(frozen=True)
class WeightCheck:
    """State what was read back: every compressed weight equal bit for bit, and how many are exactly zero."""

    layers: int
    weights: int
    zeros: int


@dataclass(frozen=True)
class Agreement:
    """Compare two sets of logits over a window of tokens.

    max_difference: largest absolute difference.  kl: mean KL(reference || other), nats a token.
    top1: share of positions with the same most likely token.
    """

    tokens: int
    max_difference: float
    kl: float
    top1: float


def check_weights(folder: Path, matches: Matches, dense: Callable[[str], Floats]) -> WeightCheck:
    """Compare every compressed linear with what the written graph holds.

    Raises:
        AwpError: a weight that differs, naming its node.
    """
    model = ir.load(folder / GRAPH_FILE)
    nodes = {name_of(node): node for node in model.graph}
    weights = zeros = 0
    for name, rows in matches.items():
        written = _written(nodes, name)
        wanted = np.concatenate([dense(part.layer)[part.start : part.stop] for part in rows])
        if written.shape != wanted.shape or not np.array_equal(written, wanted):
            raise AwpError(
                f"{name}: the written graph holds other weights than the compressed model; export again"
            )
        weights += written.size
        zeros += written.size - int(np.count_nonzero(written))
    return WeightCheck(sum(len(rows) for rows in matches.values()), weights, zeros)


def _written(nodes: dict[str, ir.Node], name: str) -> Floats:
    """Return the weight that the written graph applies in the place of a MatMul, (N, K) float32."""
    packed = nodes.get(packed_name(name))
    if packed is not None:
        return read_packed(packed).dense()
    if name in nodes:
        return array_of(nodes[name].inputs[1]).T
    right, left = (array_of(nodes[part].inputs[1]).T for part in factor_names(name))
    return np.ascontiguousarray(left) @ np.ascontiguousarray(right)


def read_packed(node: ir.Node) -> PackedLinear:
    """Read the weight of a MatMulNBits node."""
    arrays = [array_of(value) for value in node.inputs[1:] if value is not None]
    read = {key: int(node.attributes[key].value) for key in ("bits", "block_size", "N", "K")}
    zeros = arrays[2] if len(arrays) > 2 else None
    return PackedLinear(arrays[0], arrays[1], zeros, read["bits"], read["block_size"], (read["N"], read["K"]))


def compare_logits(reference: Iterable[Floats], other: Iterable[Floats]) -> Agreement:
    """Compare logits, both given in chunks of (tokens, vocabulary)."""
    a, b = (np.concatenate(list(chunks)).astype(np.float64) for chunks in (reference, other))
    if a.shape != b.shape:
        raise AwpError(f"the exported model gives logits of shape {b.shape}, the compressed one {a.shape}")
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    kl = float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())
    top1 = float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
    return Agreement(len(a), float(np.abs(a - b).max()), kl, top1)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def tolerated_kl(accuracy_level: int, head: str) -> float:
    """Return the largest KL divergence to the compressed model that an export may have, nats a token.

    A gross error of an operator costs whole nats; each approximation that was asked for adds its allowance. Measured
    on SmolLM2-135M with 4-bit layers: float32 3e-11, int8 head 4e-4, level 4 with it 7e-3, level 4 with int4 head 0.09.
    """
    return 1e-5 + {"fp32": 0.0, "int8": 1e-2, "int4": 0.5}[head] + (0.25 if accuracy_level == 4 else 0.0)
