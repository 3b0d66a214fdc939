"""Replace MatMul by MatMulNBits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...constraints import interleaved
from ..packing import PackedLinear
from .common import add_initializer, array_of, name_of, replace_node, stem_of

DOMAIN = "com.microsoft"


class PackMatMuls(ir.passes.InPlacePass):
    """Put packed weights in the place of float ones: y = x W^T with W = (code - zero) scale.

    Args:
        packed: node name -> the packed weight; nodes that are not named stay as they are.
        accuracy_level: 0 keeps the activations in float32, 4 quantizes them to int8 per block.
    """

    def __init__(self, packed: Mapping[str, PackedLinear], *, accuracy_level: int) -> None:
        super().__init__()
        self._packed = packed
        self._accuracy_level = accuracy_level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the named nodes; node and weight names keep their stem."""
        targets = [node for node in model.graph if node.name in self._packed]
        for node in targets:
            self._rewrite(model.graph, node)
        if targets:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return ir.passes.PassResult(model, modified=bool(targets))

    def _rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        packed = self._packed[name_of(node)]
        stem = stem_of(node)
        source = _in_block_order(graph, node) if packed.interleaved else node.inputs[0]
        inputs = [source, *pack_initializers(graph, stem, packed)]
        attributes = {"K": packed.shape[1], "N": packed.shape[0], "bits": packed.bits,
                      "block_size": packed.block_size, "accuracy_level": self._accuracy_level}  # fmt: skip
        replace_node(
            graph,
            node,
            ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=packed_name(name_of(node))),
        )


def _in_block_order(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Put a Gather before a node that hands it its inputs in the order of K/64 blocks."""
    d_in = int(array_of(node.inputs[1]).shape[0])
    name = f"awp_edge.block_order_{d_in}"
    order = graph.initializers.get(name)
    if order is None:
        order = add_initializer(graph, name, interleaved(d_in).astype(np.int64))
    gather = ir.node("Gather", [node.inputs[0], order], {"axis": -1}, name=block_order_name(node))
    gather.outputs[0].name = f"{gather.name}/output_0"
    graph.insert_before(node, gather)
    return gather.outputs[0]


def block_order_name(node: ir.Node) -> str:
    """Return the name of the Gather before a MatMul or the MatMulNBits in its place."""
    return name_of(node).removesuffix("NBits").removesuffix("MatMul") + "block_order/Gather"


def packed_name(name: str) -> str:
    """Return the name of the node that takes a MatMul's place."""
    return name.removesuffix("MatMul") + "MatMulNBits"


def pack_initializers(graph: ir.Graph, stem: str, packed: PackedLinear) -> list[ir.Value]:
    """Register codes, scales and, where they are stored, zero points; return them in the operator's order."""
    arrays: dict[str, np.ndarray] = {"blocks": packed.blocks, "scales": packed.scales}
    if packed.zeros is not None:
        arrays["zeros"] = packed.zeros
    return [add_initializer(graph, f"{stem}.{part}", array) for part, array in arrays.items()]
