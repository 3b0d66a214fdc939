"""ONNX models of one sparse node, sound or damaged; `python sparse_graphs.py SEED COUNT` is the fuzz run.

The fuzz run is a process of its own, so that a crash is seen as one: every damaged model must give an error status or
run; it prints how many did what.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime
from awp_edge.export.library import require_library
from awp_edge.export.passes.sparse import GATED, OPERATOR
from awp_edge.export.sparse_packing import SparseLinear, pack_sparse
from onnx import TensorProto, helper, numpy_helper
from sparse_layers import random_layer

PARTS = ("masks", "codes", "scales", "zeros", "offsets")


def attributes(packed: SparseLinear, *, accuracy_level: int = 4) -> dict[str, int]:
    return {"K": packed.shape[1], "N": packed.shape[0], "block_size": packed.block_size, "kept": packed.kept,
            "interleaved": int(packed.interleaved), "accuracy_level": accuracy_level, "format_version": 1}  # fmt: skip


def parts(packed: SparseLinear) -> dict[str, np.ndarray]:
    return {name: getattr(packed, name) for name in PARTS if getattr(packed, name) is not None}


def model(
    constants: dict[str, np.ndarray], settings: dict[str, Any], *, outside: str = "", operator: str = OPERATOR
) -> bytes:
    """Return a model; `outside` names a part that is an input of the graph instead of a constant."""
    names = ["a"] + [name if name in constants else "" for name in PARTS]
    while not names[-1]:
        names.pop()
    node = helper.make_node(operator, names, ["y"], domain="awp_edge", **settings)
    given = [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)]
    if outside:
        kind = helper.np_dtype_to_tensor_dtype(constants[outside].dtype)
        given.append(helper.make_tensor_value_info(outside, kind, constants[outside].shape))
    kept = [numpy_helper.from_array(array, name) for name, array in constants.items() if name != outside]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", given, [output], kept)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("awp_edge", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def session(data: bytes | str, *, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(require_library()))
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def damaged(rng: np.random.Generator, packed: SparseLinear) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return constants and attributes with one thing wrong, or now and then nothing."""
    constants, settings = parts(packed), attributes(packed)
    name = str(rng.choice(list(constants)))
    array = constants[name]
    key = str(rng.choice(list(settings)))
    odd = [-1, 0, 1, 2, 63, 64, 65, 127, 128, 192, 2**31, 2**62, 2**63 - 1, -(2**63)]
    kind = rng.integers(0, 8)
    if kind == 0:
        settings[key] = int(rng.choice(odd[:-2])) if rng.random() < 0.8 else odd[int(rng.integers(-2, 0))]
    elif kind == 1:
        settings[key] += int(rng.choice([-1, 1, 16, 64]))
    elif kind == 2:
        del settings[key]
    elif kind == 3:
        constants[name] = array.ravel()[: int(rng.integers(0, array.size))]
    elif kind == 4:
        constants[name] = np.concatenate([array.ravel(), array.ravel()[:17]])
    elif kind == 5:
        noise = array.copy().reshape(-1).view(np.uint8)
        noise[rng.integers(0, noise.size, 3)] ^= rng.integers(1, 256, 3).astype(np.uint8)
        constants[name] = noise.view(array.dtype).reshape(array.shape)
    elif kind == 6:
        constants[name] = array.astype(str(rng.choice(["float32", "int64", "uint8", "float64"])))
    elif name in ("zeros", "offsets"):
        del constants[name]
    return constants, settings


def fuzz(seed: int, count: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    seen = {"refused": 0, "ran": 0}
    for i in range(count):
        operator = GATED if i % 4 == 0 else OPERATOR
        rows = 32 if operator == GATED and rng.random() < 0.8 else int(rng.integers(1, 40))
        layer = random_layer((rows, 64 * int(rng.integers(1, 5))), kept=[32, 16, None][i % 3])
        packed = pack_sparse(layer)
        try:
            made = session(model(*damaged(rng, packed), operator=operator))
            rows = int(rng.integers(0, 6))
            made.run(None, {"a": np.ones((rows, packed.shape[1] + (i % 7 == 0)), dtype=np.float32)})
            seen["ran"] += 1
        except Exception:
            seen["refused"] += 1
    return seen


if __name__ == "__main__":
    sys.stdout.write(f"{fuzz(int(sys.argv[1]), int(sys.argv[2]))}\n")
