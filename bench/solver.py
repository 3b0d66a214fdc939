"""Time the native core against Algorithm 1 written in PyTorch, in one run: `python bench/solver.py`.

Both sides run the same iterates (the relative difference is reported), on the same threads, one after the other,
several times; the ratio of the best times is the result.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import best_seconds, write

from awp_edge import Problem, RowSparse, Sparse, Stop, native, pgd, solve

SHAPES = ((576, 576), (1536, 576), (576, 1536), (4096, 4096))


def top_k_mask(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return the mask of the k largest entries of every row."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, scores.topk(k, dim=1).indices, True)


def torch_awp(weight: torch.Tensor, gram: torch.Tensor, *, k: int, steps: int) -> torch.Tensor:
    """Return Theta after the given steps of Algorithm 1: Wanda start, step 2/||C||_F, top-k rows."""
    eta, norm = 2 / gram.norm(), weight.norm()
    theta = weight * top_k_mask(weight.abs() * gram.diagonal().sqrt(), k)
    for _ in range(steps):
        descent = (weight - theta) @ gram
        if descent.norm() / norm < 1e-4:
            break
        z = theta + eta * descent
        theta = z * top_k_mask(z.abs(), k)
    return theta


def layer(d_out: int, d_in: int) -> Problem:
    """Return a random layer whose inputs are correlated and have a few large channels, like real ones."""
    rng = np.random.default_rng(d_out + d_in)
    inputs = rng.standard_normal((2 * d_in, d_in), dtype=np.float32)
    inputs += rng.standard_normal((2 * d_in, 16), dtype=np.float32) @ rng.standard_normal(
        (16, d_in), dtype=np.float32
    )
    inputs[:, :: d_in // 8] *= 8
    weight = rng.standard_normal((d_out, d_in), dtype=np.float32) / np.float32(d_in**0.5)
    return Problem(weight, inputs.T @ inputs / np.float32(len(inputs)))


def product_seconds(problem: Problem, function: str, *, threads: int, runs: int) -> float:
    """Return the seconds of (W - Theta) C alone, C already packed: what more rows add to a call's time."""

    def seconds(rows: int) -> float:
        a = np.concatenate([problem.weight] * rows)
        out = np.zeros_like(a)
        call = getattr(native.core(), function)
        return best_seconds(lambda: call(a, problem.gram, out, threads), runs=runs)

    return (seconds(5) - seconds(1)) / 4


def measure(shape: tuple[int, int], *, threads: int, runs: int) -> dict[str, float | list[int]]:
    """Return milliseconds per iteration of both sides and of the products alone."""
    problem, k = layer(*shape), shape[1] // 2
    steps = 4 if shape[0] * shape[1] ** 2 > 1e10 else 20
    weight, gram = torch.from_numpy(problem.weight), torch.from_numpy(problem.gram)
    constraint, stop = Sparse(RowSparse(k)), Stop(steps, 0.0)

    def native_run(products: str = "float32") -> np.ndarray:
        return solve(
            problem, constraint, method=pgd(products=products), stop=stop, backend="native", threads=threads
        ).theta

    def native_none() -> np.ndarray:
        return solve(problem, constraint, stop=Stop(0, 0.0), backend="native", threads=threads).theta

    theirs = torch_awp(weight, gram, k=k, steps=steps).numpy()
    difference = abs(problem.objective(native_run()) / problem.objective(theirs) - 1)
    # What is not iteration (start, packing, the first objective) is measured and taken off on both sides.
    ours = best_seconds(native_run, runs=runs) - best_seconds(native_none, runs=runs)
    peer = best_seconds(lambda: torch_awp(weight, gram, k=k, steps=steps), runs=runs)
    peer -= best_seconds(lambda: torch_awp(weight, gram, k=k, steps=0), runs=runs)
    flops = 2 * shape[0] * shape[1] ** 2
    product = product_seconds(problem, "product", threads=threads, runs=runs)
    bf16 = product_seconds(problem, "product_bfloat16", threads=threads, runs=runs)
    out = torch.empty_like(weight)
    peer_product = best_seconds(lambda: torch.mm(weight, gram, out=out), runs=runs)
    return {
        "shape": list(shape),
        "native_ms": 1e3 * ours / steps,
        "torch_ms": 1e3 * peer / steps,
        "speedup": peer / ours,
        "objective_difference": difference,
        "native_product_ms": 1e3 * product,
        "torch_product_ms": 1e3 * peer_product,
        "native_product_gflops": 1e-9 * flops / product,
        "torch_product_gflops": 1e-9 * flops / peer_product,
        "bfloat16_product_gflops": 1e-9 * flops / bf16,
        "share_outside_product": max(0.0, 1 - product / (ours / steps)),
    }


def main() -> None:
    """Measure every shape, print a table and write bench/results/solver.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for shape in SHAPES:
        row = measure(shape, threads=options.threads, runs=options.runs)
        rows.append(row)
        print(
            f"{shape[0]}x{shape[1]}: native {row['native_ms']:.2f} ms, torch {row['torch_ms']:.2f} ms "
            f"({row['speedup']:.1f}x), products {row['native_product_gflops']:.0f} against "
            f"{row['torch_product_gflops']:.0f} GFLOP/s (bfloat16 {row['bfloat16_product_gflops']:.0f}), "
            f"outside the product {100 * row['share_outside_product']:.0f}%",
            flush=True,
        )
    print(write("solver", {"threads": options.threads, "layers": rows}))


if __name__ == "__main__":
    main()
