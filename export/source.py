"""What an export reads: a compressed folder or a plain Hugging Face folder, one tensor at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CompressedLayer, CompressedModel, folder_kind
from ..constraints import interleaved
from ..errors import AwpError
from ..models import ModelFolder
from ..storage import StoredTensor
from .packing import PackedLinear, check_block_size, pack_linear
from .sparse_packing import SparseCodes, fits


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
        self._plain = ModelFolder(path) if kind == "hf" else None

    @property
    def _model(self) -> CompressedModel:
        assert self.compressed is not None  # a plain folder has no layers to ask for
        return self.compressed

    @property
    def _folder(self) -> ModelFolder:
        assert self._plain is not None
        return self._plain

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
        return self._model.layer(name)

    def tensor_name(self, layer: str) -> str:
        """Return the name a linear's weight has in the model's own files."""
        return self._model.tensors[layer]

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
        """Return a quantized linear in the operator's layout: its very codes, scales and zero points."""
        layer = self.layer(name)
        parts = layer.encoding
        assert layer.bits is not None and parts.codes is not None
        assert parts.scales is not None and parts.zeros is not None
        group = layer.shape[1] // parts.scales.shape[1]
        codes = parts.codes[:, interleaved(layer.shape[1])] if parts.interleaved else parts.codes
        packed = pack_linear(codes, parts.scales, parts.zeros, bits=layer.bits, block_size=group)
        return replace(packed, interleaved=parts.interleaved)

    def sparse(self, name: str) -> SparseCodes:
        """Return a pruned and quantized linear as the sparse layout takes it."""
        parts = self.layer(name).encoding
        assert parts.codes is not None and parts.mask is not None
        assert parts.scales is not None and parts.zeros is not None
        return SparseCodes(parts.codes, parts.mask, parts.scales, parts.zeros, parts.interleaved)

    def factors(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return (left (d_out, r), right (r, d_in)) of a low-rank linear, float32; None for another."""
        parts = self.layer(name).encoding
        if parts.left is None or parts.right is None:
            return None
        return parts.left.astype(np.float32), parts.right.astype(np.float32)

    def unfit(self, name: str) -> str | None:
        """Return why a linear cannot be stored sparse, or None; reads no data."""
        parts, shape = self._model.parts(name), self.shape(name)
        group = self.group_size(name)
        if group is None or "mask" not in parts:
            return "is not both pruned and quantized"
        if parts["codes"][1] == shape[1]:
            return "has 8-bit codes"
        if not fits(shape[1], group):
            return f"has {shape[1]} inputs in groups of {group}: 64 must divide both"
        return None

    def in_blocks(self) -> bool:
        """Return whether the linears have a K/64 pattern and 4 bits; reads the first of them."""
        first = self.layer(self.layers[0]) if self.layers else None
        return first is not None and first.bits == 4 and first.encoding.interleaved

    def group_size(self, name: str) -> int | None:
        """Return the inputs that share a scale, None where a linear is not quantized; reads no data."""
        scales = self._model.parts(name).get("scales")
        return None if scales is None else self.shape(name)[1] // scales[1]

    def check_groups(self) -> None:
        """Raise AwpError for a group size that ONNX Runtime does not take, or for codes of scaled inputs."""
        for name in self.layers:
            if "input_scales" in self._model.parts(name):
                raise AwpError(
                    f"{name} has AWQ's input scales, which no node of the edge graph carries; "
                    "use --format hf, or compress with the default method"
                )
            group = self.group_size(name)
            if group is not None:
                check_block_size(name, self.shape(name)[1], group)

    def fusible(self, *, sparse: bool) -> bool:
        """Return whether linears that share an input are alike in kind, width and group: they may be one matrix.

        sparse: they are stored sparse, so that patterns must be alike too.
        """
        parents = {name.rpartition(".")[0] for name in self.layers}
        left_out = any(
            name.endswith(".weight")
            and name.removesuffix(".weight").rpartition(".")[0] in parents
            and len(self.rest_shape(name)) == 2
            for name in self.rest_names()
        )
        factored = any("left" in self._model.parts(name) for name in self.layers)
        entries = self._model.manifest["layers"] if self.layers else ()
        kinds = {
            (self.group_size(entry["name"]), entry.get("bits"), entry.get("pattern") if sparse else None)
            for entry in entries
        }
        return not left_out and not factored and len(kinds) <= 1
