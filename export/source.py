"""What an export reads: a compressed folder or a plain Hugging Face folder, one tensor at a time."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CompressedLayer, CompressedModel, folder_kind
from ..errors import AwpError
from ..models import ModelFolder
from ..storage import StoredTensor
from .packing import PackedLinear, check_block_size, pack_linear


class Source:
    """Read the weights of a compressed or a plain model folder.

    Raises:
        AwpError: a folder that is neither, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        kind = folder_kind(path)
        if kind == "edge":
            raise AwpError(
                f"{path} is an exported folder already; give the compressed folder it was made from"
            )
        self.path = path
        self.compressed = CompressedModel(path) if kind == "compressed" else None
        self._folder = ModelFolder(path) if self.compressed is None else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return config.json."""
        return self.compressed.config if self.compressed is not None else self._folder.config

    @property
    def architecture(self) -> str:
        """Return the model class that config.json names."""
        names = self.config.get("architectures") or [str(self.config.get("model_type", "unknown"))]
        return str(names[0])

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Return the compressed linears; none in a plain folder."""
        return tuple(self.compressed.layer_names()) if self.compressed is not None else ()

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        entries = self.compressed.manifest["layers"] if self.compressed is not None else []
        return {entry["name"]: (int(entry["shape"][0]), int(entry["shape"][1])) for entry in entries}

    def layer(self, name: str) -> CompressedLayer:
        """Read one compressed linear."""
        return self.compressed.layer(name)

    def tensor_name(self, layer: str) -> str:
        """Return the name a linear's weight has in the model's own files."""
        return self.compressed.tensors[layer]

    def rest_names(self) -> list[str]:
        """Return every tensor that was not compressed."""
        return self.compressed.rest_names() if self.compressed is not None else self._folder.tensor_names()

    def shape(self, layer: str) -> tuple[int, int]:
        """Return a compressed linear's (d_out, d_in)."""
        return self._shapes[layer]

    def dense(self, layer: str) -> NDArray[np.float32]:
        """Return a compressed linear's weight, (d_out, d_in) float32."""
        return self.layer(layer).dense()

    def rest_dtype(self, name: str) -> str:
        """Return the stored dtype of a tensor that was not compressed, for example "BF16"."""
        return self.compressed.rest_dtype(name) if self.compressed is not None else self._folder.dtype(name)

    def rest_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that was not compressed."""
        return self.compressed.rest_shape(name) if self.compressed is not None else self._folder.shape(name)

    def rest(self, name: str) -> StoredTensor:
        """Read a tensor that was not compressed, as stored."""
        return self.compressed.rest(name) if self.compressed is not None else self._folder.stored(name)

    def packed(self, name: str) -> PackedLinear:
        """Return a quantized linear in the operator's layout: the very codes, scales and zero points it was given.

        Raises:
            AwpError: a group size that the operator does not take.
        """
        layer = self.layer(name)
        encoding = layer.encoding
        group = layer.shape[1] // encoding.scales.shape[1]
        check_block_size(name, layer.shape[1], group)
        return pack_linear(encoding.codes, encoding.scales, encoding.zeros, bits=layer.bits, block_size=group)

    def fusible(self) -> bool:
        """Return whether linears that share an input are all of one kind, so that they may be one matrix."""
        parents = {name.rpartition(".")[0] for name in self.layers}
        mixed = any(n.endswith(".weight") and n[: -len(".weight")].rpartition(".")[0] in parents
                    and len(self.rest_shape(n)) == 2 for n in self.rest_names())  # fmt: skip
        kinds = {(layer.bits, layer.encoding.left is None) for layer in map(self.layer, self.layers)}
        return not mixed and len(kinds) <= 1 and all(plain for _, plain in kinds)
