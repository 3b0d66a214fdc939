"""The options that choose a method and one layer's constraint."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .artifacts import LinearInfo, has_sparse_form
from .constraints import NM, BalancedBlock, Dense, IntGrid, LowRank, Reals, RowSparse, Sparse, Support
from .errors import UsageError

EFFORTS = ("fast", "default", "max")
DEFAULT_METHOD = "awp-plus"


@dataclass(frozen=True)
class CompressSpec:
    """Choose the method and the constraint of every layer.

    Args:
        method: a name in `METHODS`.
        sparsity: share of weights to prune, 0 <= s < 1; k = floor((1 - s) d_in + 1/2) stay in every row.
        pattern: "row", "N:M" or "K/64"; the last two imply their sparsity.
        bits: 2, 3, 4 or 8 for an integer grid, None for real values.
        group_size: inputs that share a scale: consecutive ones; for K/64 consecutive ones in the order of the blocks,
            where a sparse export needs whole blocks: a multiple of 64.
        rank: an integer is a rank, a fraction below 1 a share of the parameters; excludes the others.
        effort: "fast", "default" or "max".
        damping: share of every C_jj that awp-plus sees added to it while it prunes, from 0 up. None adds next to
            nothing in `compress_layer`, where C counts as exact, and what has proved itself for a model, whose C is
            an estimate (`options.DAMPING`).

    Raises:
        UsageError: values out of range, or options that contradict each other.
    """

    method: str = DEFAULT_METHOD
    sparsity: float = 0.0
    pattern: str = "row"
    bits: int | None = None
    group_size: int = 64
    rank: float | None = None
    effort: str = "default"
    damping: float | None = None

    def __post_init__(self) -> None:
        from .methods import METHODS  # the table's bodies take a spec's constraint, so it comes second

        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r} is unknown: choose one of {', '.join(METHODS)}")
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        if self.effort not in EFFORTS:
            raise UsageError(f"effort must be one of {', '.join(EFFORTS)}, got {self.effort!r}")
        self._check_pattern()
        self._check_values()
        method = METHODS[self.method]
        if not method.handles(self.kind):
            raise UsageError(
                f"method {self.method!r} does not do {self.kind}: it does {' and '.join(method.kinds)}"
            )
        self._check_damping()

    @property
    def damped(self) -> bool:
        """Return whether the method prunes, and sees C with damping when it does."""
        from .methods import METHODS

        return METHODS[self.method].adjustable and self.kind in ("pruning", "joint")

    @property
    def kind(self) -> str:
        """Return "pruning", "quantization", "joint" or "low rank"."""
        if self.rank is not None:
            return "low rank"
        sparse = self.pattern != "row" or self.sparsity > 0
        if self.bits is None:
            return "pruning"
        return "joint" if sparse else "quantization"

    @property
    def pruned(self) -> float:
        """Return the share of weights that the support leaves out."""
        if self.pattern == "row":
            return self.sparsity
        first, _, second = _parse_pattern(self.pattern)
        return 1 - first / second

    @property
    def interleaved(self) -> bool:
        """Return whether scales belong to groups of whole K/64 blocks instead of consecutive inputs."""
        return self.bits is not None and "/" in self.pattern

    @property
    def sparse_export(self) -> bool:
        """Return whether `export --weights auto` stores the nonzero codes alone; the group size has to be settled."""
        from .methods import METHODS

        turned = self.interleaved and not METHODS[self.method].scales_inputs
        return self.bits is not None and has_sparse_form(self.bits, self.group_size, interleaved=turned)

    def consecutive(self) -> CompressSpec:
        """Return the same of K/64 once the inputs are in the order of the blocks: K:64."""
        return replace(self, pattern=self.pattern.replace("/", ":"))

    def support(self, shape: tuple[int, int]) -> Support:
        """Return the support of a (d_out, d_in) layer."""
        if self.pattern != "row":
            first, separator, second = _parse_pattern(self.pattern)
            return NM(first, second) if separator == ":" else BalancedBlock(first, second)
        if self.sparsity == 0:
            return Dense()
        # Six decimals undo what binary floats make of 0.3, so that halves round up.
        return RowSparse(int(np.floor(round((1 - self.sparsity) * shape[1], 6) + 0.5)))

    def kept(self, shape: tuple[int, int]) -> int | None:
        """Return how many weights stay in every row of a (d_out, d_in) layer, None for low rank."""
        if self.rank is not None:
            return None
        support = self.support(shape)
        if isinstance(support, RowSparse):
            return support.counts[0]
        name, (count, *_), period, _ = support.descriptor()
        return shape[1] if name == "dense" else shape[1] * count // period

    def constraint(self, shape: tuple[int, int], *, kept: tuple[int, ...] | None = None) -> Sparse | LowRank:
        """Return the constraint of a (d_out, d_in) layer; `kept` are its rows' own budgets where each has one.

        Raises:
            ValueError: a group size or pattern that does not divide d_in; budgets of rows with a pattern or low rank.
        """
        if kept is not None and (self.rank is not None or self.pattern != "row"):
            fixed = f"pattern {self.pattern}" if self.rank is None else f"rank {self.rank:g}"
            raise ValueError(
                f"rows cannot have budgets of their own under {fixed}: drop kept, or take pattern row"
            )
        if self.rank is not None:
            return LowRank(self.rank_for(shape))
        grid = Reals() if self.bits is None else IntGrid(self.bits, self.group_size, half_scales=True)
        constraint = Sparse(self.support(shape) if kept is None else RowSparse(kept), grid)
        constraint.check(shape)
        return constraint

    def rank_for(self, shape: tuple[int, int]) -> int:
        """Return the rank: as given (at most full), or the largest whose factors fit the share of parameters."""
        assert self.rank is not None
        if self.rank >= 1:
            return min(int(self.rank), *shape)
        exact = self.rank * shape[0] * shape[1] / (shape[0] + shape[1])
        return max(1, int(round(exact, 9)))  # 0.58 of 100 x 100 is 29, not 28.999...

    def notes(self, layers: Sequence[LinearInfo]) -> tuple[str, ...]:
        """Return a line for each thing that is served but may not be what was meant; the group size is settled."""
        from .methods import METHODS

        notes, size = [], self.group_size
        if self.bits is not None and (size < 16 or size & (size - 1)):
            notes.append(
                f"export --format genai refuses group size {size}: ONNX Runtime takes powers of two from 16 up; "
                "use --format hf, or another --group-size"
            )
        if METHODS[self.method].scales_inputs:
            notes.append(
                f"export --format genai refuses the input scales of {self.method}, which no node of its graph "
                "carries; use --format hf, or another --method"
            )
        if self.rank is not None:
            larger = [x for x in layers if self.rank_for(x.shape) * sum(x.shape) > math.prod(x.shape)]
            if larger:
                d_out, d_in = larger[0].shape
                notes.append(
                    f"rank {self.rank:g} stores more than the dense weight in {len(larger)} of {len(layers)} linears: "
                    f"in {larger[0].name}, {d_out} x {d_in}, ranks up to {d_out * d_in // (d_out + d_in)} do not"
                )
        return tuple(notes)

    def _check_damping(self) -> None:
        if self.damping is None:
            return
        if not 0 <= self.damping < np.inf:
            raise UsageError(f"damping must be a share from 0 up, got {self.damping:g}")
        if not self.damped:
            raise UsageError(
                f"damping {self.damping:g} does nothing for {self.method} {self.kind}: it is for {DEFAULT_METHOD} "
                "where it prunes"
            )

    def _check_pattern(self) -> None:
        if self.pattern == "row":
            return
        first, separator, second = _parse_pattern(self.pattern)
        if not 0 < first <= second or (separator == "/" and second != 64):
            raise UsageError(
                f"pattern {self.pattern!r} must be N:M with 0 < N <= M, or K/64 with 0 < K <= 64"
            )
        if self.sparsity and abs(self.sparsity - self.pruned) > 1e-9:
            raise UsageError(
                f"pattern {self.pattern} implies sparsity {self.pruned:g}: drop --sparsity {self.sparsity:g}"
            )

    def _check_values(self) -> None:
        if self.bits is not None:
            try:
                IntGrid(self.bits, self.group_size)
            except ValueError as error:
                raise UsageError(str(error)) from None
        if self.rank is None:
            return
        if not 0 < self.rank < np.inf or (self.rank >= 1 and self.rank != int(self.rank)):
            raise UsageError(f"rank must be a positive integer or a share below 1, got {self.rank:g}")
        if self.bits is not None or self.sparsity or self.pattern != "row":
            raise UsageError(
                "--rank excludes --sparsity, --pattern and --bits: low rank is a constraint of its own"
            )


def _parse_pattern(pattern: str) -> tuple[int, str, int]:
    match = re.fullmatch(r"(\d+)([:/])(\d+)", pattern)
    if match is None:
        raise UsageError(f"pattern {pattern!r} is not one of row, N:M (2:4) or K/64 (32/64)")
    return int(match[1]), match[2], int(match[3])
