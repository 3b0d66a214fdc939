"""The limits of a machine for sparse products: reading memory, expanding weights, multiplying expanded ones.

DECA (arXiv 2505.19349) writes the speed of a product of compressed weights as the smallest of three: memory bandwidth
times weights a byte, what the vector units decode, what the multipliers take. All three are measured here with the
operator's own kernels; a decode speed beside them says how near the limit it is. Where the operator may multiply
weights that were expanded beforehand (`library.expanded_bytes`), the limits are those of the form that may be faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import library
from .sparse_packing import BLOCK, GUARD, TILE, SparseLinear

READ_BYTES = 2**28  # a thread: more than caches hold
PREFILL_ROWS = 256
DECODES, PREFILLS = 1000, 8  # products a call: long enough that all threads are at it


def random_sparse(shape: tuple[int, int], *, kept: int, group: int, seed: int = 0) -> SparseLinear:
    """Return a packed layer of random bytes, not made from a dense one; kept = -1: half of the weights anywhere."""
    rng = np.random.default_rng(seed)
    tiles, blocks = -(-shape[0] // TILE), shape[1] // BLOCK
    masks = _random_masks(rng, (tiles, blocks, TILE), kept)
    counts = np.bitwise_count(masks).astype(np.int64) if hasattr(np, "bitwise_count") else _counts(masks)
    paired = counts[:, : blocks // 2 * 2].reshape(tiles, blocks // 2, 2, TILE).max(axis=2).sum(axis=(1, 2))
    lengths = paired + (((counts[:, -1] + 1) // 2).sum(axis=1) if blocks % 2 else 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    codes = np.pad(rng.integers(0, 256, int(offsets[-1]), dtype=np.uint8), GUARD)
    groups = (tiles, shape[1] // group)
    scales = rng.uniform(0.001, 0.1, (*groups, TILE)).astype(np.float16)
    zeros = rng.integers(0, 2**64, groups, dtype=np.uint64)
    return SparseLinear(
        masks,
        codes,
        scales,
        zeros,
        None if kept >= 0 else offsets,
        group,
        kept,
        kept >= 0,
        (shape[0], shape[1]),
    )


def _random_masks(rng: np.random.Generator, shape: tuple[int, ...], kept: int) -> NDArray[np.uint64]:
    if kept < 0:
        return rng.integers(0, 2**64, shape, dtype=np.uint64)
    ranks = rng.random((int(np.prod(shape)), BLOCK), dtype=np.float32).argsort(axis=1)
    bits = np.packbits(ranks < kept, axis=1, bitorder="little")
    return bits.view("<u8").reshape(shape).astype(np.uint64)


def _counts(masks: NDArray[np.uint64]) -> NDArray[np.int64]:
    octets = np.ascontiguousarray(masks).view(np.uint8).reshape(*masks.shape, 8)
    return np.unpackbits(octets, axis=-1).sum(axis=-1).astype(np.int64)


def measure(*, threads: int, kept: int = 32, group: int = 64, accuracy_level: int = 4,
            read: float | None = None) -> dict[str, Any]:  # fmt: skip
    """Measure the three limits with all threads at work.

    Args:
        threads: how many.
        kept: codes a block; -1: half of the weights anywhere.
        group: inputs that share a scale.
        accuracy_level: 4 for int8 inputs, 0 for float32.
        read: what `read_rate` measured, which is measured anew where it is None.

    Returns:
        kernels, threads, bits_per_weight (stored), form ("stored" or "expanded": what a token reads), read_gb_s, and in
        1e9 weights a second memory_gweights (that form at that speed), decode_gweights (one row, weights in the cache),
        matrix_gweights (many rows, a row's weights counted once a row).
    """
    small = random_sparse((256, 1024), kept=kept, group=group)
    one, many = (np.ones((rows, 1024), dtype=np.float32) for rows in (1, PREFILL_ROWS))
    read = read_rate(threads) if read is None else read
    weights = small.shape[0] * small.shape[1]
    bits = 8 * (small.n_bytes - 2 * GUARD) / weights
    besides = read_besides(small, accuracy_level=accuracy_level)
    forms = {"stored": bits} | ({"expanded": bits + 8 * besides / weights} if besides else {})
    found = {}
    for form, read_bits in forms.items():
        decode = _rate(
            lambda i, expand=form == "expanded": library.multiply(
                small, one, accuracy_level=accuracy_level, repeats=DECODES, expand=expand
            ),
            DECODES * weights,
            threads=threads,
        )
        found[form] = read * 8 / read_bits / 1e9, decode / 1e9
    form = max(found, key=lambda name: min(found[name]))
    matrix = _rate(
        lambda i: library.multiply(small, many, accuracy_level=accuracy_level, repeats=PREFILLS),
        PREFILLS * PREFILL_ROWS * weights,
        threads=threads,
    )
    return {
        "kernels": library.kernels(), "threads": threads, "bits_per_weight": bits, "form": form,
        "read_gb_s": read / 1e9,
        "memory_gweights": found[form][0], "decode_gweights": found[form][1], "matrix_gweights": matrix / 1e9,
    }  # fmt: skip


def read_rate(threads: int) -> float:
    """Return how many bytes a second all threads together read from memory."""
    buffers = [np.ones(READ_BYTES // 8, dtype=np.uint64) for _ in range(threads)]
    return _rate(lambda i: library.read(buffers[i]), READ_BYTES, threads=threads)


def combined(parts: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
    """Return the limits of a model whose weights are stored in several ways, from those of each and their weights.

    Times add up: every rate is that of all weights in the time that the parts take together. The form is "mixed" where
    theirs differ.
    """
    total = sum(weights for _, weights in parts)
    found = dict(parts[0][0])
    found["bits_per_weight"] = sum(part["bits_per_weight"] * weights for part, weights in parts) / total
    for rate in ("memory_gweights", "decode_gweights", "matrix_gweights"):
        found[rate] = total / sum(weights / part[rate] for part, weights in parts)
    if len({part["form"] for part, _ in parts}) > 1:
        found["form"] = "mixed"
    return found


def read_besides(packed: SparseLinear, *, accuracy_level: int) -> int:
    """Return how many bytes more than the stored ones a token reads of an expanded weight; 0 where none is expanded."""
    expanded = library.expanded_bytes(packed) if accuracy_level == 4 else 0
    return expanded - packed.masks.nbytes - (packed.codes.nbytes - 2 * GUARD) if expanded else 0


def _rate(work: Callable[[int], object], amount: int, *, threads: int, runs: int = 5) -> float:
    """Return the best rate of `threads` threads that each do `amount` per call."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(runs + 1):
            start = time.perf_counter()
            list(pool.map(work, range(threads)))
            best = min(best, time.perf_counter() - start)
    return threads * amount / best
