"""Time how long awp-plus takes to reach the error of other solvers: `python bench/search.py MODEL --statistics DIR`.

The others are PyTorch loops on the same threads: Algorithm 1 of AWP with 200 steps, and ADMM with a gradual mask in
coordinates scaled by C_jj, 20 steps and 10 of conjugate gradients (Boza 2024). Both reach some error on every layer of
the blocks; against their time stands the least effort of awp-plus whose mean error is no larger. DIR is what
`awp-edge compress --one-shot --statistics DIR` saved.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import best_seconds, write
from solver import top_k_mask, torch_awp

from awp_edge import Problem, RowSparse
from awp_edge.backend import NativeBackend
from awp_edge.calibrate.saved import SavedStatistics
from awp_edge.models import ModelFolder
from awp_edge.plus import EFFORTS, Effort, prune
from awp_edge.solvers.admm import Admm

AWP_STEPS, ADMM_STEPS, REFIT_STEPS = 200, 20, 10
LADDER = {
    **{
        f"{steps} + {refit}": Effort(Admm(steps=steps, products="int8"), refit)
        for steps, refit in ((2, 1), (3, 2), (4, 2), (6, 3))
    },
    **EFFORTS,
    **{
        f"{name}, float32 products": replace(effort, search=replace(effort.search, products="float32"))
        for name, effort in EFFORTS.items()
    },
}


def torch_refit(weight: torch.Tensor, gram: torch.Tensor, theta: torch.Tensor, *, steps: int) -> torch.Tensor:
    """Return conjugate gradients on the support of theta, all rows side by side."""
    mask, inverse = theta != 0, 1 / gram.diagonal()
    residual = ((weight - theta) @ gram) * mask
    direction = residual * inverse
    energy = (residual * direction).sum(1, keepdim=True)
    for _ in range(steps):
        image = (direction @ gram) * mask
        alpha = energy / (direction * image).sum(1, keepdim=True).clamp_min(1e-30)
        theta, residual = theta + alpha * direction, residual - alpha * image
        before, energy = energy, (residual * residual * inverse).sum(1, keepdim=True)
        direction = residual * inverse + energy / before.clamp_min(1e-30) * direction
    return theta


def torch_admm(weight: torch.Tensor, gram: torch.Tensor, *, k: int) -> torch.Tensor:
    """Return the end of ADMM with a support that shrinks by a cubic law, refitted."""
    scale = gram.diagonal().sqrt().clamp_min(1e-8)
    weight, gram, d = weight * scale, gram / torch.outer(scale, scale), len(gram)
    inverse = torch.linalg.inv(gram + torch.eye(d))
    z, u, target = weight * top_k_mask(weight.abs(), k), torch.zeros_like(weight), weight @ gram
    for step in range(1, ADMM_STEPS + 1):
        x = (target + z - u) @ inverse
        share = min(1.0, step / (0.75 * ADMM_STEPS))
        v = x + u
        z = v * top_k_mask(v.abs(), k + int((d - k) * (1 - share) ** 3))
        u = v - z
    return torch_refit(weight, gram, z * top_k_mask(z.abs(), k), steps=REFIT_STEPS) / scale


def timed(call: Callable[[], np.ndarray], problem: Problem, *, runs: int) -> tuple[float, float]:
    """Return the shortest time of several calls after an untimed one, and the relative error."""
    found: list[np.ndarray] = []
    seconds = best_seconds(lambda: found.append(call()), runs=runs)
    return seconds, problem.relative_error(found[-1])


def measure(problem: Problem, *, threads: int, runs: int) -> dict[str, tuple[float, float]]:
    """Return (seconds, relative error) of every solver on one layer at 50% sparsity."""
    weight, gram, k = torch.from_numpy(problem.weight), torch.from_numpy(problem.gram), problem.shape[1] // 2
    engine = NativeBackend(threads)

    def plus(effort: Effort) -> np.ndarray:
        return prune(problem, RowSparse(k), effort=effort, engine=engine).theta

    calls: dict[str, Callable[[], np.ndarray]] = {
        "AWP, PyTorch": lambda: torch_awp(weight, gram, k=k, steps=AWP_STEPS).numpy(),
        "ADMM, PyTorch": lambda: torch_admm(weight, gram, k=k).numpy(),
        **{f"awp-plus {name}": lambda effort=effort: plus(effort) for name, effort in LADDER.items()},
    }
    return {name: timed(call, problem, runs=runs) for name, call in calls.items()}


def main() -> None:
    """Measure every layer of some blocks, print the totals and write bench/results/search.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--statistics", type=Path, required=True)
    parser.add_argument("--blocks", default="3,17")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = SavedStatistics(ModelFolder(options.model), options.statistics)
    layers = []
    for block in map(int, options.blocks.split(",")):
        grams = source.statistics(block)
        for info in source.linears(block):
            problem = Problem(source.weight(info.name), grams[info.input].matrix)
            layers.append(measure(problem, threads=options.threads, runs=options.runs))
            print(info.name, flush=True)
    rows = [
        {
            "name": name,
            "seconds": sum(layer[name][0] for layer in layers),
            "mean_relative_error": float(np.mean([layer[name][1] for layer in layers])),
        }
        for name in layers[0]
    ]
    for peer in rows[:2]:
        reached = [row for row in rows[2:] if row["mean_relative_error"] <= peer["mean_relative_error"]]
        quickest = min(reached, key=lambda row: row["seconds"], default=None)
        if quickest:
            peer |= {"reached_by": quickest["name"], "speedup": peer["seconds"] / quickest["seconds"]}
    for row in rows:
        print(row)
    print(write("search", {"blocks": options.blocks, "threads": options.threads, "rows": rows}))


if __name__ == "__main__":
    main()
