"""Make an honest subject for INT4 of weights that already lie on a 4-bit grid: `python bench/dither.py MODEL OUT`.

Every decoder-block matrix gets uniform noise one step wide, (max - min) / 15 of its block of 32 inputs, which takes
the weights off that grid; the other tensors stay as they are.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

BLOCK, STEPS = 32, 15


def dithered(weight: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the matrix with noise of one step of each row's blocks of 32 inputs."""
    blocks = weight.reshape(weight.shape[0], -1, BLOCK)
    step = (blocks.max(axis=2, keepdims=True) - blocks.min(axis=2, keepdims=True)) / STEPS
    noise = rng.uniform(-0.5, 0.5, blocks.shape).astype(np.float32)
    return (blocks + step * noise).reshape(weight.shape)


def main() -> None:
    """Copy the model folder with its decoder blocks dithered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    shutil.copytree(options.model, options.out)
    for path in sorted(options.out.glob("*.safetensors")):
        tensors = load_file(path)
        for name in sorted(tensors):
            if ".layers." in name and tensors[name].ndim == 2:
                tensors[name] = dithered(tensors[name], rng)
        save_file(tensors, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
