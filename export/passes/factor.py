"""Replace MatMul by two thin ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .common import add_initializer, name_of, replace_node, stem_of

Floats = NDArray[np.float32]


class FactorMatMuls(ir.passes.InPlacePass):
    """Compute y = (x R^T) L^T where W = L R has low rank.

    Args:
        factors: node name -> (left (N, r), right (r, K)), float32.
    """

    def __init__(self, factors: Mapping[str, tuple[Floats, Floats]]) -> None:
        super().__init__()
        self._factors = factors

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the named nodes."""
        targets = [node for node in model.graph if node.name in self._factors]
        for node in targets:
            self._rewrite(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(targets))

    def _rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        left, right = self._factors[name_of(node)]
        stem = stem_of(node)
        first, second = factor_names(name_of(node))
        inner = ir.node(
            "MatMul", [node.inputs[0], add_initializer(graph, f"{stem}.right", right.T)], name=first
        )
        inner.outputs[0].name = f"{first}/output_0"
        inner.outputs[0].type = node.outputs[0].type
        graph.insert_before(node, inner)
        outer = ir.node(
            "MatMul", [inner.outputs[0], add_initializer(graph, f"{stem}.left", left.T)], name=second
        )
        replace_node(graph, node, outer)


def factor_names(name: str) -> tuple[str, str]:
    """Return the names of the two nodes that take a MatMul's place, in the order they run."""
    stem = name.removesuffix("MatMul")
    return stem + "right/MatMul", stem + "left/MatMul"
