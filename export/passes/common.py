"""What the rewrites share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register a constant under a name that must be new."""
    if name in graph.initializers:
        raise ValueError(f"the graph already has an initializer {name}")
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    graph.register_initializer(value)
    return value


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put a node with one output in the place of another, output name, type and shape kept."""
    source, target = old.outputs[0], new.outputs[0]
    target.name, target.type, target.shape = source.name, source.type, source.shape
    graph.insert_before(old, new)
    source.replace_all_uses_with(target, replace_graph_outputs=True)
    graph.remove(old, safe=True)
