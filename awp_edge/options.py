"""What a compression run is asked to do, and whether the layers of a model allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .allocate import ALLOCATIONS, WIDTHS, require_pattern, require_reachable
from .artifacts import LinearInfo
from .constraints import RowSparse, Sparse
from .errors import UsageError
from .methods import CompressSpec

AUTO_GROUP_SIZES = (128, 64, 32)
#: Loss gradients are taken on this many tokens at most; their head runs on so many positions at a time.
GRADIENT_TOKENS, HEAD_TOKENS = 32768, 256
#: Tokens of calibration text in one forward pass through a block.
BATCH_TOKENS = 2048
#: Damping of a spec that names none: C is estimated from the calibration text.
DAMPING = 0.03
#: The source of calibration text that is the model itself.
SELF = "self"
OFFERED_GROUP_SIZES = (256, 128, 64, 32, 16)

#: What becomes of a run's statistics; where complete ones are reused, no model runs.
Statistics = Literal["not kept", "saved", "reused"]


@dataclass(frozen=True)
class CompressOptions:
    """Bundle the options of a run.

    Args:
        spec: method and constraint of every layer.
        auto_group_size: replace the spec's group size by the largest of 128, 64, 32 that divides every layer.
        skip: patterns of linears that stay as they are; recorded and compared, applied by the statistics source.
        calibration: what was asked for: source, samples, seq_len, seed, order (plain JSON values).
        known: what the statistics will record of their calibration, as far as it is known before they are opened, such
            as text_sha256; a finished run that is resumed must have it in common.
        backend, threads: of the solvers.
        statistics: whether the run saves its statistics, or finds complete ones and needs no calibration.
        max_memory_bytes: refuse a run whose estimated peak is larger.
        allocate: "uniform", or budgets for every "layer" or "row" under the global sparsity, or for every "layer"
            under the global pattern, or width where no zeros are asked for (`awp_edge/allocate.py`).
        certificate: record what the theory says about every layer (`awp_edge/certificate.py`).
        resume: continue OUT.partial.
    """

    spec: CompressSpec
    auto_group_size: bool = False
    skip: tuple[str, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    threads: int | None = None
    statistics: Statistics = "not kept"
    max_memory_bytes: int | None = None
    allocate: str = "uniform"
    certificate: bool = True
    resume: bool = False

    @property
    def writes_text(self) -> bool:
        """Return whether the model writes its calibration text first, with all its weights in memory."""
        return self.calibration.get("source", SELF) == SELF and self.statistics != "reused"

    @property
    def needs_gradients(self) -> bool:
        """Return whether the dense model's loss has to be differentiated first."""
        asked = self.allocate != "uniform" or self.calibration.get("token_weights") == "loss"
        return asked and self.statistics != "reused"


def fit_spec(options: CompressOptions, layers: Sequence[LinearInfo]) -> CompressSpec:
    """Return the spec with its group size and damping settled, once every layer allows it.

    Raises: UsageError where there is no layer, a group size or pattern does not divide d_in, or nothing would be kept.
    """
    if not layers:
        raise UsageError("there is no linear layer to compress; give fewer --skip patterns")
    spec = options.spec
    if spec.damped and spec.damping is None:
        spec = replace(spec, damping=DAMPING)
    if options.allocate != "uniform":
        _check_allocation(options.allocate, spec)
    if spec.bits is not None:
        size = _auto_group_size(layers) if options.auto_group_size else spec.group_size
        spec = replace(spec, group_size=size)
        _check_group_size(size, layers)
    for shape, layer in {layer.shape: layer for layer in reversed(layers)}.items():
        try:
            constraint = spec.constraint(shape)
        except ValueError as error:
            raise UsageError(
                f"{layer.name}: {error}; choose a pattern that divides it, or --skip the layer"
            ) from None
        support = constraint.support if isinstance(constraint, Sparse) else None
        if isinstance(support, RowSparse) and support.counts == (0,):
            raise UsageError(
                f"sparsity {spec.sparsity:g} keeps k = 0 of the {shape[1]} weights a row in {layer.name}; ask for less"
            )
    return spec


def _check_allocation(allocate: str, spec: CompressSpec) -> None:
    if allocate not in ALLOCATIONS:
        raise UsageError(f"--allocate is {', '.join(ALLOCATIONS)}, not {allocate!r}")
    if spec.kind == "low rank" or ":" in spec.pattern or (not spec.pruned and spec.bits is None):
        raise UsageError(
            f"--allocate {allocate} moves zeros or bits to where they cost least: give --sparsity, --pattern K/64 or "
            "--bits, and no N:M or --rank"
        )
    if allocate == "row" and (spec.pattern != "row" or not spec.sparsity):
        raise UsageError(
            "--allocate row is for --sparsity: a pattern or a width is one for a matrix, take --allocate layer"
        )
    if spec.pattern != "row":
        require_pattern(spec.pattern)
    elif spec.pruned:
        require_reachable(spec.pruned)
    elif spec.bits in (WIDTHS[0], WIDTHS[-1]):
        raise UsageError(
            f"--allocate layer has nothing to choose at --bits {spec.bits}: widths are 2, 3, 4 and 8"
        )


def _auto_group_size(layers: Sequence[LinearInfo]) -> int:
    for size in AUTO_GROUP_SIZES:
        if all(layer.shape[1] % size == 0 for layer in layers):
            return size
    worst = next(layer for layer in layers if layer.shape[1] % AUTO_GROUP_SIZES[-1])
    raise UsageError(
        f"no group size of 128, 64, 32 divides d_in = {worst.shape[1]} of {worst.name}; "
        f"{_would_do(layers)}, or --skip the layer"
    )


def _check_group_size(size: int, layers: Sequence[LinearInfo]) -> None:
    clash = next((layer for layer in layers if layer.shape[1] % size), None)
    if clash is not None:
        raise UsageError(
            f"group size {size} does not divide d_in = {clash.shape[1]} of {clash.name}; {_would_do(layers)}"
        )


def _would_do(layers: Sequence[LinearInfo]) -> str:
    fitting = [s for s in OFFERED_GROUP_SIZES if all(layer.shape[1] % s == 0 for layer in layers)]
    return (
        f"sizes that would do: {', '.join(map(str, fitting))}"
        if fitting
        else "no size from 16 to 256 would do"
    )
