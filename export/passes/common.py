"""What the rewrites share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def name_of(item: ir.Node | ir.Value | None) -> str:
    """Return a name that a loaded graph always has."""
    if item is None or not item.name:
        raise ValueError("the graph has a node or a value without a name")
    return item.name


def array_of(value: ir.Value | None) -> np.ndarray:
    """Return a constant's numbers; those in an external file are mapped, not read."""
    if value is None or value.const_value is None:
        raise ValueError(f"{value and value.name} is not a constant of the graph")
    return value.const_value.numpy()


def stem_of(node: ir.Node) -> str:
    """Return the name of a MatMul's weight without its last part."""
    return name_of(node.inputs[1]).removesuffix(".weight")


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
