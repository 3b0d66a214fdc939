"""The float graph: onnxruntime-genai's model builder writes it, and every MatMul is traced back to our weights."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import AwpError
from .passes.common import array_of, name_of

BUILDER = "onnxruntime_genai.models.builder"
GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

#: Model types whose layers all see `sliding_window` tokens, and what that is where config.json does not say: the
#: builder only windows what `layer_types` names.
_ONE_WINDOW: Mapping[str | None, int | None] = MappingProxyType(
    {"mistral": 4096, "phi3": None, "phimoe": None}
)
_ATTENTION = frozenset({"GroupQueryAttention", "MultiHeadAttention", "Attention"})
_BLOCK = re.compile(r"layers[./](\d+)[./]")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Name consecutive rows of a compressed linear."""

    layer: str
    start: int
    stop: int


#: MatMul node name -> the rows whose concatenation, transposed, is its weight.
Matches = Mapping[str, tuple[Rows, ...]]


def known_architectures() -> frozenset[str]:
    """Return the model classes that the installed model builder names; empty where that cannot be told."""
    spec = importlib.util.find_spec(BUILDER)
    if spec is None or spec.origin is None:
        raise AwpError("onnxruntime-genai is not installed; pip install 'awp-edge[export]'")
    return frozenset(
        re.findall(r'architectures\[0\] == "(\w+)"', Path(spec.origin).read_text(encoding="utf-8"))
    )


def build_float_graph(model: Path, out: Path, *, fuse_qkv: bool) -> ir.Model:
    """Write the float32 graph of a Hugging Face folder with the model builder and open it lazily.

    The builder runs in a process of its own: it imports torch, prints, and changes the module search path.

    Raises:
        AwpError: the builder failed; its last line is passed on.
    """
    out.mkdir(parents=True, exist_ok=True)
    # A cache as short as the window has shapes and rules of its own, which ONNX Runtime alone does not follow.
    options = ["hf_token=false", f"fuse_qkv={str(fuse_qkv).lower()}", "windowed_kv_cache=false"]
    command = [sys.executable, "-P", "-m", BUILDER, "-i", str(model.resolve()), "-o", str(out.resolve()), "-p", "fp32",
               "-e", "cpu", "-c", str((out / "cache").resolve()), "--extra_options", *options]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not (out / GRAPH_FILE).is_file():
        raise AwpError(_builder_failure(done.stderr))
    return ir.load(out / GRAPH_FILE)


