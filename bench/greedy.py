"""Compare greedy tokens of a sparse edge folder with an emulation in PyTorch: `python bench/greedy.py COMPRESSED EDGE`.

EDGE was exported from COMPRESSED with sparse weights at accuracy level 4. onnxruntime-genai continues five prompts; the
emulation, the compressed model with int8 inputs as the operator takes them, then reads what was written, in float32 and
again in float64 (but for norms, which transformers always computes in float32). Wherever it would have gone on with
another token, its logits of the two must be closer than `TOLERANCE` and than the most by which float64 moves the lead
of any top token over the next: rounding of sums moves int8 steps, so no two orders of summation agree better than that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from awp_edge.export.check import read_packed
from awp_edge.export.graph import GRAPH_FILE, block_of
from awp_edge.export.passes.common import name_of
from awp_edge.export.passes.sparse import OPERATORS, read_sparse
from awp_edge.export.runtime import EdgeModel
from awp_edge.export.source import Source
from awp_edge.export.sparse_packing import block_order
from common import write
from numpy.typing import NDArray

from awp_edge.calibrate.runner import TorchModel
from awp_edge.errors import AwpError

PROMPTS = (
    "The history of the city begins with a small harbour",
    "To bake a loaf of bread, first",
    "In physics, the conservation of energy means that",
    "Once upon a time, a fox and a heron lived by the river.",
    "The most common mistakes of people who learn to program are",
)
TOKENS = 200
#: Where a token differs the top two logits are closer than this, whatever float64 moves.
TOLERANCE = 0.5


def int8_inputs(group: int, order: NDArray[np.intp]) -> Callable[[torch.nn.Module, Any], tuple[torch.Tensor]]:
    """Return a hook that rounds a layer's inputs as accuracy level 4 does: int8 steps of max / 127 a group."""
    forward, back = torch.from_numpy(order), torch.from_numpy(np.argsort(order))

    def hook(_: torch.nn.Module, inputs: Any) -> tuple[torch.Tensor]:
        x = inputs[0]
        groups = x[..., forward].unflatten(-1, (-1, group))
        most = groups.abs().amax(-1, keepdim=True)
        steps = torch.round(groups * torch.where(most > 0, 127 / most, 0))
        return ((steps * (most / 127)).flatten(-2)[..., back],)

    return hook


def emulation(compressed: Path, edge: Path, *, threads: int, double: bool = False) -> TorchModel:
    """Return the compressed model with the inputs of its layers rounded as in the edge folder, and with its head.

    double: in float64, norms excepted.
    """
    nodes = list(ir.load(edge / GRAPH_FILE).graph)
    sparse = [read_sparse(node) for node in nodes if node.op_type in OPERATORS]
    if not sparse:
        raise AwpError(f"{edge} has no sparse layers; export it with --weights sparse --accuracy-level 4")
    model = TorchModel(compressed, threads=threads)
    modules = dict(model._model.named_modules())
    inputs = {packed.shape[1]: packed for packed in sparse}  # layers of as many inputs are grouped alike
    for name in Source(compressed).layers:
        packed = inputs[modules[name].weight.shape[1]]
        order = block_order(packed.shape[1], turned=packed.interleaved)
        modules[name].register_forward_pre_hook(int8_inputs(packed.block_size, order))
    heads = [n for n in nodes if n.op_type == "MatMulNBits" and block_of(name_of(n)) is None]
    if heads:
        _take_head(model, heads[-1], tied=any(n.op_type == "GatherBlockQuantized" for n in nodes))
    if double:
        model._model.double()
    return model


def _take_head(model: TorchModel, node: ir.Node, *, tied: bool) -> None:
    packed = read_packed(node)
    weight = torch.nn.Parameter(torch.from_numpy(packed.dense()), requires_grad=False)
    model._head.weight = weight
    model._head.register_forward_pre_hook(int8_inputs(packed.block_size, np.arange(packed.shape[1])))
    model._model.get_input_embeddings().weight = (
        weight if tied else model._model.get_input_embeddings().weight
    )


def continued(edge: EdgeModel, prompt: str, *, tokens: int) -> tuple[NDArray[np.int64], int]:
    """Return prompt and greedy continuation by onnxruntime-genai, and the prompt's length."""
    start = edge.encode(prompt)
    generator = edge._generator(len(start) + tokens)
    generator.append_tokens(start.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return np.asarray(generator.get_sequence(0), dtype=np.int64), len(start)


def leads(logits: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Return by how much `other` moves the lead of the largest of each row's logits over the next, absolute."""
    first, second = np.argsort(logits, axis=1)[:, :-3:-1].T
    rows = np.arange(len(logits))
    moved = (other[rows, first] - other[rows, second]) - (logits[rows, first] - logits[rows, second])
    return np.abs(moved.astype(np.float64))


def compared(
    model: TorchModel, double: TorchModel, edge: EdgeModel, prompt: str, *, tokens: int
) -> dict[str, Any]:
    """Return how many tokens the emulation would have chosen otherwise, and how close it was there."""
    sequence, start = continued(edge, prompt, tokens=tokens)
    wanted = np.concatenate(list(model.logits(sequence[:-1])))
    again = np.concatenate(list(double.logits(sequence[:-1])))
    found = np.concatenate(list(edge.logits(sequence[:-1])))
    chosen, best = sequence[start:], wanted[start - 1 :]
    gaps = best.max(axis=1) - best[np.arange(len(chosen)), chosen]
    left = np.flatnonzero(gaps > 0)
    return {
        "prompt": prompt, "tokens": len(chosen), "leaves": len(left), "positions": left.tolist(),
        "largest_gap": float(gaps.max(initial=0)), "first_tokens_equal": int(left[0]) if len(left) else len(chosen),
        "tolerance": float(leads(best, again[start - 1 :]).max()),
        "logit_difference": _difference(wanted, found), "emulation_difference": _difference(wanted, again),
    }  # fmt: skip


def _difference(a: NDArray[Any], b: NDArray[Any]) -> dict[str, float]:
    return {"max": float(np.abs(a - b).max()), "mean": float(np.abs(a - b).mean())}


def report(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows and whether every departure was within the tolerance."""
    gap, tolerance = (max(row[name] for row in rows) for name in ("largest_gap", "tolerance"))
    allowed = min(tolerance, TOLERANCE)
    return {"tolerance": tolerance, "allowed": allowed, "largest_gap": gap, "within": gap <= allowed,
            "tokens": sum(row["tokens"] for row in rows), "leaves": sum(row["leaves"] for row in rows),
            "rows": list(rows)}  # fmt: skip


def main() -> None:
    """Compare all prompts and write bench/results/greedy.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("compressed", type=Path)
    parser.add_argument("edge", type=Path)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    edge = EdgeModel(options.edge, threads=options.threads)
    model, double = (
        emulation(options.compressed, options.edge, threads=options.threads, double=double)
        for double in (False, True)
    )
    rows = []
    for prompt in PROMPTS:
        rows.append(compared(model, double, edge, prompt, tokens=options.tokens))
        print(rows[-1], flush=True)
    found = report(rows)
    print(write("greedy", {"threads": options.threads, **found}))


if __name__ == "__main__":
    main()
