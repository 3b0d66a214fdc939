"""Sparse INT4 against ONNX Runtime's own dense INT4, operator by operator: `python bench/sparse.py [--quick]`.

`--shape 4096x4096` measures one shape and leaves what the results say of the others. `--kernels build/bench_sparse`
(CMake's AWP_BUILD_BENCH) measures the bare kernels instead, beside a dense AVX2 kernel of our own, and `--edge
FOLDER` a sparse edge folder beside the same model with dense INT4 layers, in onnxruntime-genai.

Matrix-vector products are streamed over at least 1 GB of copies, so that caches hold none of them, or repeated on one
copy ("resident"); prefill is 512 rows. Both sides run in ONNX Runtime with the same threads, and take turns. Beside
them: the limits of this machine: reading memory, and expanding weights that lie in the cache. It takes up to 9 GB of
memory and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
PREFILL, RESIDENT = 512, 64


@dataclass(frozen=True)
class Operator:
    """Name an operator and hold one copy of its constants."""

    name: str
    kind: str
    constants: Mapping[str, np.ndarray]
    attributes: Mapping[str, int]
    packed: SparseLinear | None = None

    @property
    def n_bytes(self) -> int:
        """Return the bytes that are stored."""
        return sum(array.nbytes for array in self.constants.values())

    @property
    def read_bytes(self) -> int:
        """Return the bytes that a single token reads, in the form that this process's operators have come to use."""
        if self.packed is None or not library.expands(self.packed):
            return self.n_bytes
        return self.n_bytes + roofline.read_besides(self.packed, accuracy_level=4)


def sparse(shape: tuple[int, int], *, kept: int, group: int) -> Operator:
    """Return the sparse operator on random weights, kept = -1: half of every row wherever it falls."""
    packed = roofline.random_sparse(shape, kept=kept, group=group)
    name = f"{kept}/64" if kept >= 0 else "row 50%"
    return Operator(f"{name}, group {group}", "SparseMatMulNBits", _parts(packed), {
        "K": shape[1], "N": shape[0], "block_size": group, "kept": kept, "interleaved": int(packed.interleaved),
        "accuracy_level": 4, "format_version": 1}, packed)  # fmt: skip


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
                offset += file.write(_marked(array, copy).data)
        file.flush()
        os.fsync(file.fileno())  # not while products are timed
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
    # The others take turns with this one: its threads must not spin on while they are timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.register_custom_ops_library(str(library.require_library()))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _marked(array: np.ndarray, copy: int) -> np.ndarray:
    """Return the array with the copy's number in its first bytes: ONNX Runtime keeps equal packed weights once."""
    marked = np.array(array, order="C")
    if marked.dtype == np.uint8:
        marked.reshape(-1)[:2] = copy % 256, copy // 256
    return marked


def _external(name: str, array: np.ndarray, offset: int) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights"), ("offset", str(offset)), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def settle(operator: Operator, call: Callable[[], object]) -> None:
    """Make the operator choose the form of its weights, which it does by trying both."""
    for _ in range(100):
        if operator.packed is None or library.expands(operator.packed) is not None:
            return
        call()
    raise AssertionError(f"{operator.name} never chooses")


def alternating_seconds(calls: Sequence[Callable[[], object]], *, runs: int) -> list[float]:
    """Return every call's median time, taken in turns after one round that is not timed.

    A machine whose speed changes from minute to minute changes it for all of them.
    """
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(runs + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


@dataclass(frozen=True)
class Settings:
    """Say how to measure: threads, runs of which the median is taken, bytes of copies to stream."""

    threads: int
    runs: int
    stream_bytes: int


def measure(operators: Sequence[Operator], settings: Settings) -> list[dict[str, Any]]:
    """Return a row for every operator of one shape: times and speed-ups, streamed, resident and for 512 rows.

    Dense operators take turns with each other, every sparse one with the fastest of them, which its speed-up refers to.
    """
    rivals = [operator for operator in operators if operator.kind == "MatMulNBits"]
    rows = [
        {
            "operator": o.name,
            "shape": [o.attributes["N"], o.attributes["K"]],
            "bytes": o.n_bytes,
        }
        for o in operators
    ]
    for what in ("streamed", "resident", "prefill"):
        taken = products(rivals, what, settings)
        fastest = min(taken)
        rival, beside = rivals[taken.index(fastest)], [fastest] * len(rivals)
        for operator in operators[len(rivals) :]:
            dense_one, sparse_one = products([rival, operator], what, settings)
            taken.append(sparse_one)
            beside.append(dense_one)
        for row, one, other in zip(rows, taken, beside, strict=True):
            row |= {f"{what}_us": 1e6 * one, f"{what}_dense_us": 1e6 * other, f"{what}_speedup": other / one}
    for row, operator in zip(rows, operators, strict=True):
        row["read_bytes"] = operator.read_bytes
        row["streamed_gweights"] = 1e-3 * row["shape"][0] * row["shape"][1] / row["streamed_us"]
        row["streamed_gb_s"] = 1e-3 * row["read_bytes"] / row["streamed_us"]
        row["resident_gweights"] = 1e-3 * row["shape"][0] * row["shape"][1] / row["resident_us"]
    return rows


def products(operators: Sequence[Operator], what: str, settings: Settings) -> list[float]:
    """Return seconds of a product by every operator, all of them in turns."""
    tokens = PREFILL if what == "prefill" else 1
    inputs = (
        np.random.default_rng(1).standard_normal((tokens, operators[0].attributes["K"])).astype(np.float32)
    )
    calls, nodes = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for i, operator in enumerate(operators):
            copies = max(2, -(-settings.stream_bytes // operator.n_bytes)) if what == "streamed" else 1
            nodes.append(RESIDENT if what == "resident" else copies)
            folder = Path(scratch) / str(i)
            folder.mkdir()
            made = session(operator, folder, copies=copies, nodes=nodes[-1], threads=settings.threads)
            calls.append(partial(made.run, None, {"a": inputs}))
            if tokens == 1:
                settle(operator, calls[-1])
        taken = alternating_seconds(calls, runs=settings.runs)
    return [whole / n for whole, n in zip(taken, nodes, strict=True)]


def operators(shape: tuple[int, int], *, quick: bool) -> list[Operator]:
    """Return what is compared for one shape."""
    groups = [group for group in (128, 64) if shape[1] % group == 0]
    made = [dense(shape, group=group) for group in (*groups, 32)]
    kept = (32,) if quick else (32, 24, 16, -1)
    return made + [sparse(shape, kept=k, group=groups[0]) for k in kept]


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
    shapes = ["x".join(map(str, shape)) for shape in SHAPES]
    parser.add_argument("--shape", choices=shapes, help="rows x inputs; all by default")
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
    limits = roofline.measure(threads=options.threads, group=128)
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
    rows = measure(operators(shape, quick=quick), settings)
    for row in rows:
        print(describe(row), flush=True)
    for row in rows:
        print(f"  {row['operator']}: streamed {row['streamed_speedup']:.2f}x, resident "
              f"{row['resident_speedup']:.2f}x, prefill {row['prefill_speedup']:.2f}x")  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
