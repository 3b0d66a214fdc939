"""Sparse INT4 against ONNX Runtime's own dense INT4, operator by operator: `python bench/sparse.py [--quick]`.

`--shape 4096x4096` measures one shape and leaves what the results say of the others. `--kernels build/bench_sparse`
(CMake's AWP_BUILD_BENCH) measures the bare kernels instead, beside a dense INT4 kernel of the same make, and `--edge
FOLDER` a sparse edge folder beside the same model with dense INT4 layers, in onnxruntime-genai.

Matrix-vector products are streamed over at least 1 GB of copies, so that caches hold none of them, or repeated on one
copy ("resident"); prefill is 512 rows. Both sides run in ONNX Runtime with the same threads. Beside them: the limits of
this machine that a sparse product cannot exceed, reading memory and expanding weights that lie in the cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from awp_edge.export import library, roofline
from awp_edge.export.compare import compare as compare_edge
from awp_edge.export.graph import GRAPH_FILE
from awp_edge.export.packing import PackedLinear
from awp_edge.export.passes.common import array_of
from awp_edge.export.runtime import EdgeModel
from awp_edge.export.sparse_packing import SparseLinear
from awp_edge.export.variants import weight_nodes, write_variant
from common import RESULTS, machine, write
from onnx import TensorProto, helper

SHAPES = ((576, 1536), (1536, 576), (4096, 4096), (4096, 11008))
PREFILL = 512


@dataclass(frozen=True)
class Operator:
    """Name an operator and hold one copy of its constants."""

    name: str
    kind: str
    constants: Mapping[str, np.ndarray]
    attributes: Mapping[str, int]

    @property
    def n_bytes(self) -> int:
        """Return the bytes a product reads."""
        return sum(array.nbytes for array in self.constants.values())


def sparse(shape: tuple[int, int], *, kept: int, group: int) -> Operator:
    """Return the sparse operator on random weights, kept = -1: half of every row wherever it falls."""
    packed = roofline.random_sparse(shape, kept=kept, group=group)
    name = f"{kept}/64" if kept >= 0 else "row 50%"
    return Operator(f"{name}, group {group}", "SparseMatMulNBits", _parts(packed), {
        "K": shape[1], "N": shape[0], "block_size": group, "kept": kept, "interleaved": int(packed.interleaved),
        "accuracy_level": 4, "format_version": 1})  # fmt: skip


def _parts(packed: SparseLinear) -> dict[str, np.ndarray]:
    names = ("masks", "codes", "scales", "zeros", "offsets")
    return {name: part for name in names if (part := getattr(packed, name)) is not None}


def dense(shape: tuple[int, int], *, group: int) -> Operator:
    """Return MatMulNBits with zero points on random codes."""
    rng = np.random.default_rng(0)
    n_blocks = shape[1] // group
    packed = PackedLinear(
        rng.integers(0, 256, (shape[0], n_blocks, group // 2), dtype=np.uint8),
        rng.uniform(0.001, 0.1, (shape[0], n_blocks)).astype(np.float32),
        rng.integers(0, 256, (shape[0], -(-n_blocks // 2)), dtype=np.uint8), 4, group, shape,
    )  # fmt: skip
    constants = {"blocks": packed.blocks, "scales": packed.scales, "zeros": packed.zeros}
    return Operator(f"dense, block {group}", "MatMulNBits", constants,
                    {"K": shape[1], "N": shape[0], "bits": 4, "block_size": group, "accuracy_level": 4})  # fmt: skip


def session(operator: Operator, folder: Path, *, copies: int, nodes: int, threads: int) -> Any:
    """Return a session of `nodes` products of one input with `copies` weights, each copy in memory of its own."""
    tensors, offset = [], 0
    with (folder / "weights").open("wb") as file:
        for copy in range(copies):
            for name, array in operator.constants.items():
                offset += file.write(bytes(-offset % 4096))
                tensors.append(_external(f"{name}{copy}", array, offset))
                offset += file.write(np.ascontiguousarray(array).data)
    domain = "awp_edge" if operator.kind == "SparseMatMulNBits" else "com.microsoft"
    made = []
    for i in range(nodes):
        names = [f"{name}{i % copies}" for name in operator.constants]
        if operator.kind == "SparseMatMulNBits" and "zeros" not in operator.constants:
            names.insert(3, "")
        made.append(
            helper.make_node(operator.kind, ["a", *names], [f"y{i}"], domain=domain, **operator.attributes)
        )
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(nodes)]
    rows = [helper.make_tensor_value_info("a", TensorProto.FLOAT, [None, operator.attributes["K"]])]
    graph = helper.make_graph(made, "g", rows, outputs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library.require_library()))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _external(name: str, array: np.ndarray, offset: int) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights"), ("offset", str(offset)), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def median_seconds(call: Callable[[], object], *, runs: int) -> float:
    """Return the median time of several calls after one that is not timed."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@dataclass(frozen=True)
