"""What the theory says about one compressed layer: steps, stationarity, conditioning, distance from the optimum.

Everything about C is computed once per Gram matrix. Everything about Theta is computed in float64 on a few evenly
spaced rows: rows are independent and share C, so their shares stand for the layer's; each bound holds for its rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context

import numpy as np
from numpy.typing import NDArray

from .constraints import (
    NM,
    BalancedBlock,
    BlockSparse,
    Dense,
    LowRank,
    Mask,
    Reals,
    RowSparse,
    Sparse,
    Support,
    interleaved,
)
from .constraints.values import BoundGrid, IntGrid
from .lower_bound import (
    FixedGrid,
    Matrix,
    Separated,
    cardinality,
    definite_inverse,
    dual_bound,
    largest_eigenvalue,
    separate,
)
from .plus import swap_labels
from .problem import Array, half_inner, ratio
from .solvers.base import Encoding, Result
from .spec import CompressSpec
from .theory import low_rank_optimum

#: Wider layers get no bound and no smallest eigenvalue: eight matrices of this width in float64 are 1.1 GB.
MAX_INPUTS = 4096
#: Rows looked at, and rows whose C_SS is inverted.
ROWS, CONDITION_ROWS = 16, 2
#: Significant digits kept: a resumed run must write the same bytes.
DIGITS = 4
#: Shares below this are rounding.
NOISE = 1e-6


@dataclass(frozen=True, eq=False)
class GramFacts:
    """Hold what certificates need of one C, (d, d) float64.

    largest, smallest: extreme eigenvalues by Lanczos (smallest 0 where C is singular to working precision).
    part: C with C_jj = 1 for inputs that are always zero, its inverse and diagonal; None for a singular or wide C.
    """

    gram: Matrix
    largest: float
    smallest: float
    stable_rank: float
    part: Separated | None

    @staticmethod
    def of(gram: Matrix, part: Separated | None) -> GramFacts:
        """Return the facts of C and what `separate` makes of it; cost O(d^2)."""
        largest = largest_eigenvalue(gram)
        whole = part is not None and bool((gram.diagonal() > 0).all())
        smallest = 1 / largest_eigenvalue(part.inverse) if part is not None and whole else 0.0
        rank = ratio(float(np.vdot(gram, gram)), largest**2) if largest > 0 else float("inf")
        return GramFacts(gram, largest, smallest, rank, part)

    def of_coordinates(self, order: NDArray[np.intp], scales: Matrix) -> GramFacts:
        """Return the facts of the C of weights (s_j w_j) whose inputs are put in an order."""
        part, scales = self.part, scales[order]
        if part is not None:
            diagonal = part.diagonal[order] / scales**2
            part = Separated(
                _turned(part.gram, order, 1 / scales), _turned(part.inverse, order, scales), diagonal
            )
        return GramFacts.of(_turned(self.gram, order, 1 / scales), part)


@dataclass(frozen=True)
class Certificate:
    """State what is known about one layer's result.

    relative_step: eta L of the method's step, None where there is none.  covered: whether it is at most 1 (T02).
    condition, stable_rank: of C.  rows: how many rows the figures below are taken from.
    support_condition: largest condition number of C_SS seen.  rate: q at the step 1/L on it (T06).
    descent_gain, coordinate_gain, refit_gain: shares of f that one step of 1/L, the best single change in every row
        (an entry, a swap of two, or a code), and an exact refit on the support would still remove; where AWQ scaled
        the inputs, L is that of the scaled problem.
    lower_bound: share of f that no weight in the set can avoid (T13; T09 for low rank).  at_most: its inverse, "at
        most this many times the least possible f".  bound_for: "support", "codes at these scales", "rank", "none", or
        "exact" where f is 0.
    """

    relative_step: float | None
    covered: bool | None
    condition: float | None
    stable_rank: float | None
    rows: int
    support_condition: float | None
    rate: float | None
    descent_gain: float
    coordinate_gain: float | None
    refit_gain: float | None
    lower_bound: float
    at_most: float | None
    bound_for: str

    def to_json(self) -> dict[str, float | int | str | None]:
        """Return plain JSON values of four digits, those of a bound to its safe side; infinity as None."""
        safe = {"lower_bound": ROUND_FLOOR, "at_most": ROUND_CEILING}
        return {key: _shortened(value, rounding=safe.get(key)) for key, value in asdict(self).items()}


def _shortened(value: float | int | str | None, *, rounding: str | None) -> float | int | str | None:
    if not isinstance(value, float):
        return value
    if abs(value) < NOISE:
        return 0.0
    return (
        float(Context(prec=DIGITS, rounding=rounding).create_decimal(value)) if np.isfinite(value) else None
    )


def gram_facts(gram: Array) -> GramFacts:
    """Return what all layers with this input share; cost about 6 d^3 flops.

    Memory: two matrices (d, d) in float64, eight up to MAX_INPUTS (two of them in LAPACK).
    """
    c = gram.astype(np.float64)
    c += c.T
    c /= 2
    if len(c) > MAX_INPUTS:
        return GramFacts.of(c, None)
    whole = c.copy()
    np.fill_diagonal(whole, np.where(c.diagonal() > 0, c.diagonal(), 1.0))
    return GramFacts.of(c, separate(whole))


def _turned(matrix: Matrix, order: NDArray[np.intp], factors: Matrix) -> Matrix:
    turned = matrix[np.ix_(order, order)]
    turned *= factors  # in place: the matrices are what memory is planned for
    turned *= factors[:, None]
    return turned


def certify(
    weight: Array,
    constraint: Sparse | LowRank,
    result: Result,
    *,
    facts: GramFacts,
    step: float | None = None,
) -> Certificate:
    """Return the certificate of one layer.

    Args:
        weight: W, (d_out, d_in).
        constraint: the set; a grid may be unbound, the result's own scales are taken.
        result: what the method returned.
        facts: of the layer's C.
        step: eta of the method, None where it takes no gradient steps.
    """
    rows = _sampled_rows(constraint, len(weight))
    constraint = _of_rows(constraint, rows, in_blocks=result.encoding.interleaved)
    sample = _Sample.of(weight, constraint, result, facts=facts, rows=rows)
    support = sample.support_facts()
    if isinstance(constraint, LowRank):
        share, kind = _rank_bound(weight, result, constraint, facts=facts)
    else:
        share, kind = sample.lower_bound(constraint)
    relative = None if step is None else step * facts.largest
    return Certificate(
        relative_step=relative,
        covered=None if relative is None else bool(relative <= 1),
        condition=_inverse_share(facts.smallest, facts.largest),
        stable_rank=facts.stable_rank,
        rows=len(rows),
        support_condition=support[0],
        rate=support[1],
        descent_gain=sample.descent_gain(constraint),
        coordinate_gain=sample.coordinate_gain(constraint),
        refit_gain=support[2],
        lower_bound=share,
        at_most=None if share <= 0 else 1 / share,
        bound_for=kind,
    )


def certify_layer(
    weight: Array,
    result: Result,
    *,
    facts: GramFacts,
    spec: CompressSpec,
    kept: tuple[int, ...] | None = None,
) -> Certificate:
    """Return the certificate of what a named method returned.

    The step is the paper's, 2/||C||_F or 1.5/||C||_F on a grid; the other methods take no gradient steps.
    """
    constraint = spec.constraint((weight.shape[0], weight.shape[1]), kept=kept)
    norm = float(np.linalg.norm(facts.gram))
    step = None
    if spec.method == "awp" and isinstance(constraint, Sparse) and norm > 0:
        step = (2.0 if isinstance(constraint.values, Reals) else 1.5) / norm
    return certify(weight, constraint, result, facts=facts, step=step)


def _rank_bound(weight: Array, result: Result, constraint: LowRank, *, facts: GramFacts) -> tuple[float, str]:
    """Return the share of f that no weight of the rank avoids: the optimum is known for the whole matrix (T09)."""
    if len(facts.gram) > MAX_INPUTS:
        return 0.0, "none"
    residual = weight.astype(np.float64) - result.theta
    found = half_inner(residual, residual @ facts.gram)
    return (
        (min(1.0, low_rank_optimum(weight, facts.gram, constraint.rank) / found), "rank")
        if found > 0
        else (1.0, "exact")
    )


def _inverse_share(smallest: float, largest: float) -> float:
    return largest / smallest if smallest > 0 else float("inf")


@dataclass(frozen=True, eq=False)
class _Sample:
    """Hold the sampled rows in float64: W, Theta, the gradient and f of each row; the grid they lie on, if any.

    All in the coordinates of the codes, where groups are consecutive and inputs as scaled as the codes are: f and the
    set are the same there.
    """

    weight: Matrix
    theta: Matrix
    gradient: Matrix
    objective: Matrix
    grid: BoundGrid | None
    facts: GramFacts

    @staticmethod
    def of(
        weight: Array,
        constraint: Sparse | LowRank,
        result: Result,
        *,
        facts: GramFacts,
        rows: NDArray[np.intp],
    ) -> _Sample:
        w, theta = weight[rows].astype(np.float64), result.theta[rows].astype(np.float64)
        parts = result.encoding
        if parts.interleaved or parts.input_scales is not None:
            order, scales = _coordinates(parts, weight.shape[1])
            w, theta = (np.ascontiguousarray((a * scales)[:, order]) for a in (w, theta))
            facts = facts.of_coordinates(order, scales)
        gradient = (theta - w) @ facts.gram
        f = np.maximum(np.sum((theta - w) * gradient, axis=1) / 2, 0)
        return _Sample(w, theta, gradient, f, _grid_of(constraint, result, rows=rows), facts)

    def support_facts(self) -> tuple[float | None, float | None, float | None]:
        """Return the worst condition number of C_SS, the rate on it at 1/L, and what a refit would gain."""
        if self.grid is not None or not (self.theta == 0).any() or not self.facts.largest:
            return None, None, None
        worst, weakest, left, total = 1.0, self.facts.largest, 0.0, 0.0
        for i in range(0, len(self.theta), max(1, len(self.theta) // CONDITION_ROWS)):
            kept = np.flatnonzero(self.theta[i])
            if not kept.size:
                continue
            inner = self.facts.gram[np.ix_(kept, kept)]
            inverse = definite_inverse(inner)
            if inverse is None:
                worst, weakest = float("inf"), 0.0
                continue
            pull = self.gradient[i, kept]
            smallest = 1 / largest_eigenvalue(inverse)
            worst, weakest = max(worst, largest_eigenvalue(inner) / smallest), min(weakest, smallest)
            f = float(self.objective[i])
            left, total = left + min(float(pull @ inverse @ pull) / 2, f), total + f
        return worst, 1 - weakest / self.facts.largest, ratio(left, total)

    def descent_gain(self, constraint: Sparse | LowRank) -> float:
        """Return the share of f that one projected gradient step of 1/L removes (0 at a fixed point)."""
        if isinstance(constraint, LowRank) or not self.facts.largest:
            return 0.0
        values = self.grid or Reals()
        moved = Sparse(constraint.support, values).project(self.theta - self.gradient / self.facts.largest)
        after = np.sum((moved - self.weight) @ self.facts.gram * (moved - self.weight)) / 2
        return max(0.0, 1 - ratio(float(after), float(self.objective.sum()))) if self.objective.any() else 0.0

    def coordinate_gain(self, constraint: Sparse | LowRank) -> float | None:
        """Return the share of f that the best single change in every row removes (T04 d, e); None where not defined."""
        if isinstance(constraint, LowRank) or not self.objective.any():
            return None if isinstance(constraint, LowRank) else 0.0
        movable = (self.theta != 0) | _free_places(constraint.support, self.theta)
        if self.grid is not None:
            gains = self._code_gains(self.grid, movable=movable)
        else:
            labels = swap_labels(constraint.support, self.theta.shape[1])
            gains = np.array([self._swap_gain(i, labels, movable=movable[i]) for i in range(len(self.theta))])
        return float(np.minimum(gains, self.objective).sum() / self.objective.sum())

    def _code_gains(self, grid: BoundGrid, *, movable: Mask) -> Matrix:
        scales = np.repeat(grid.scales.astype(np.float64), grid.spec.group_size, axis=1)
        diagonal, codes = self.facts.gram.diagonal(), grid.encode(self.theta)
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.nan_to_num(np.rint(-self.gradient / (diagonal * scales)), posinf=0, neginf=0)
        shift = np.where(movable, np.clip(codes + wanted, 0, grid.spec.top) - codes, 0) * scales
        change = shift * self.gradient + shift**2 * diagonal / 2
        return np.maximum(-change, 0).max(axis=1)

    def _swap_gain(self, i: int, labels: NDArray[np.intp] | None, *, movable: Mask) -> float:
        """Return how much the best swap of two entries of equal label, or change of one, lowers f in a row."""
        gram, g, theta = self.facts.gram, self.gradient[i], self.theta[i]
        diagonal = np.maximum(gram.diagonal(), np.finfo(np.float64).tiny)
        inside, outside = np.flatnonzero(theta), np.flatnonzero(theta == 0)
        best = float(np.max(g[movable] ** 2 / (2 * diagonal[movable]), initial=0.0))
        if labels is None or not inside.size or not outside.size:
            return best
        removed = -theta[inside] * g[inside] + gram.diagonal()[inside] * theta[inside] ** 2 / 2
        pull = g[outside] - gram[np.ix_(inside, outside)] * theta[inside, None]
        gain = pull**2 / (2 * diagonal[outside]) - removed[:, None]
        gain[labels[inside][:, None] != labels[outside]] = 0.0
        return max(best, float(gain.max()))

    def lower_bound(self, constraint: Sparse) -> tuple[float, str]:
        """Return the share of these rows' f that no member of the set avoids, and what set it holds for."""
        if not self.objective.any():
            return 1.0, "exact"
        kept = cardinality(constraint.support, self.weight.shape[1])
        relaxed = kept or (FixedGrid(self.grid) if self.grid is not None else None)
        if self.facts.part is None or relaxed is None:
            return 0.0, "none"
        alive = self.facts.gram.diagonal() > 0  # what is always zero costs nothing and needs no budget
        bound = dual_bound(self.weight * alive, self.theta * alive, part=self.facts.part, relaxed=relaxed)
        share = float(np.minimum(bound, self.objective).sum() / self.objective.sum())
        return share, "codes at these scales" if kept is None else "support"


