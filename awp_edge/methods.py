"""The table of named methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from .backend import Backend, resolve
from .baselines import (
    Gptq,
    Scaled,
    alps,
    asvd,
    awq,
    gptq,
    magnitude,
    rtn,
    sparsegpt,
    svd,
    wanda,
    wanda_mask,
)
from .constraints import Dense, LowRank, Reals, Sparse, interleaved
from .plus import DAMPING, plus
from .problem import Array, Problem
from .solvers.base import Result, Stop, encode, low_rank_result
from .solvers.pgd import Pgd
from .solvers.solve import finish, starting_point
from .spec import DEFAULT_METHOD, EFFORTS, CompressSpec

__all__ = ["DEFAULT_METHOD", "EFFORTS", "METHODS", "CompressSpec", "Method", "compress_layer"]

#: AWP's quantization mode and joint schedule. The text at hand does not give them: these are our choices. The grid is
#: refitted to every Z, without which descent stays at round to nearest.
QUANTIZATION_STEPS = 20
JOINT_RAMP, JOINT_PRUNING_STEPS = 50, 100


class Solver(Protocol):
    """A method's body."""

    def __call__(self, problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
        """Return the compressed weight."""


@dataclass(frozen=True)
class Method:
    """Name a composition of solvers: what it is, what it can do and how.

    adjustable: whether it heeds effort and damping.
    calibrated: False where C does not change what it makes of a weight.
    scales_inputs: whether its codes are those of scaled inputs.
    """

    summary: str
    kinds: tuple[str, ...]
    run: Solver
    adjustable: bool = False
    calibrated: bool = True
    scales_inputs: bool = False

    def handles(self, kind: str) -> bool:
        """Return whether the method can serve this kind of constraint."""
        return kind in self.kinds


def _closed_form(constraint: Sparse, theta: Array, *, problem: Problem) -> Result:
    objective = problem.objective(theta)
    return Result(theta, objective, np.array([objective]), 0, True, "closed form", encode(constraint, theta))


def _prune(baseline: Callable[..., Array]) -> Solver:
    """Return the method that prunes by a baseline's mask, then rounds to a grid fitted to what is kept."""

    def run(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
        assert isinstance(constraint, Sparse)
        pruned = baseline(problem, replace(constraint, values=Reals()), engine=engine)
        bound = constraint.bind(pruned)
        return _closed_form(bound, bound.restrict(pruned, pruned != 0), problem=problem)

    return run


def _fitted(baseline: Callable[..., Array], **options: Any) -> Solver:
    """Return the method that runs a baseline on the grid fitted to W, where there is a grid."""

    def run(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
        assert isinstance(constraint, Sparse)
        bound = constraint.bind(problem.weight)
        return _closed_form(bound, baseline(problem, bound, engine=engine, **options), problem=problem)

    return run


def _swept(baseline: Callable[..., Array], **options: Any) -> Solver:
    """Return the method that sweeps over the columns, those of inputs that are never active at zero, as published."""
    fitted = _fitted(baseline, **options)

    def run(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
        return fitted(problem.without_dead_inputs(), constraint, engine=engine)

    return run


def _factored(baseline: Callable[..., tuple[Array, Array]]) -> Solver:
    """Return the method that stores a baseline's two factors."""

    def run(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
        assert isinstance(constraint, LowRank)
        factors = baseline(problem, constraint, engine=engine)
        return low_rank_result(problem.objective(factors[0] @ factors[1]), factors, constraint)

    return run


def _awq(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
    assert isinstance(constraint, Sparse)
    return _scaled(awq(problem, constraint, engine=engine), constraint, problem=problem)


def _awq_wanda(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
    """Quantize, then prune what came out."""
    assert isinstance(constraint, Sparse)
    found = awq(problem, constraint, engine=engine)
    mask = wanda_mask(problem.derived(weight=found.theta), constraint, engine=engine)
    pruned = np.where(mask, found.scaled, found.scaled.dtype.type(0))
    return _scaled(replace(found, scaled=pruned), constraint, problem=problem)


def _wanda_awq(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
    """Prune, then quantize what is left as if it were the dense weight."""
    assert isinstance(constraint, Sparse)
    pruned = problem.derived(weight=wanda(problem, replace(constraint, values=Reals()), engine=engine))
    return _scaled(awq(pruned, constraint, engine=engine), constraint, problem=problem)


def _scaled(found: Scaled, constraint: Sparse, *, problem: Problem) -> Result:
    """Return the result of codes for scaled inputs."""
    bound = replace(constraint, values=found.constraint.values)
    theta, objective = found.theta, problem.objective(found.theta)
    encoding = replace(encode(bound, found.scaled), input_scales=found.input_scales)
    return Result(theta, objective, np.array([objective]), 0, True, "closed form", encoding)


def _awp(problem: Problem, constraint: Sparse | LowRank, *, engine: Backend) -> Result:
    """Run the paper's three modes: pruning, quantization from RTN, or a ramp followed by both projections."""
    if isinstance(constraint, LowRank):
        return _factored(asvd)(problem, constraint, engine=engine)
    if isinstance(constraint.values, Reals):
        return _pgd(problem, constraint, engine=engine)
    if isinstance(constraint.support, Dense):
        return _quantize(problem, constraint, engine=engine, start=problem.weight)
    prune = Stop(max_iter=JOINT_PRUNING_STEPS)
    pruned = _pgd(
        problem, replace(constraint, values=Reals()), engine=engine, method=Pgd(ramp=JOINT_RAMP), stop=prune
    )
    return _quantize(problem, constraint, engine=engine, start=pruned.theta)


def _quantize(problem: Problem, constraint: Sparse, *, engine: Backend, start: Array) -> Result:
    stop = Stop(max_iter=QUANTIZATION_STEPS)
    return _pgd(problem, constraint, engine=engine, start=start, method=Pgd(refit=True), stop=stop)


def _pgd(
    problem: Problem,
    constraint: Sparse,
    *,
    engine: Backend,
    start: Array | None = None,
    method: Pgd = Pgd(),
    stop: Stop = Stop(),
) -> Result:
    bound, theta = starting_point(problem, constraint, start, engine=engine, ramp=method.ramp)
    return finish(engine.pgd(problem, bound, theta, method=method, stop=stop))


def _awp_plus(
    problem: Problem,
    constraint: Sparse | LowRank,
    *,
    engine: Backend,
    effort: str = "default",
    damping: float | None = None,
) -> Result:
    if isinstance(constraint, LowRank):
        return _factored(asvd)(problem, constraint, engine=engine)
    known = DAMPING if damping is None else damping
    return finish(plus(problem, constraint, effort=effort, damping=known, engine=engine))


#: Every method by the name the command line and the reports use.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "magnitude": Method(
            "largest weights kept", ("pruning", "joint"), _prune(magnitude), calibrated=False
        ),
        "wanda": Method("largest |w| ||x|| kept (Sun et al. 2024)", ("pruning", "joint"), _prune(wanda)),
        "sparsegpt": Method("OBS sweep (Frantar, Alistarh 2023)", ("pruning", "joint"), _swept(sparsegpt)),
        "alps": Method("ADMM, then refit (Meng et al. 2024)", ("pruning",), _fitted(alps)),
        "rtn": Method("round to nearest", ("quantization",), _fitted(rtn), calibrated=False),
        "gptq": Method("OBS sweep, static groups (Frantar et al. 2023)", ("quantization",), _swept(gptq)),
        "gptq-actorder": Method(
            "GPTQ, inputs of largest energy first",
            ("quantization",),
            _swept(gptq, options=Gptq("activation")),
        ),
        "awq": Method(
            "input scales and clipping searched (Lin et al. 2024)",
            ("quantization",),
            _awq,
            scales_inputs=True,
        ),
        "awq+wanda": Method("AWQ, then Wanda on its result", ("joint",), _awq_wanda, scales_inputs=True),
        "wanda+awq": Method("Wanda, then AWQ on what is left", ("joint",), _wanda_awq, scales_inputs=True),
        "svd": Method("singular value decomposition of W", ("low rank",), _factored(svd), calibrated=False),
        "asvd": Method("activation-aware SVD, the low-rank optimum", ("low rank",), _factored(asvd)),
        "awp": Method(
            "projected gradient descent (Liu et al. 2025)",
            ("pruning", "quantization", "joint", "low rank"),
            _awp,
        ),
        "awp-plus": Method(
            "splitting search, refit, nearest plane, coordinate descent: the least error per second",
            ("pruning", "quantization", "joint", "low rank"),
            _awp_plus,
            adjustable=True,
        ),
    }
)


def compress_layer(
    weight: Array,
    gram: Array,
    spec: CompressSpec,
    *,
    kept: tuple[int, ...] | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> Result:
    """Compress one linear layer.

    Args:
        weight: W, (d_out, d_in), float32 or float64.
        gram: C = E[x x^T] per token, (d_in, d_in).
        spec: method and constraint.
        kept: nonzeros of every row, for rows that differ (`--allocate`) under pattern "row"; the spec's own sparsity
            otherwise.
        backend: "numpy", "native" or "auto".
        threads: for the native backend; results do not depend on it.

    Returns:
        The result, theta in the dtype of W, scales exactly float16 values.

    Raises:
        ValueError: shapes that clash, NaN or infinity, a group size or pattern that does not divide d_in, or `kept`
            with a pattern, low rank or a method that does not prune.
    """
    if kept is not None and not METHODS[spec.method].handles("pruning" if spec.bits is None else "joint"):
        raise ValueError(
            f"{spec.method} does not prune to budgets of rows: drop kept, or take {DEFAULT_METHOD}"
        )
    problem = Problem(weight, gram)
    constraint = spec.constraint(problem.shape, kept=kept)
    if spec.interleaved:
        return _interleaved(problem, spec, backend=backend, threads=threads)
    return _run(problem, constraint, spec, engine=resolve(backend, threads=threads, constraint=constraint))


def _run(problem: Problem, constraint: Sparse | LowRank, spec: CompressSpec, *, engine: Backend) -> Result:
    method = METHODS[spec.method]
    options = {"effort": spec.effort, "damping": spec.damping} if method.adjustable else {}
    return method.run(problem, constraint, engine=engine, **options)


def _interleaved(problem: Problem, spec: CompressSpec, *, backend: str, threads: int | None) -> Result:
    """Compress with the inputs in the order of the K/64 blocks, where blocks and groups are consecutive, and put back.

    f does not change under a permutation of the inputs; a group of consecutive inputs would cut every block.
    """
    order = interleaved(problem.shape[1])
    back = np.argsort(order)
    turned = problem.derived(
        weight=np.ascontiguousarray(problem.weight[:, order]),
        gram=np.ascontiguousarray(problem.gram[np.ix_(order, order)]),
    )
    constraint = spec.consecutive().constraint(turned.shape)
    engine = resolve(backend, threads=threads, constraint=constraint)
    result = _run(turned, constraint, spec, engine=engine)
    parts = result.encoding
    put_back = {
        name: np.ascontiguousarray(part[..., back])
        for name in ("codes", "mask", "input_scales")
        if (part := getattr(parts, name)) is not None
    }
    encoding = replace(parts, **put_back, interleaved=True)
    return replace(result, theta=np.ascontiguousarray(result.theta[:, back]), encoding=encoding)
