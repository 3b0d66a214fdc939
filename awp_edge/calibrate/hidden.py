"""Hidden states on disk: one float32 file per block boundary, read and written window by window.

Plain reads and writes leave the data in the page cache, where it does not count as this process's memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import DamagedCheckpoint
from ..storage import writing

_FOOTER_BYTES = 8


class HiddenReader:
    """Read the inputs of one block, (n, length, d) float32, some windows at a time, and check their sum at the end."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self.shape = path, shape
        expected = 4 * int(np.prod(shape)) + _FOOTER_BYTES
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            found = "is missing" if size is None else f"has {size} of {expected} bytes"
            raise DamagedCheckpoint(f"the checkpoint is damaged: {path} {found}")

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Yield (at most size, length, d) tensors in order. Raises: DamagedCheckpoint where they have changed."""
        n, *rest = self.shape
        total = 0
        with self.path.open("rb") as file:
            for start in range(0, n, size):
                batch = torch.empty((min(size, n - start), *rest))
                file.readinto(batch.numpy().view(np.uint8).data)
                total = _add(total, batch)
                yield batch
            if file.read() != _footer(total):
                raise DamagedCheckpoint(f"the checkpoint is damaged: {self.path} has changed")


class HiddenWriter:
    """Append batches to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.total = file, 0

    def write(self, batch: torch.Tensor) -> None:
        """Append a float32 batch."""
        batch = batch.contiguous()
        self._file.write(batch.numpy().view(np.uint8).data)
        self.total = _add(self.total, batch)


@contextmanager
def hidden_writer(path: Path) -> Iterator[HiddenWriter]:
    """Write a hidden-state file that appears by rename when it is complete. Raises: AwpError on a full disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                writer = HiddenWriter(file)
                yield writer
                file.write(_footer(writer.total))
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _add(total: int, batch: torch.Tensor) -> int:
    """Return the sum of all 64-bit words (a last half word counts as one), modulo 2^64."""
    words = batch.numpy().reshape(-1).view(np.uint32)
    pairs = words[: words.size // 2 * 2].view(np.uint64)
    odd = int(words[-1]) if words.size % 2 else 0
    return (total + int(pairs.sum(dtype=np.uint64)) + odd) % 2**64


def _footer(total: int) -> bytes:
    return total.to_bytes(_FOOTER_BYTES, "little")