def _coordinates(parts: Encoding, d_in: int) -> tuple[NDArray[np.intp], Matrix]:
    """Return the order and the scales of the inputs in which the codes are."""
    scales = np.ones(d_in) if parts.input_scales is None else parts.input_scales.astype(np.float64)
    return interleaved(d_in) if parts.interleaved else np.arange(d_in), scales


def _sampled_rows(constraint: Sparse | LowRank, d_out: int) -> NDArray[np.intp]:
    """Return evenly spaced rows; whole strips where rows of a strip share their support."""
    blocks = constraint.support if isinstance(constraint, Sparse) else None
    strip = blocks.rows if isinstance(blocks, BlockSparse) else 1
    count = max(1, ROWS // strip)
    first = np.unique(np.arange(count) * (d_out // strip) // count) * strip
    return (first[:, None] + np.arange(strip)).ravel()


def _free_places(support: Support, theta: Matrix) -> Mask:
    """Return the zeros that may become nonzero by themselves: those of groups with fewer nonzeros than allowed."""
    match support:
        case Dense():
            return theta == 0
        case RowSparse(n) | NM(n, _) | BalancedBlock(n, _):
            allowed = np.reshape(n, (-1, 1))
        case _:
            return np.zeros(theta.shape, bool)
    labels = swap_labels(support, theta.shape[1])
    assert labels is not None
    used = np.zeros((len(theta), int(labels.max()) + 1), dtype=np.intp)
    np.add.at(used.T, labels, (theta != 0).T)
    return (theta == 0) & (used < allowed)[:, labels]


def _of_rows(constraint: Sparse | LowRank, rows: NDArray[np.intp], *, in_blocks: bool) -> Sparse | LowRank:
    """Return the constraint of some rows in the codes' order: their own budgets, blocks of consecutive inputs."""
    if not isinstance(constraint, Sparse):
        return constraint
    match constraint.support:
        case RowSparse(tuple(k)):
            return replace(constraint, support=RowSparse(tuple(k[i] for i in rows)))
        case BalancedBlock(k, block) if in_blocks:
            return replace(constraint, support=NM(k, block))
    return constraint


def _grid_of(constraint: Sparse | LowRank, result: Result, *, rows: NDArray[np.intp]) -> BoundGrid | None:
    """Return the grid of these rows, if they have codes."""
    parts = result.encoding
    if isinstance(constraint, LowRank) or parts.scales is None or parts.zeros is None:
        return None
    spec = constraint.values.spec if isinstance(constraint.values, BoundGrid) else constraint.values
    assert isinstance(spec, IntGrid)
    return BoundGrid(spec, parts.scales[rows].astype(np.float64), parts.zeros[rows])
