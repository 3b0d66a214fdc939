"""Replace MatMul by SparseMatMulNBits, the operator of this package's library."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..sparse_packing import FORMAT_VERSION, SparseLinear
from .common import add_initializer, array_of, name_of, replace_node, stem_of

DOMAIN = "awp_edge"
OPERATOR = "SparseMatMulNBits"
_PARTS = ("masks", "codes", "scales", "zeros", "offsets")


class SparseMatMuls(ir.passes.InPlacePass):
    """Put packed sparse weights in the place of float ones: y = x W^T with W = (code - zero) scale where kept, else 0.

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
        for node in targets:
            self._rewrite(model.graph, node)
        if targets:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return ir.passes.PassResult(model, modified=bool(targets))

    def _rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        packed = self._packed[name_of(node)]
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
        name = sparse_name(name_of(node))
        replace_node(graph, node, ir.node(OPERATOR, inputs, attributes, domain=DOMAIN, name=name))


def sparse_name(name: str) -> str:
    """Return the name of the node that takes a MatMul's place."""
    return name.removesuffix("MatMul") + OPERATOR


def read_sparse(node: ir.Node) -> SparseLinear:
    """Read the weight of a SparseMatMulNBits node.

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