class Settings:
    """Say how to measure: threads, runs of which the median is taken, bytes of copies to stream."""

    threads: int
    runs: int
    stream_bytes: int


def measure(operator: Operator, settings: Settings) -> dict[str, Any]:
    """Return seconds of one product, streamed, resident and for 512 rows."""
    shape = operator.attributes["N"], operator.attributes["K"]
    one = np.random.default_rng(1).standard_normal((1, shape[1])).astype(np.float32)
    many = np.random.default_rng(1).standard_normal((PREFILL, shape[1])).astype(np.float32)
    copies = max(2, -(-settings.stream_bytes // operator.n_bytes))
    row: dict[str, Any] = {"operator": operator.name, "shape": list(shape), "bytes": operator.n_bytes}
    with tempfile.TemporaryDirectory() as scratch:
        made = session(operator, Path(scratch), copies=copies, nodes=copies, threads=settings.threads)
        row["streamed_us"] = (
            1e6 * median_seconds(lambda: made.run(None, {"a": one}), runs=settings.runs) / copies
        )
        del made
        repeats = 16
        made = session(operator, Path(scratch), copies=1, nodes=repeats, threads=settings.threads)
        row["resident_us"] = (
            1e6 * median_seconds(lambda: made.run(None, {"a": one}), runs=settings.runs) / repeats
        )
        del made
        made = session(operator, Path(scratch), copies=1, nodes=1, threads=settings.threads)
        row["prefill_us"] = 1e6 * median_seconds(lambda: made.run(None, {"a": many}), runs=settings.runs)
    row["streamed_gweights"] = 1e-3 * shape[0] * shape[1] / row["streamed_us"]
    row["streamed_gb_s"] = 1e-3 * operator.n_bytes / row["streamed_us"]
    row["resident_gweights"] = 1e-3 * shape[0] * shape[1] / row["resident_us"]
    return row


def operators(shape: tuple[int, int], *, quick: bool) -> list[Operator]:
    """Return what is compared for one shape."""
    groups = [group for group in (128, 64) if shape[1] % group == 0]
    made = [dense(shape, group=group) for group in (*groups, 32)]
    kept = (32,) if quick else (32, 24, 16, -1)
    return made + [sparse(shape, kept=k, group=groups[0]) for k in kept]


def compare(rows: list[dict[str, Any]]) -> None:
    """Add to every sparse row how much faster it is than the best dense one."""
    rivals = [row for row in rows if row["operator"].startswith("dense")]
    for row in rows:
        for what in ("streamed", "resident", "prefill"):
            row[f"{what}_speedup"] = min(r[f"{what}_us"] for r in rivals) / row[f"{what}_us"]


def describe(row: Mapping[str, Any]) -> str:
    """Return one line about a measured operator."""
    rate = f"{row['streamed_gweights']:.1f} Gweight/s, {row['streamed_gb_s']:.1f} GB/s"
    return (
        f"{'x'.join(map(str, row['shape']))} {row['operator']}: streamed {row['streamed_us']:.1f} us ({rate}), "
        f"resident {row['resident_us']:.1f} us, prefill {row['prefill_us'] / 1e3:.1f} ms"
    )


def kernel_rows(program: Path, *, threads: int) -> list[dict[str, Any]]:
    """Return what the C++ benchmark says of the kernels, from the caches and from memory, and what binds each."""
    lines = subprocess.run([program, "", str(threads)], check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in lines.splitlines()]
    cached = {row["kept"]: row["sparse_gweights"] for row in rows if row["from"] == "L1"}
    for row in rows:
        row["memory_gweights"] = row["read_gb_s"] / row["sparse_bytes"]
        row["bound"] = "memory" if row["memory_gweights"] < cached[row["kept"]] else "decode"
    return rows


def edge_rows(folder: Path, *, threads: int, runs: int) -> dict[str, Any]:
    """Return what `awp-edge bench --compare` says, and the bytes of the decoder blocks both ways."""
    sizes = {"prompt_tokens": 128, "tokens": 128, "repeats": runs}
    found = compare_edge(EdgeModel(folder, threads=threads), **sizes, say=print)
    with tempfile.TemporaryDirectory() as scratch:
        write_variant(folder, Path(scratch) / "dense", "dense int4")
        sparse_bytes, dense_bytes = block_bytes(folder), block_bytes(Path(scratch) / "dense")
    return {**found, "block_bytes": {"sparse": sparse_bytes, "dense int4": dense_bytes,
                                     "ratio": sparse_bytes / dense_bytes}}  # fmt: skip


def block_bytes(folder: Path) -> int:
    """Return the bytes of the decoder blocks' quantized weights with scales, masks and zero points."""
    nodes = weight_nodes(ir.load(folder / GRAPH_FILE))
    return sum(array_of(value).nbytes for node in nodes for value in node.inputs[1:] if value is not None)


def results_name() -> str:
    """Return the name of the results of the kernels that run here."""
    return f"sparse_{library.kernels()}"


def saved(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the results file holds with some of it replaced; nothing of it that another machine measured."""
    path, processor = RESULTS / f"{results_name()}.json", machine()["processor"]
    earlier = json.loads(path.read_text()) if path.is_file() else {"machine": {}, "results": {}}
    same = earlier["machine"].get("processor") == processor
    return {**(earlier["results"] if same else {}), **results}


def main() -> None:
    """Measure, print a table and write bench/results/sparse_KERNELS.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--shape", help="rows x inputs, one of those above; all by default")
    parser.add_argument("--kernels", type=Path, help="a built bench_sparse: measure the kernels alone")
    parser.add_argument(
        "--quick", action="store_true", help="fewer operators, 0.25 GB of copies, nothing written"
    )
    parser.add_argument("--edge", type=Path, help="a sparse edge folder: measure it end to end")
    options = parser.parse_args()
    if options.edge:
        found = edge_rows(options.edge, threads=options.threads, runs=options.runs)
        print(found, write(results_name(), saved({"edge": found})))
        return
    if options.kernels:
        print(
            write(
                results_name(), saved({"kernel_rows": kernel_rows(options.kernels, threads=options.threads)})
            )
        )
        return
    settings = Settings(options.threads, options.runs, 2**28 if options.quick else 2**30)
    chosen = [shape for shape in SHAPES if options.shape in (None, "x".join(map(str, shape)))]
    measured = [row for shape in chosen for row in measured_shape(shape, settings, quick=options.quick)]
    limits = roofline.measure(threads=options.threads)
    print(limits)
    if not options.quick:
        kept = [row for row in saved({}).get("rows", []) if tuple(row["shape"]) not in chosen]
        rows = sorted(kept + measured, key=lambda row: SHAPES.index(tuple(row["shape"])))
        found = {
            "threads": options.threads,
            "runs": options.runs,
            "kernels": library.kernels(),
            "limits": limits,
        }
        print(write(results_name(), saved({**found, "rows": rows})))


def measured_shape(shape: tuple[int, int], settings: Settings, *, quick: bool) -> list[dict[str, Any]]:
    """Measure and print every operator of one shape."""
    rows = []
    for operator in operators(shape, quick=quick):
        rows.append(measure(operator, settings))
        print(describe(rows[-1]), flush=True)
    compare(rows)
    for row in rows:
        print(f"  {row['operator']}: streamed {row['streamed_speedup']:.2f}x, resident "
              f"{row['resident_speedup']:.2f}x, prefill {row['prefill_speedup']:.2f}x")  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
