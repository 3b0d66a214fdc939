"""The same model with its layers stored another way: what a benchmark compares a sparse folder with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..constraints import IntGrid
from ..errors import AwpError
from ..storage import read_json, write_json
from .check import read_packed
from .graph import DATA_FILE, GRAPH_FILE, block_of
from .library import LIBRARY
from .manifest import CONFIG_FILE, MANIFEST_FILE, read_manifest, write_manifest
from .packing import PackedLinear, pack_linear
from .passes.common import add_initializer, name_of, replace_node
from .passes.pack import DOMAIN, pack_initializers
from .passes.sparse import GATED, OPERATOR, OPERATORS, read_sparse

#: Kinds of storage by the names that results carry.
VARIANTS = ("dense int4", "fp32")
Floats = NDArray[np.float32]
Make = Callable[..., ir.Node]  # (graph, x, weight, name=...)


def weight_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the quantized nodes of the decoder blocks, sparse or dense, in graph order."""
    kinds = (*OPERATORS, "MatMulNBits")
    return [node for node in model.graph if node.op_type in kinds and block_of(name_of(node)) is not None]


def sparse_weights(model: ir.Model) -> int:
    """Return the number of weights that sparse nodes stand for, zeros counted."""
    nodes = [node for node in model.graph if node.op_type in OPERATORS]
    return sum(int(node.attributes["K"].value) * int(node.attributes["N"].value) for node in nodes)


def write_variant(folder: Path, out: Path, kind: str) -> None:
    """Write an edge folder whose decoder blocks are stored as `kind`; head, embedding and the rest stay as they are.

    "dense int4" rounds to nearest on the largest block of 128, 64, 32 or 16 that divides, with accuracy level 4: equal
    in speed to any other dense INT4 model, not in quality. "fp32" has the weights as they are. Gated nodes become what
    the model builder writes: two products, and an activation that ONNX Runtime fuses.

    Raises:
        AwpError: a layer that no such block divides.
    """
    model = ir.load(folder / GRAPH_FILE)
    make = _float_node if kind == "fp32" else _dense_node
    for node in weight_nodes(model):
        if node.op_type == GATED:
            _replace_gated(model.graph, node, make)
            continue
        x, weight = _input_and_weight(node)
        replace_node(model.graph, node, make(model.graph, x, weight, name=name_of(node)))
    out.mkdir(parents=True)
    skipped = {GRAPH_FILE, DATA_FILE, MANIFEST_FILE, LIBRARY}
    for path in folder.iterdir():
        if path.is_file() and path.name not in skipped:
            shutil.copyfile(path, out / path.name)
    config = read_json(out / CONFIG_FILE)
    config["model"]["decoder"]["session_options"].pop("custom_ops_library", None)
    write_json(out / CONFIG_FILE, config)
    model.graph.opset_imports.pop("awp_edge", None)
    RemoveUnusedNodesPass()(model)
    ir.save(model, out / GRAPH_FILE, external_data=DATA_FILE, size_threshold_bytes=256)
    write_manifest(out, {"source": read_manifest(folder).get("source"), "variant": kind})


def _input_and_weight(node: ir.Node) -> tuple[ir.Value | None, Floats]:
    """Return what a node multiplies, both with inputs in the model's order."""
    if node.op_type == OPERATOR:
        return node.inputs[0], read_sparse(node).dense()
    packed, x = read_packed(node), node.inputs[0]
    reorder = x.producer() if x is not None and packed.interleaved else None
    return (x if reorder is None else reorder.inputs[0]), packed.dense()


def _replace_gated(graph: ir.Graph, node: ir.Node, make: Make) -> None:
    stem = name_of(node)
    gate, up = (
        make(graph, node.inputs[0], half, name=f"{stem}/{part}")
        for half, part in zip(np.split(read_sparse(node).dense(), 2), ("gate", "up"), strict=True)
    )
    sigmoid = ir.node("Sigmoid", [gate.outputs[0]], name=f"{stem}/Sigmoid")
    silu = ir.node("Mul", [gate.outputs[0], sigmoid.outputs[0]], name=f"{stem}/SiLU")
    product = ir.node("Mul", [silu.outputs[0], up.outputs[0]], name=f"{stem}/Mul")
    for made in (gate, up, sigmoid, silu):
        made.outputs[0].name = f"{made.name}/output_0"
    graph.insert_before(node, [gate, up, sigmoid, silu])
    replace_node(graph, node, product)


def _dense_node(graph: ir.Graph, x: ir.Value | None, weight: Floats, *, name: str) -> ir.Node:
    packed = _rounded(weight, name)
    inputs = [x, *pack_initializers(graph, f"{name}.variant", packed)]
    attributes = {"K": packed.shape[1], "N": packed.shape[0], "bits": 4, "block_size": packed.block_size,
                  "accuracy_level": 4}  # fmt: skip
    return ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=f"{name}/dense")


def _rounded(weight: Floats, name: str) -> PackedLinear:
    group = next((size for size in (128, 64, 32, 16) if weight.shape[1] % size == 0), None)
    if group is None:
        raise AwpError(
            f"{name} has {weight.shape[1]} inputs, which no block of 16 or more divides: leave out --compare"
        )
    grid = IntGrid(4, group, half_scales=True).fit(weight)
    return pack_linear(grid.encode(weight), grid.scales, grid.zeros, bits=4, block_size=group)


def _float_node(graph: ir.Graph, x: ir.Value | None, weight: Floats, *, name: str) -> ir.Node:
    value = add_initializer(graph, f"{name}.variant", np.ascontiguousarray(weight.T))
    return ir.node("MatMul", [x, value], name=f"{name}/float")


def read_bytes(model: ir.Model) -> int:
    """Return the bytes of constants that one token reads: those of every product, a shared table once."""
    values = {id(v): v for node in model.graph if node.op_type in (*OPERATORS, "MatMulNBits", "MatMul")
              for v in node.inputs[1:] if v is not None and v.const_value is not None}  # fmt: skip
    return sum(v.const_value.nbytes for v in values.values() if v.const_value is not None)
