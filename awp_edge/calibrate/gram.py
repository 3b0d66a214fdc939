"""Accumulate Gram matrices C = E[x x^T] of linear inputs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .. import native
from ..artifacts import Gram
from ..errors import AwpError

PRODUCTS = ("float32", "bfloat16")
_FLUSH_TOKENS = 8192
_STRIP = 256


class GramAccumulator:
    """Sum x x^T over tokens: products and short sums in float32, long sums in float64, the upper triangle only.

    Args:
        name: of the linear whose input this is, for messages.
        d_in: the input's width.
        products: "bfloat16" rounds x to bfloat16 first (sums stay float32) where the native core can; "float32".
        token_weights: "norm" gives every token the weight 1 / ||x||^2, so that a few tokens with massive activations do
            not decide what C is; an array holds the weights of all tokens in order; "uniform".
        threads: of the native core; None takes all.

    Memory: 8 d_in^2 bytes, and 4 d_in^2 more without the native core. Cost: n d_in^2 multiply-adds.
    """

    def __init__(
        self,
        name: str,
        d_in: int,
        *,
        products: str = "float32",
        token_weights: str | NDArray[np.float32] = "uniform",
        threads: int | None = None,
    ) -> None:
        if products not in PRODUCTS:
            raise ValueError(f"products must be one of {', '.join(PRODUCTS)}, got {products!r}")
        if isinstance(token_weights, str) and token_weights not in ("uniform", "norm"):
            raise ValueError(f"token weights must be uniform, norm or an array, got {token_weights!r}")
        self._name, self._products, self._threads = name, products, threads
        self._token_weights, self._weight = token_weights, 0.0
        self._total = np.zeros((d_in, d_in))
        self._partial: torch.Tensor | None = None if native.available() else torch.zeros((d_in, d_in))
        self._pending = 0
        self.n_tokens = 0

    def add(self, x: torch.Tensor) -> None:
        """Add the tokens of x (..., d_in), float32."""
        rows = x.detach().reshape(-1, x.shape[-1])
        rows = self._weighted(rows)
        self.n_tokens += rows.shape[0]
        if self._partial is None:
            native.gram(rows.numpy(), self._total, products=self._products, threads=self._threads)
            return
        for start in range(0, rows.shape[0], _FLUSH_TOKENS):
            self._add_chunk(rows[start : start + _FLUSH_TOKENS], self._partial)

    def result(self) -> Gram:
        """Return the mean over tokens. Raises: AwpError where an input was NaN or infinite."""
        self._flush()
        upper = np.triu(self._total / (self._weight or 1.0)).astype(np.float32)
        matrix = upper + np.triu(upper, 1).T
        if not np.isfinite(matrix).all():
            raise AwpError(
                f"{self._name}: its input has NaN or infinite entries (or squares beyond float32); check the weights"
            )
        return Gram(matrix, self.n_tokens)

    def _weighted(self, rows: torch.Tensor) -> torch.Tensor:
        """Return sqrt(w) x for every token and add the weights up; a token of zeros weighs nothing."""
        if isinstance(self._token_weights, str) and self._token_weights == "uniform":
            self._weight += rows.shape[0]
            return rows
        if isinstance(self._token_weights, str):
            squares = rows.square().sum(dim=1, dtype=torch.float64)
            weights = torch.where(squares > 0, 1 / squares, 0.0)
        else:
            given = self._token_weights[self.n_tokens : self.n_tokens + rows.shape[0]]
            if len(given) != len(rows):
                raise AwpError(
                    f"{self._name} is called more than once a token; --token-weights loss does not go with it"
                )
            weights = torch.from_numpy(given.astype(np.float64))
        self._weight += float(weights.sum())
        return rows * weights.sqrt().to(rows.dtype)[:, None]

    def _add_chunk(self, rows: torch.Tensor, partial: torch.Tensor) -> None:
        if self._pending + rows.shape[0] > _FLUSH_TOKENS:
            self._flush()
        self._pending += rows.shape[0]
        for start in range(0, rows.shape[1], _STRIP):
            stop = start + _STRIP
            partial[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])

    def _flush(self) -> None:
        if self._partial is not None and self._pending:
            self._total += self._partial.numpy()
            self._partial.zero_()
            self._pending = 0
