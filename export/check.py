"""Read a written folder back: the weights bit for bit, the logits within a stated tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..constraints import interleaved
from ..errors import AwpError
from .graph import GRAPH_FILE, Matches, Rows
from .packing import PackedLinear
from .passes.common import array_of, name_of
from .passes.factor import factor_names
from .passes.pack import block_order_name, packed_name
from .passes.sparse import GATE, GATED, UP, read_sparse, sparse_name
from .sparse_packing import halves

Floats = NDArray[np.float32]
#: Gives a linear's (left, right) factors, None where it has none.
ReadFactors = Callable[[str], tuple[Floats, Floats] | None]

#: Words whose first tokens are the window of the check; any text does, real words are what models are made for.
SAMPLE = (
    "The river runs from the mountains to the sea, past villages, farms and old stone bridges. In spring the snow "
    "melts and the water rises; children count the boats and their parents mend the nets. A traveller who asked "
    "how far it was to the coast was told: two days on foot, one day on horseback, half a day by boat."
)
WINDOW = 64


@dataclass(frozen=True)
class WeightCheck:
    """State what was read back: every compressed weight equal bit for bit, and how many are exactly zero.

    n_bytes: what the graph stores for them, masks and scales included.  sparse_layers: those of the sparse operator.
    """

    layers: int
    weights: int
    zeros: int
    n_bytes: int = 0
    sparse_layers: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Return the stored bits of a weight, zeros counted."""
        return 8 * self.n_bytes / self.weights if self.weights else 0.0


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


def check_weights(
    folder: Path, matches: Matches, dense: Callable[[str], Floats], *, factors: ReadFactors | None = None
) -> WeightCheck:
    """Compare every compressed linear with what the written graph holds.

    Args:
        folder: what was written.
        matches: MatMul node name -> the rows of linears that it carries.
        dense: gives a linear's weight, (d_out, d_in) float32.
        factors: gives those of a low-rank linear, which are compared instead: products need not have the same bits.

    Raises:
        AwpError: a weight that differs, naming its node.
    """
    model = ir.load(folder / GRAPH_FILE)
    nodes = {name_of(node): node for node in model.graph}
    for node in [node for node in model.graph if node.op_type == GATED]:
        nodes.update({sparse_name(node.metadata_props[part]): node for part in (GATE, UP)})
    weights = zeros = n_bytes = 0
    layers: set[str] = set()
    sparse: set[str] = set()
    for name, rows in matches.items():
        n_bytes += _stored_bytes(nodes, name)
        layers.update(part.layer for part in rows)
        sparse.update(part.layer for part in rows if sparse_name(name) in nodes)
        wanted = np.concatenate([dense(part.layer)[part.start : part.stop] for part in rows])
        low_rank = _factors(nodes, name)
        if low_rank is None:
            same = np.array_equal(_written(nodes, name), wanted)
        else:
            same = factors is not None and _same_factors(low_rank, rows, factors)
        if not same:
            raise AwpError(
                f"{name}: the written graph holds other weights than the compressed model; export again"
            )
        weights += wanted.size
        zeros += wanted.size - int(np.count_nonzero(wanted))
    return WeightCheck(len(layers), weights, zeros, n_bytes, len(sparse))


def _written(nodes: dict[str, ir.Node], name: str) -> Floats:
    """Return the weight that the written graph applies in the place of a MatMul, (N, K) float32."""
    packed = nodes.get(packed_name(name))
    if packed is not None:
        return read_packed(packed).dense()
    sparse = nodes.get(sparse_name(name))
    if sparse is not None and sparse.op_type == GATED:
        return halves(read_sparse(sparse))[name == sparse.metadata_props[UP]].dense()
    if sparse is not None:
        return read_sparse(sparse).dense()
    return array_of(nodes[name].inputs[1]).T


def _factors(nodes: dict[str, ir.Node], name: str) -> tuple[Floats, Floats] | None:
    """Return the (left, right) factors that stand in the place of a MatMul, if two thin ones do."""
    right, left = factor_names(name)
    if left not in nodes or right not in nodes:
        return None
    return array_of(nodes[left].inputs[1]).T, array_of(nodes[right].inputs[1]).T


def _same_factors(written: tuple[Floats, Floats], rows: Sequence[Rows], factors: ReadFactors) -> bool:
    """Return whether factors are those of the rows of one linear: all of its right one, and these of its left."""
    part, wanted = rows[0], factors(rows[0].layer)
    if len(rows) > 1 or wanted is None:
        return False
    left, right = written
    return np.array_equal(left, wanted[0][part.start : part.stop]) and np.array_equal(right, wanted[1])


def _stored_bytes(nodes: dict[str, ir.Node], name: str) -> int:
    """Return the bytes of the constants that stand in the place of a MatMul's weight."""
    places = (name, packed_name(name), sparse_name(name), *factor_names(name))
    found = [nodes[place] for place in places if place in nodes]
    if any(node.metadata_props.get(UP) == name for node in found):
        return 0  # counted with the gate
    return sum(array_of(value).nbytes for node in found for value in node.inputs[1:] if value is not None)


def read_packed(node: ir.Node) -> PackedLinear:
    """Read the weight of a MatMulNBits node."""
    arrays = [array_of(value) for value in node.inputs[1:] if value is not None]
    read = {key: int(node.attributes[key].value) for key in ("bits", "block_size", "N", "K")}
    zeros = arrays[2] if len(arrays) > 2 else None
    shape = (read["N"], read["K"])
    turned = _turned(node, shape[1])
    return PackedLinear(arrays[0], arrays[1], zeros, read["bits"], read["block_size"], shape, turned)


def _turned(node: ir.Node, d_in: int) -> bool:
    """Return whether a node gets its inputs in the order of K/64 blocks."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if before is None or before.name != block_order_name(node):
        return False
    if not np.array_equal(array_of(before.inputs[1]), interleaved(d_in)):
        raise AwpError(f"{name_of(before)} does not put the inputs in the order of the blocks; export again")
    return True


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


def require_agreement(agreement: Agreement, *, accuracy_level: int, head: str) -> float:
    """Return the tolerated KL divergence. Raises: AwpError where the logits differ more, naming what may help."""
    limit = tolerated_kl(accuracy_level, head)
    if agreement.kl <= limit:
        return limit
    coarse = {"--accuracy-level 0": accuracy_level != 0, "--lm-head fp32": head != "fp32"}
    untried = " or ".join(option for option, open_yet in coarse.items() if open_yet)
    raise AwpError(
        f"the exported model's logits are off: KL {agreement.kl:.3g} nats a token, at most {limit:.3g} allowed; "
        f"nothing was written: {'try ' + untried if untried else 'use --format hf'}"
    )


def tolerated_kl(accuracy_level: int, head: str) -> float:
    """Return the largest KL divergence to the compressed model that an export may have, nats a token.

    A gross error of an operator costs whole nats; each approximation that was asked for adds its allowance. Measured
    on SmolLM2-135M with 4-bit layers: float32 3e-11, int8 head 4e-4, level 4 with it 7e-3, level 4 with int4 head 0.09.
    """
    return 1e-5 + {"fp32": 0.0, "int8": 1e-2, "int4": 0.5}[head] + (0.25 if accuracy_level == 4 else 0.0)
