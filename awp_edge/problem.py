"""The layer problem: how far a compressed weight moves the layer's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

#: Largest asymmetry, relative to the largest entry, that is still taken for rounding.
SYMMETRY_TOLERANCE = 1e-3
#: Rows of C that are compared with its columns at a time: columns of a large matrix are far apart in memory.
STRIP = 64


@dataclass(frozen=True, eq=False)
class Problem:
    """Hold min 1/2 tr((W - Theta) C (W - Theta)^T) for one linear layer.

    Args:
        weight: W, (d_out, d_in), float32 or float64 (integers become float64).
        gram: C = E[x x^T] per token, (d_in, d_in), symmetric positive semidefinite, converted to W's dtype.

    Raises:
        ValueError: wrong shapes or dtypes, NaN or infinity, an asymmetric C or a negative diagonal.

    Source: AWP (arXiv 2506.10205), equations 2-4, with the factor 1/2.
    """

    weight: Array
    gram: Array

    def __post_init__(self) -> None:
        weight = as_matrix(self.weight, name="weight")
        gram = as_matrix(self.gram, name="gram", dtype=weight.dtype)
        d_in = weight.shape[1]
        if gram.shape != (d_in, d_in):
            raise ValueError(
                f"gram has shape {gram.shape}, but weight has d_in = {d_in}: expected ({d_in}, {d_in})"
            )
        _check_symmetric(gram)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "gram", gram)

    def derived(self, *, weight: Array | None = None, gram: Array | None = None) -> Problem:
        """Return the problem with another W or C made of its own: valid by construction, so unchecked."""
        other = object.__new__(Problem)
        object.__setattr__(other, "weight", self.weight if weight is None else weight)
        object.__setattr__(other, "gram", self.gram if gram is None else gram)
        return other

    @property
    def shape(self) -> tuple[int, int]:
        """Return (d_out, d_in)."""
        return self.weight.shape[0], self.weight.shape[1]

    def objective(self, theta: Array) -> float:
        """Return f(Theta) = 1/2 tr((W - Theta) C (W - Theta)^T); cost 2 d_out d_in^2."""
        residual = self.weight - theta
        return half_inner(residual, residual @ self.gram)

    def gradient(self, theta: Array) -> Array:
        """Return (Theta - W) C, (d_out, d_in)."""
        return (theta - self.weight) @ self.gram

    def lipschitz(self) -> float:
        """Return L = lambda_max(C), the Lipschitz constant of the gradient; cost O(d_in^3)."""
        return max(0.0, float(np.linalg.eigvalsh(self.gram)[-1]))

    def damped(self, share: float) -> Problem:
        """Return the problem with a share of every C_jj added to it, of at least a millionth of their mean.

        A share above rounding makes C definite, and holds weights near their own values along directions that the
        tokens of C hardly show; inputs that are never active stay nearly free.
        """
        diagonal = self.gram.diagonal()
        mean = float(diagonal.mean()) or 1.0
        gram = self.gram.copy()
        np.fill_diagonal(gram, diagonal + share * np.maximum(diagonal, 1e-6 * mean).astype(gram.dtype))
        return self.derived(gram=gram)

    def without_dead_inputs(self) -> Problem:
        """Return the problem with zero for weights that f does not see: of inputs that are never active, C_jj = 0."""
        dead = self.gram.diagonal() == 0
        if not dead.any():
            return self
        return self.derived(weight=np.where(dead, self.weight.dtype.type(0), self.weight))

    def relative_error(self, theta: Array) -> float:
        """Return f(Theta) / f(0), which compares across layers; 0/0 counts as 0."""
        return ratio(self.objective(theta), self.objective(np.zeros_like(self.weight)))


def ratio(value: float, reference: float) -> float:
    """Return value / reference, with 0/0 = 0."""
    if reference == 0.0:
        return 0.0 if value == 0.0 else float("inf")
    return value / reference


def half_inner(a: Array, b: Array) -> float:
    """Return 1/2 <a, b>, summed in float64 whatever the dtype."""
    return 0.5 * float(np.sum(a * b, dtype=np.float64))


def as_matrix(value: Any, *, name: str, dtype: np.dtype[Any] | None = None) -> Array:
    """Return a C-contiguous, finite float32 or float64 matrix (of `dtype`, if given); never a modified input."""
    matrix = np.asarray(value)
    if matrix.dtype.kind in "iub":
        matrix = matrix.astype(np.float64)
    if matrix.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name} has dtype {matrix.dtype}: convert it to float32 or float64")
    with np.errstate(over="ignore"):
        matrix = matrix.astype(dtype or matrix.dtype, copy=False)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            f"{name} has shape {matrix.shape}: expected a matrix with at least one row and column"
        )
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name} holds {matrix[row, column]} at row {row}, column {column}: only finite values work"
        )
    return np.ascontiguousarray(matrix)


def _check_symmetric(gram: Array) -> None:
    gap = max(
        float(np.abs(gram[first:last, :last] - gram[:last, first:last].T).max())
        for first, last in ((first, first + STRIP) for first in range(0, len(gram), STRIP))
    )
    scale = max(float(gram.max()), -float(gram.min()))
    if gap > SYMMETRY_TOLERANCE * scale:
        raise ValueError(
            f"gram is not symmetric: entries differ by {gap:.3g} of at most {scale:.3g}; pass E[x x^T]"
        )
    lowest = float(gram.diagonal().min())
    if lowest < 0:
        raise ValueError(f"gram has a negative diagonal entry {lowest:.3g}: a second moment E[x x^T] cannot")
