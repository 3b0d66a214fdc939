"""Replace MatMul by SparseMatMulNBits and SwiGLU by SparseGatedMatMulNBits, the operators of this package's library."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import numpy as np
import onnx_ir as ir

from ..sparse_packing import FORMAT_VERSION, SparseLinear, can_join, joined
from .common import add_initializer, array_of, name_of, replace_node, stem_of

DOMAIN = "awp_edge"
OPERATORS = OPERATOR, GATED = "SparseMatMulNBits", "SparseGatedMatMulNBits"
#: Under these a gated node's metadata names the MatMul nodes that it took the place of, in the order of its rows.
GATE, UP = "awp_edge.gate", "awp_edge.up"
Pair = tuple[ir.Node, ir.Node]  # the MatMul nodes of a gate and of what it multiplies
_PARTS = ("masks", "codes", "scales", "zeros", "offsets")


class SparseMatMuls(ir.passes.InPlacePass):
    """Put packed sparse weights in the place of float ones: y = x W^T with W = (code - zero) scale where kept, else 0.

    Two of them whose products meet as silu(gate) * up, stored alike and in whole tiles, become one node: a small
    model spends as long on starting an operator as in it.

    Args:
        packed: node name -> the packed weight; nodes that are not named stay as they are.
        accuracy_level: 0 keeps the activations in float32, 4 quantizes them to int8 per group.
    """

    def __init__(self, packed: Mapping[str, SparseLinear], *, accuracy_level: int) -> None:
        super().__init__()
        self._packed = packed
        self._accuracy_level = accuracy_level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the named nodes; node and weight names keep their stem."""
        targets = [node for node in model.graph if node.name in self._packed]
        for product in [node for node in model.graph if node.op_type == "Mul"]:
            pair = _swiglu(product)
            if pair is not None and self._joins(pair):
                self._join(model.graph, product, pair)
                targets = [node for node in targets if node not in pair]
        for node in targets:
            self._rewrite(model.graph, node)
        if self._packed:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return ir.passes.PassResult(model, modified=bool(self._packed))

    def _joins(self, pair: Pair) -> bool:
        found = [self._packed.get(name_of(node)) for node in pair]
        return found[0] is not None and found[1] is not None and can_join(found[0], found[1])

    def _join(self, graph: ir.Graph, product: ir.Node, pair: Pair) -> None:
        names = [name_of(node) for node in pair]
        packed = joined(*(self._packed[name] for name in names))
        made = self._node(graph, pair[0], packed, operator=GATED)
        made.metadata_props.update({GATE: names[0], UP: names[1]})
        replace_node(graph, product, made)  # what made its inputs is used no more

    def _rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        packed = self._packed[name_of(node)]
        replace_node(graph, node, self._node(graph, node, packed, operator=OPERATOR))

    def _node(self, graph: ir.Graph, node: ir.Node, packed: SparseLinear, *, operator: str) -> ir.Node:
        inputs: list[ir.Value | None] = [node.inputs[0]]
        for part in _PARTS:
            array = getattr(packed, part)
            name = f"{stem_of(node)}.{part}"
            inputs.append(None if array is None else add_initializer(graph, name, array))
        while inputs[-1] is None:
            inputs.pop()
        attributes = {"K": packed.shape[1], "N": packed.shape[0], "block_size": packed.block_size,
                      "kept": packed.kept, "interleaved": int(packed.interleaved),
                      "accuracy_level": self._accuracy_level, "format_version": FORMAT_VERSION}  # fmt: skip
        name = name_of(node).removesuffix("MatMul") + operator
        return ir.node(operator, inputs, attributes, domain=DOMAIN, name=name)


def _swiglu(product: ir.Node) -> Pair | None:
    """Return the nodes G and U of product = (G * sigmoid(G)) * U that nothing else uses, with one input; or None."""
    for activated, up in permutations(product.inputs):
        silu = _only_producer(activated, "Mul")
        for gate, curve in permutations(silu.inputs) if silu is not None else ():
            sigmoid = _only_producer(curve, "Sigmoid")
            if sigmoid is None or sigmoid.inputs[0] is not gate:
                continue
            first, second = _only_producer(gate, "MatMul", uses=2), _only_producer(up, "MatMul")
            if first is not None and second is not None and first.inputs[0] is second.inputs[0]:
                return first, second
    return None


def _only_producer(value: ir.Value | None, kind: str, *, uses: int = 1) -> ir.Node | None:
    """Return the node of a kind that makes a value, if it has so many uses and is no output of the graph."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type != kind:
        return None
    return node if len(value.uses()) == uses and not value.is_graph_output() else None


def sparse_name(name: str) -> str:
    """Return the name of the node that takes a MatMul's place."""
    return name.removesuffix("MatMul") + OPERATOR


def read_sparse(node: ir.Node) -> SparseLinear:
    """Read the weight of a sparse node; that of a gated one has the rows of the gate, then the others.

    Raises:
        ValueError: a weight of another format version.
    """
    arrays = [None if value is None else array_of(value) for value in node.inputs[1:]]
    parts: dict[str, np.ndarray | None] = dict.fromkeys(_PARTS)
    parts.update(zip(_PARTS, arrays, strict=False))
    read = {key: int(attribute.value) for key, attribute in node.attributes.items()}
    if read["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{name_of(node)} has format version {read['format_version']}, not {FORMAT_VERSION}")
    shape = read["N"], read["K"]
    return SparseLinear(**parts, block_size=read["block_size"], kept=read["kept"],
                        interleaved=bool(read["interleaved"]), shape=shape)  # fmt: skip
