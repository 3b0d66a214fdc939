"""A small residual stack in NumPy with its folder and its statistics source: the pipeline without torch.

Run as a program it compresses, so that tests can kill a real process:
    python tests/toy_stack.py MODEL OUT '{"sparsity": 0.5}' [--resume]
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from awp_edge.artifacts import Gram, LinearInfo
from awp_edge.compress import compress_model
from awp_edge.errors import AwpError
from awp_edge.methods import CompressSpec
from awp_edge.models import ModelFolder
from awp_edge.options import CompressOptions
from awp_edge.record import CompressSummary
from awp_edge.storage import StoredTensor, atomic_file, write_json, write_tensors

WIDTH, INNER, TOKENS = 64, 128, 192


def build(folder: Path, *, n_blocks: int = 4, dtype: str = "F32", seed: int = 0) -> Path:
    """Write config.json and model.safetensors of a stack h + down(tanh(up(h) * gate(h)))."""
    rng = np.random.default_rng(seed)
    tensors = {"embed.weight": rng.standard_normal((32, WIDTH), dtype=np.float32)}
    for block in range(n_blocks):
        for name, shape in {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}.items():
            weight = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(shape[1])
            tensors[f"layers.{block}.{name}.weight"] = weight.astype(np.float32)
        tensors[f"layers.{block}.norm.weight"] = np.ones(WIDTH, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"architectures": ["ToyStack"], "num_hidden_layers": n_blocks})
    write_json(folder / "tokenizer.json", {"toy": True})
    write_tensors(
        folder / "model.safetensors", {name: stored(array, dtype) for name, array in tensors.items()}
    )
    return folder


def stored(array: np.ndarray, dtype: str) -> StoredTensor:
    """Return an array under another storage dtype."""
    if dtype == "BF16":
        return StoredTensor("BF16", (array.view(np.uint32) >> 16).astype(np.uint16))
    return StoredTensor.of(array.astype({"F32": np.float32, "F16": np.float16}[dtype]))


class ToySource:
    """Stream hidden states through the stack; the inputs of block i lie in hidden-(i mod 2).npy."""

    def __init__(self, folder: ModelFolder, state: Path, *, pause_s: float = 0.0) -> None:
        self._folder, self._state, self._pause_s = folder, state, pause_s
        self.n_blocks = int(folder.config["num_hidden_layers"])
        tokens = np.arange(TOKENS) % 32
        self.calibration = {"source": "toy", "tokens_sha256": hashlib.sha256(tokens.tobytes()).hexdigest()}
        if not self._hidden_file(0).is_file():
            self._save(0, folder.tensor("embed.weight")[tokens])

    def linears(self, block: int) -> Sequence[LinearInfo]:
        """List gate, up and down; the first two share their input."""
        names = [f"layers.{block}.{name}" for name in ("gate", "up", "down")]
        inputs = [names[0], names[0], names[2]]
        return [
            LinearInfo(n, i, self._folder.shape(f"{n}.weight")) for n, i in zip(names, inputs, strict=True)
        ]

    def weight(self, name: str) -> np.ndarray:
        """Return the dense weight."""
        return self._folder.tensor(f"{name}.weight")

    def statistics(self, block: int) -> Mapping[str, Gram]:
        """Return both Gram matrices."""
        hidden = np.load(self._hidden_file(block))
        dense = {info.name: self.weight(info.name) for info in self.linears(block)}
        _, inner = self._forward(block, hidden, dense)
        time.sleep(self._pause_s)
        return {f"layers.{block}.gate": gram(hidden), f"layers.{block}.down": gram(inner)}

    def advance(self, block: int, weights: Mapping[str, np.ndarray]) -> None:
        """Write the next block's inputs."""
        outputs, _ = self._forward(block, np.load(self._hidden_file(block)), weights)
        self._save(block + 1, outputs)
        time.sleep(self._pause_s)

    def _forward(
        self, block: int, hidden: np.ndarray, weights: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        gate, up, down = (weights[f"layers.{block}.{name}"] for name in ("gate", "up", "down"))
        inner = np.tanh((hidden @ gate.T) * (hidden @ up.T))
        return hidden + inner @ down.T, inner

    def _hidden_file(self, block: int) -> Path:
        return self._state / f"hidden-{block % 2}.npy"

    def _save(self, block: int, hidden: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, hidden)
        with atomic_file(self._hidden_file(block)) as file:
            file.write(buffer.getvalue())


def gram(inputs: np.ndarray) -> Gram:
    """Return E[x x^T]."""
    matrix = inputs.T @ inputs / np.float32(len(inputs))
    return Gram((matrix + matrix.T) / np.float32(2), len(inputs))


def compress(
    model: Path, out: Path, *, resume: bool = False, pause_s: float = 0.0, **spec: object
) -> CompressSummary:
    """Compress a toy folder with the options of a `CompressSpec`."""
    folder = ModelFolder(model)
    options = CompressOptions(CompressSpec(**spec), backend="numpy", resume=resume)
    return compress_model(
        lambda state: ToySource(folder, state, pause_s=pause_s), folder, out, options=options
    )


if __name__ == "__main__":
    try:
        compress(Path(sys.argv[1]), Path(sys.argv[2]), resume="--resume" in sys.argv,
                 pause_s=float(os.environ.get("TOY_PAUSE_S", "0")), **json.loads(sys.argv[3]))  # fmt: skip
    except AwpError as error:
        sys.exit(f"{error}")
