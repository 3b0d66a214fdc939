"""Read the input embedding from the packed bytes of the output head."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..packing import PackedLinear
from .common import add_initializer, name_of, replace_node
from .pack import DOMAIN


class TieEmbedding(ir.passes.InPlacePass):
    """Replace Gather(Transpose(head weight), ids) by GatherBlockQuantized on the head's codes: one copy on disk.

    Args:
        weight: name of the float initializer that head and embedding share.
        packed: the head, already in the graph under the stem of that name; its blocks divide the hidden size.
    """

    def __init__(self, weight: str, packed: PackedLinear) -> None:
        super().__init__()
        self._weight = weight
        self._packed = packed

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Gather that reads the transposed head; does nothing in an untied graph."""
        shared = model.graph.initializers[self._weight]
        transposes = [node for node, _ in shared.uses() if node.op_type == "Transpose"]
        gathers = [
            node for turned in transposes for node, _ in turned.outputs[0].uses() if node.op_type == "Gather"
        ]
        for gather in gathers:
            self._rewrite(model.graph, gather)
        return ir.passes.PassResult(model, modified=bool(gathers))

    def _rewrite(self, graph: ir.Graph, gather: ir.Node) -> None:
        stem = self._weight.removesuffix(".weight")
        rows = np.array([self._packed.shape[0], self._packed.blocks[0].size], dtype=np.int64)
        shape = add_initializer(graph, f"{stem}.row_bytes", rows)
        flat = ir.node(
            "Reshape", [graph.initializers[f"{stem}.blocks"], shape], name=name_of(gather) + "/Reshape"
        )
        flat.outputs[0].name = f"{gather.name}/Reshape/output_0"
        graph.insert_before(gather, flat)
        inputs = [flat.outputs[0], gather.inputs[1], graph.initializers[f"{stem}.scales"]]
        if self._packed.zeros is not None:
            inputs.append(graph.initializers[f"{stem}.zeros"])
        attributes = {"bits": self._packed.bits, "block_size": self._packed.block_size, "gather_axis": 0,
                      "quantize_axis": 1}  # fmt: skip
        name = name_of(gather) + "BlockQuantized"
        replace_node(
            graph, gather, ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=name)
        )