def _builder_failure(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else "no message"
    if "No space left" in stderr:
        return "no space left on the disk for the float graph; free some space"
    if "ModuleNotFoundError" in last:
        return f"the model builder of onnxruntime-genai needs more packages ({last}); pip install 'awp-edge[export]'"
    return f"the model builder of onnxruntime-genai failed: {last[:300]}; use --format hf"


def windows(config: Mapping[str, Any]) -> list[int] | None:
    """Return how many tokens back each layer sees, -1 for the whole context; None where config.json does not say.

    Then transformers' own rules for the model type hold, which the builder asks.
    """
    kind, count = config.get("model_type"), int(config.get("num_hidden_layers") or 0)
    window, types = config.get("sliding_window", _ONE_WINDOW.get(kind, 0)), config.get("layer_types")
    if config.get("use_sliding_window") is False or window is None:
        return [-1] * count
    if types and window > 0:
        return [window if name == "sliding_attention" else -1 for name in types]
    return [window] * count if kind in _ONE_WINDOW else None


def set_windows(model: ir.Model, config: Mapping[str, Any]) -> None:
    """Give attention nodes the window that all layers share, where the builder leaves it out, and check all of them.

    The comparison of logits would not notice: its text is shorter than a window.

    Raises:
        AwpError: a layer sees other tokens than in the model.
    """
    wanted = windows(config)
    if wanted is None:
        return
    for node in [node for node in model.graph if node.op_type in _ATTENTION]:
        layer = block_of(name_of(node))
        if layer is None or layer >= len(wanted):
            continue
        if config.get("model_type") in _ONE_WINDOW and node.op_type == "GroupQueryAttention":
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", wanted[layer])
        found = node.attributes.get("local_window_size")
        seen = -1 if found is None else int(found.value)
        if seen != wanted[layer]:
            raise AwpError(
                f"{name_of(node)}: the model builder of onnxruntime-genai lets it see {_tokens(seen)} back, the model "
                f"{_tokens(wanted[layer])}; use --format hf"
            )


def _tokens(window: int) -> str:
    return "all tokens" if window < 0 else f"{window} tokens"


def constant_matmuls(model: ir.Model) -> list[ir.Node]:
    """Return the MatMul nodes whose right side is a constant matrix, in graph order."""
    return [node for node in model.graph if node.op_type == "MatMul" and weight_value(node) is not None]


def weight_value(node: ir.Node) -> ir.Value | None:
    """Return the initializer a MatMul multiplies by, or None."""
    value = node.inputs[1]
    is_matrix = value is not None and value.const_value is not None and len(value.const_value.shape) == 2
    return value if is_matrix else None


def weight_of(node: ir.Node) -> Floats:
    """Return a MatMul's weight as a linear layer holds it: (N, K), contiguous."""
    return np.ascontiguousarray(array_of(node.inputs[1]).T)


def block_of(name: str) -> int | None:
    """Return the decoder block that a node or layer name belongs to."""
    found = _BLOCK.search(name + "/")
    return int(found.group(1)) if found else None


def match_layers(model: ir.Model, layers: Sequence[str], dense: Callable[[str], Floats]) -> Matches:
    """Trace every compressed linear to the MatMul that carries it, by comparing weights bit for bit.

    The builder renames, stacks (q, k, v) and splits (gate, up) linears, so names alone prove nothing.

    Args:
        model: the float graph.
        layers: the compressed linears.
        dense: gives a linear's weight, (d_out, d_in) float32.

    Raises:
        AwpError: a linear that no MatMul carries, naming it and the nodes that were left.
    """
    nodes: dict[int | None, list[ir.Node]] = {}
    for node in constant_matmuls(model):
        nodes.setdefault(block_of(name_of(node)), []).append(node)
    blocks: dict[int | None, list[str]] = {}
    for name in layers:
        blocks.setdefault(_block_of_layer(name), []).append(name)
    matches: dict[str, tuple[Rows, ...]] = {}
    for block, names in blocks.items():
        matches.update(_match_block(nodes.get(block, []), {name: dense(name) for name in names}))
    return matches


def _block_of_layer(name: str) -> int | None:
    numbers = re.findall(r"\.(\d+)\.", f".{name}.")
    return int(numbers[0]) if numbers else None


def _match_block(nodes: Sequence[ir.Node], weights: Mapping[str, Floats]) -> dict[str, tuple[Rows, ...]]:
    used = dict.fromkeys(weights, 0)
    matches: dict[str, tuple[Rows, ...]] = {}
    for node in nodes:
        rows = _cover(weight_of(node), weights, used)
        if rows:
            matches[name_of(node)] = rows
            used.update({part.layer: part.stop for part in rows})
    for name, count in used.items():
        if count != len(weights[name]):
            left = [name for name in map(name_of, nodes) if name not in matches] or ["none"]
            raise AwpError(f"{name} {weights[name].shape}: no MatMul of the float graph carries its weights; "
                           f"nodes of this block with other weights: {', '.join(left)}")  # fmt: skip
    return matches


def _cover(matrix: Floats, weights: Mapping[str, Floats], used: Mapping[str, int]) -> tuple[Rows, ...]:
    """Return the row ranges that make up a matrix, each continuing where its linear was left; () if they do not."""
    rows: list[Rows] = []
    at, taken = 0, dict(used)
    while at < len(matrix):
        runs = {name: _run(matrix[at:], weight[taken[name] :]) for name, weight in weights.items()}
        best = max(runs, key=lambda name: runs[name])
        if not runs[best]:
            return ()
        rows.append(Rows(best, taken[best], taken[best] + runs[best]))
        taken[best] += runs[best]
        at += runs[best]
    return tuple(rows)


def _run(matrix: Floats, weight: Floats) -> int:
    """Return how many leading rows of two matrices are equal bit for bit."""
    if matrix.shape[1] != weight.shape[1]:
        return 0
    common = min(len(matrix), len(weight))
    if not common or matrix[0].tobytes() != weight[0].tobytes():
        return 0
    equal = (matrix[:common].view(np.uint32) == weight[:common].view(np.uint32)).all(axis=1)
    return common if equal.all() else int(np.argmin(equal))


def find_head(model: ir.Model) -> ir.Node:
    """Return the MatMul that makes the logits: the last constant one outside the blocks.

    Raises:
        AwpError: there is none.
    """
    heads = [node for node in constant_matmuls(model) if block_of(name_of(node)) is None]
    if not heads:
        raise AwpError("the float graph has no MatMul that makes the logits; use --lm-head fp32")
    return heads[-1]
