"""Hold the theorems against real layers: `python bench/guarantees.py MODEL STATISTICS`.

STATISTICS is what `awp-edge compress --one-shot --statistics DIR` saved. Writes bench/results/guarantees.json, from
which bench/readme.py fills docs/guarantees.md, and the plot docs/guarantees.svg. Takes a minute.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from common import write

from awp_edge import CompressSpec, Problem, RowSparse, Sparse, compress_layer, theory
from awp_edge.calibrate.saved import SavedStatistics
from awp_edge.certificate import certify_layer, gram_facts
from awp_edge.lower_bound import cardinality, dual_bound, separate
from awp_edge.models import ModelFolder

LAYERS = (
    "model.layers.15.self_attn.q_proj",
    "model.layers.15.mlp.gate_proj",
    "model.layers.15.mlp.down_proj",
)
PLOT = Path(__file__).resolve().parents[1] / "docs" / "guarantees.svg"
STEPS, ROWS = 200, 32
PRUNING = tuple((name, CompressSpec(method=name, sparsity=0.5)) for name in ("awp", "awp-plus"))
ROUNDING = tuple(
    (name, CompressSpec(method=name, bits=4, group_size=64)) for name in ("rtn", "gptq", "awp-plus")
)


def measure(problem: Problem) -> dict[str, Any]:
    """Return one layer's row of the table: what holds of C, and what each method's certificate says."""
    started = time.process_time()
    facts = gram_facts(problem.gram)
    shared = time.process_time() - started
    diagonal = facts.gram.diagonal()
    weights = theory.rounding_weights(facts.gram, np.arange(len(diagonal)))
    row: dict[str, Any] = {
        "shape": list(problem.shape),
        "pruning_step": 2 * facts.largest / float(np.linalg.norm(facts.gram)),
        "rounding_step": 1.5 * facts.largest / float(np.linalg.norm(facts.gram)),
        "condition": facts.largest / facts.smallest if facts.smallest else None,
        "energy_ratio": float(diagonal.max() / diagonal.min()),
        "pair_condition": theory.restricted_condition_floor(facts.gram),
        "feedback_gain": float(weights.sum() / diagonal.sum()),
        "shared_seconds": shared,
        "methods": {},
    }
    zero = problem.objective(np.zeros_like(problem.weight))
    for kind, methods in (("50%", PRUNING), ("INT4", ROUNDING)):
        for name, spec in methods:
            started = time.process_time()
            result = compress_layer(problem.weight, problem.gram, spec)
            solving = time.process_time() - started
            started = time.process_time()
            certificate = certify_layer(problem.weight, result, facts=facts, spec=spec).to_json()
            row["methods"][f"{name} {kind}"] = {
                "relative_error": result.objective / zero, "solve_seconds": solving,
                "certificate_seconds": time.process_time() - started, **certificate,
            }  # fmt: skip
    return row


def curves(problem: Problem) -> dict[str, Any]:
    """Follow descent on some rows: f at the paper's step and below 1/L, the moves, and what the theorems promise."""
    rows = np.arange(ROWS) * problem.shape[0] // ROWS
    weight, gram = problem.weight[rows].astype(np.float64), problem.gram.astype(np.float64)
    part, constraint = Problem(weight, gram), Sparse(RowSparse(weight.shape[1] // 2))
    lipschitz, zero = part.lipschitz(), part.objective(np.zeros_like(weight))
    mask = constraint.support.select(weight * weight * gram.diagonal())
    start, found = np.where(mask, weight, 0), {}
    for name, step in (("paper", 2 / float(np.linalg.norm(gram))), ("covered", 0.99 / lipschitz)):
        path = [start]
        for _ in range(STEPS):
            path.append(constraint.project(path[-1] - step * part.gradient(path[-1])))
        found[name] = path
    moves = [float(np.sum((b - a) ** 2)) for a, b in pairwise(found["covered"])]
    f0, step = part.objective(start), 0.99 / lipschitz
    separated, relaxed = separate(gram), cardinality(constraint.support, weight.shape[1])
    assert separated is not None and relaxed is not None
    return {
        "lower_bound": float(dual_bound(weight, found["paper"][-1], part=separated, relaxed=relaxed).sum())
        / zero,
        "objectives": {
            name: [part.objective(theta) / zero for theta in path] for name, path in found.items()
        },
        "smallest_move": np.minimum.accumulate(moves).tolist(),
        "promised_move": [
            theory.smallest_move(f0, step=step, lipschitz=lipschitz, n_steps=t) for t in range(1, STEPS + 1)
        ],
        "paper_step": 2 / float(np.linalg.norm(gram)) * lipschitz,
        **settled(part, found["paper"][-1], zero=zero, lipschitz=lipschitz),
    }


def settled(part: Problem, theta: np.ndarray, *, zero: float, lipschitz: float) -> dict[str, Any]:
    """Follow descent at 1/L on the last support, held fixed, against its limit and the bound without conditions."""
    mask, gram = theta != 0, part.gram
    best = np.zeros_like(theta)
    for i, kept in enumerate(mask):
        inside = np.flatnonzero(kept)
        best[i, inside] = np.linalg.solve(gram[np.ix_(inside, inside)], (gram @ part.weight[i])[inside])
    limit, distance = part.objective(best), float(np.sum((np.where(mask, part.weight, 0) - best) ** 2))
    current, excess = np.where(mask, part.weight, 0), []
    for _ in range(STEPS + 1):
        excess.append((part.objective(current) - limit) / zero)
        current = np.where(mask, current - part.gradient(current) / lipschitz, 0)
    promised = [
        theory.excess_after(distance, step=1 / lipschitz, n_steps=t) / zero for t in range(1, STEPS + 1)
    ]
    return {"refit": limit / zero, "excess": excess, "promised_excess": promised}


def plot(found: dict[str, Any]) -> None:
    """Draw measured convergence against the bounds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "guarantees"
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, label in (
        ("paper", f"step 2/||C||, {found['paper_step']:.2f}/L"),
        ("covered", "step 0.99/L (T02)"),
    ):
        left.semilogy(found["objectives"][name], label=label)
    left.axhline(found["refit"], color="tab:green", ls="--", label="refit on the last support (T11)")
    left.axhline(found["lower_bound"], color="tab:red", ls=":", label="no weight is below this (T13)")
    left.set(title="f / f(0), 50% pruning", xlabel="step")
    steps = range(1, STEPS + 1)
    middle.loglog(steps, found["excess"][1:], label="measured at 1/L")
    middle.loglog(steps, found["promised_excess"], ls="--", label="promised (T06 b)")
    middle.set(title="excess over the refit, support held", xlabel="step")
    right.loglog(steps, found["smallest_move"], label="measured at 0.99/L")
    right.loglog(steps, found["promised_move"], ls="--", label="promised (T02 c)")
    right.set(title="smallest squared move so far", xlabel="step")
    for axes in (left, middle, right):
        axes.legend(fontsize=8)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    """Measure the three layers and draw the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("statistics", type=Path)
    options = parser.parse_args()
    source = SavedStatistics(ModelFolder(options.model), options.statistics)
    inputs = {
        info.name: (block, info.input) for block in range(source.n_blocks) for info in source.linears(block)
    }
    results: dict[str, Any] = {"calibration": dict(source.calibration), "layers": {}}
    for name in LAYERS:
        block, key = inputs[name]
        problem = Problem(source.weight(name), source.statistics(block)[key].matrix)
        results["layers"][name] = measure(problem)
        if "curves" not in results:
            results["curves"] = curves(problem)
        print(name, results["layers"][name], flush=True)
    plot(results["curves"])
    write("guarantees", results)


if __name__ == "__main__":
    main()
