"""The compressed folder: what one layer is stored as, and how a folder is written, checked and read.

manifest.json            what was done: model, calibration, spec, versions, every layer's error; SHA-256 of the files
blocks/block-000.safetensors   the compressed linears of one decoder block
rest.safetensors         every other tensor, bit for bit
report.json              timings and machine; compress.log; config, generation config and tokenizer files
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constraints import interleaved
from .errors import AwpError
from .solvers.base import Encoding, Result
from .storage import StoredTensor, TensorFile, file_sha256, read_json, write_tensors

SCHEMA_VERSION = 1
KIND = "awp-edge compressed model"
EDGE_KIND = "awp-edge edge model"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.json"
REST_FILE = "rest.safetensors"
LOG_FILE = "compress.log"

_DENSE_BITS = {2: 2, 3: 4, 4: 4, 8: 8}
_SCALE_BITS = 32
_BLOCK = 64


@dataclass(frozen=True)
class LinearInfo:
    """Name a linear layer, the first linear that shares its input, and its (d_out, d_in)."""

    name: str
    input: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class Gram:
    """Hold C = E[x x^T] of one linear input: float32, symmetric, (d_in, d_in), a mean over n_tokens tokens."""

    matrix: NDArray[np.float32]
    n_tokens: int


@dataclass(frozen=True)
class Sensitivity:
    """Hold how much the model's loss minds errors in the outputs of one block's linears, from the first n tokens.

    gram: C of the dense model, by input.  rows: E[g_i^2] of every output, (d_out,), by linear, g the loss gradient.
    tokens: ||g_t|| / mean ||g||, (n,), by input, a mean over the linears that read it. All float32.
    """

    gram: Mapping[str, NDArray[np.float32]]
    rows: Mapping[str, NDArray[np.float32]]
    tokens: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class CompressedLayer:
    """Hold one compressed linear as its file does.

    encoding: codes, scales (float32 holding float16 values) and zeros, with input_scales where AWQ scaled the inputs |
        left and right | neither; mask if sparse.
    values: float32 (d_out, d_in) where the encoding has neither codes nor factors.  bits: of a code, else None.
    """

    name: str
    shape: tuple[int, int]
    encoding: Encoding
    bits: int | None = None
    values: NDArray[np.float32] | None = None

    @staticmethod
    def of(name: str, result: Result, *, bits: int | None) -> CompressedLayer:
        """Wrap a solver's result. Raises: ValueError where what would be stored is not exactly theta."""
        parts, theta = result.encoding, np.asarray(result.theta, dtype=np.float32)
        stored = parts.codes is not None or parts.left is not None
        layer = CompressedLayer(
            name, (theta.shape[0], theta.shape[1]), parts, bits if parts.codes is not None else None,
            None if stored else theta,
        )  # fmt: skip
        if parts.codes is not None and not np.array_equal(layer.dense(), theta):
            raise ValueError(f"{name}: codes, scales and zero points do not give back the solver's weight")
        return layer

    def dense(self) -> NDArray[np.float32]:
        """Return the weight, float32 (d_out, d_in): (code - zero) scale (/ input scale), left right, or the values."""
        parts = self.encoding
        if parts.codes is not None and parts.scales is not None and parts.zeros is not None:
            order = interleaved(self.shape[1]) if parts.interleaved else np.arange(self.shape[1])
            groups = parts.codes[:, order].reshape(*parts.scales.shape, -1).astype(np.int16)
            steps = (groups - parts.zeros[..., None]).astype(np.float32)
            weight = np.empty(self.shape, dtype=np.float32)
            weight[:, order] = (steps * parts.scales[..., None].astype(np.float32)).reshape(self.shape)
            return (
                weight
                if parts.input_scales is None
                else np.asarray(weight / parts.input_scales, dtype=np.float32)
            )
        if parts.left is not None and parts.right is not None:
            return np.asarray(parts.left @ parts.right, dtype=np.float32)
        assert self.values is not None
        return self.values

    def sparsity(self) -> float:
        """Return the share of weights that are exactly zero; 0 for low rank."""
        if self.encoding.left is not None:
            return 0.0
        return 1.0 - np.count_nonzero(self.dense()) / (self.shape[0] * self.shape[1])

    def stored_bits(self) -> int:
        """Return the bits that `export --weights auto` stores for this layer.

        K/64 patterns with 4 bits: those of `sparse_bits`. Anything else is stored dense. Codes: 2, 4, 4, 8 bits for
        bits = 2, 3, 4, 8 (the operator has no 3-bit form); a 32-bit scale per group; a zero point of the code's width
        per group, rows padded to bytes, left out where every one is the middle code; a 32-bit scale per input where AWQ
        scaled the inputs.
        Real values and low-rank factors: 32 bits a number. Zeros cost as much as other values: no mask is stored.
        """
        parts, (d_out, d_in) = self.encoding, self.shape
        if parts.left is not None and parts.right is not None:
            return 32 * (parts.left.size + parts.right.size)
        if parts.zeros is None or self.bits is None:
            return 32 * d_out * d_in
        middle = 2 ** (_DENSE_BITS[self.bits] - 1)
        n_groups, zero_points = parts.zeros.shape[1], bool(np.any(parts.zeros != middle))
        turned = parts.interleaved and parts.input_scales is None
        if has_sparse_form(self.bits, d_in // n_groups, interleaved=turned) and parts.mask is not None:
            kept = int(parts.mask.reshape(d_out, _BLOCK, -1).sum(axis=1).max(initial=0))
            return sparse_bits(self.shape, kept=kept, group_size=d_in // n_groups, zero_points=zero_points)
        input_bits = 0 if parts.input_scales is None else _SCALE_BITS * d_in
        return input_bits + grid_bits(self.shape, self.bits, n_groups, zero_points=zero_points)

    def bits_per_weight(self) -> float:
        """Return stored_bits over d_out d_in."""
        return self.stored_bits() / (self.shape[0] * self.shape[1])


def grid_bits(shape: tuple[int, int], bits: int, n_groups: int, *, zero_points: bool = True) -> int:
    """Return the bits of a quantized layer in a dense export: codes, scales and zero points, see `stored_bits`."""
    d_out, d_in = shape
    width = _DENSE_BITS[bits]
    zero_bits = 8 * -(-n_groups * width // 8) if zero_points else 0
    return d_out * (d_in * width + n_groups * _SCALE_BITS + zero_bits)


def has_sparse_form(bits: int, group_size: int, *, interleaved: bool) -> bool:
    """Return whether a K/64 layer is exported with the codes of nonzero weights alone."""
    return interleaved and bits == 4 and group_size % _BLOCK == 0


def sparse_bits(shape: tuple[int, int], *, kept: int, group_size: int, zero_points: bool = True) -> int:
    """Return the bits of a K/64 layer in a sparse export: masks, 4-bit codes, float16 scales, 4-bit zero points.

    Rows are filled up to tiles of 16, groups stored as 128 or 64 inputs; 128 bytes guard the codes.
    """
    rows, d_in = -(-shape[0] // 16) * 16, shape[1]
    blocks, groups = d_in // _BLOCK, d_in // (128 if group_size % 128 == 0 else 64)
    codes = 8 * (blocks // 2 * kept + blocks % 2 * ((kept + 1) // 2))
    return rows * (_BLOCK * blocks + codes + groups * (16 + 4 * zero_points)) + 8 * 128


def block_file(block: int) -> str:
    """Return a block's file relative to the folder."""
    return f"blocks/block-{block:03d}.safetensors"


def write_block(path: Path, layers: Sequence[CompressedLayer]) -> None:
    """Write one block's layers atomically; equal layers give equal bytes. Codes up to 4 bits go two to a byte."""
    tensors: dict[str, NDArray[Any]] = {}
    about: dict[str, Any] = {}
    for layer in layers:
        parts = layer.encoding
        about[layer.name] = {"shape": list(layer.shape), "bits": layer.bits}
        if parts.interleaved:
            about[layer.name]["interleaved"] = True
        named: dict[str, NDArray[Any] | None] = {
            "values": layer.values,
            "left": parts.left,
            "right": parts.right,
        }
        if parts.codes is not None and parts.scales is not None:
            packed = _pack_nibbles(parts.codes) if (layer.bits or 8) <= 4 else parts.codes
            named |= {"codes": packed, "scales": _half(layer.name, parts.scales), "zeros": parts.zeros}
            named["mask"] = None if parts.mask is None else np.packbits(parts.mask, axis=1)
            named["input_scales"] = parts.input_scales
        tensors |= {f"{layer.name}.{part}": array for part, array in named.items() if array is not None}
    metadata = {"schema_version": str(SCHEMA_VERSION), "layers": json.dumps(about, sort_keys=True)}
    write_tensors(path, tensors, metadata=metadata)


def read_layer(file: TensorFile, name: str) -> CompressedLayer:
    """Read one layer of a block file. Raises: AwpError where the file does not hold it whole."""
    try:
        about = json.loads(file.metadata["layers"])[name]
        shape, bits = (int(about["shape"][0]), int(about["shape"][1])), about["bits"]
        turned = bool(about.get("interleaved", False))
    except (KeyError, ValueError, TypeError):
        raise AwpError(f"{file.path} does not describe {name}; the file is damaged: compress again") from None
    held = set(file.names())

    def part(kind: str) -> NDArray[Any] | None:
        return file.tensor(f"{name}.{kind}") if f"{name}.{kind}" in held else None

    codes, scales, zeros, packed_mask, values = map(part, ("codes", "scales", "zeros", "mask", "values"))
    left, right, input_scales = part("left"), part("right"), part("input_scales")
    if codes is not None and (bits or 8) <= 4:
        codes = _unpack_nibbles(codes, shape[1])
    whole = (codes, scales, zeros) if codes is not None else (left, right) if left is not None else (values,)
    if any(array is None for array in whole):
        raise AwpError(f"{file.path} lacks parts of {name}; the file is damaged: compress again")
    mask = None if packed_mask is None else np.unpackbits(packed_mask, axis=1, count=shape[1]).astype(bool)
    if values is not None and np.count_nonzero(values) < values.size:
        mask = values != 0
    encoding = Encoding(codes, scales, zeros, mask, left, right, input_scales, turned)
    return CompressedLayer(name, shape, encoding, bits, values)


class CompressedModel:
    """Read a compressed folder, one layer or tensor at a time.

    Raises: AwpError for another kind of folder, another schema version, or a file that is missing or cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.config: dict[str, Any] = read_json(self.path / "config.json")
        self._rest = TensorFile(self.path / REST_FILE)
        self._blocks = {str(layer["name"]): int(layer["block"]) for layer in self.manifest["layers"]}
        self._files = {
            block: TensorFile(self.path / block_file(block)) for block in set(self._blocks.values())
        }

    def layer_names(self) -> list[str]:
        """List the compressed linears in the model's order."""
        return list(self._blocks)

    def layer(self, name: str) -> CompressedLayer:
        """Read one compressed linear."""
        if name not in self._blocks:
            raise AwpError(f"{self.path} has no compressed layer {name}; see its manifest.json")
        return read_layer(self._files[self._blocks[name]], name)

    def parts(self, name: str) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each stored part of a linear ("codes", "scales", "left", ...) without reading it."""
        file, prefix = self._files[self._blocks[name]], f"{name}."
        return {n.removeprefix(prefix): file.shape(n) for n in file.names() if n.startswith(prefix)}

    def rest_names(self) -> list[str]:
        """List the tensors that were not compressed."""
        return self._rest.names()

    def rest_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that was not compressed."""
        return self._rest.shape(name)

    def rest_dtype(self, name: str) -> str:
        """Return the stored dtype of a tensor that was not compressed, for example "BF16"."""
        return self._rest.dtype(name)

    def rest(self, name: str) -> StoredTensor:
        """Read a tensor that was not compressed, as stored."""
        return self._rest.stored(name)

    @cached_property
    def tensors(self) -> Mapping[str, str]:
        """Map each compressed linear to the name its weight had in the model's own files."""
        return {str(layer["name"]): str(layer["tensor"]) for layer in self.manifest["layers"]}

    def verify(self) -> None:
        """Compare every weight file with the manifest's SHA-256. Raises: AwpError naming the first that differs."""
        require_hashes(self.path, self.manifest["files"], advice="copy the folder again or compress again")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a compressed folder's manifest."""
    if not (path / MANIFEST_FILE).is_file():
        raise AwpError(f"{path} has no {MANIFEST_FILE}; give a folder that awp-edge compress made")
    manifest = read_json(path / MANIFEST_FILE)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise AwpError(
            f"{path / MANIFEST_FILE} does not describe a compressed model; give a folder that compress made"
        )
    found = manifest.get("schema_version")
    if found != SCHEMA_VERSION:
        raise AwpError(
            f"{path} has schema version {found}, this program reads {SCHEMA_VERSION}; compress the model again"
        )
    if not isinstance(manifest.get("layers"), list) or not isinstance(manifest.get("files"), dict):
        raise AwpError(
            f"{path / MANIFEST_FILE} lacks its layers or files; it is damaged: compress the model again"
        )
    return manifest


def require_hashes(folder: Path, files: Mapping[str, str], *, advice: str) -> None:
    """Compare files with their SHA-256. Raises: AwpError naming the first that differs and giving `advice`."""
    for name, expected in sorted(files.items()):
        actual = file_sha256(folder / name)
        if actual != expected:
            raise AwpError(
                f"{folder / name} has SHA-256 {actual[:12]}..., expected {expected[:12]}...; {advice}"
            )


def folder_kind(path: str | Path) -> str:
    """Return "hf", "compressed" or "edge". Raises: AwpError for anything else."""
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise AwpError(f"{folder} {what}; give a model folder")
    manifest = read_json(folder / MANIFEST_FILE) if (folder / MANIFEST_FILE).is_file() else {}
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind in (KIND, EDGE_KIND):
        return "compressed" if kind == KIND else "edge"
    if (folder / "genai_config.json").is_file():
        return "edge"
    if (folder / "config.json").is_file():
        return "hf"
    raise AwpError(
        f"{folder} is neither a Hugging Face, a compressed nor an edge folder; it has no config.json"
    )


def _half(name: str, scales: NDArray[Any]) -> NDArray[np.float16]:
    half = scales.astype(np.float16)
    if not np.array_equal(half.astype(scales.dtype), scales):
        raise ValueError(f"{name}: scales are not float16 values; fit the grid with half_scales=True")
    return half


def _pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    padded = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return np.bitwise_or(padded[:, 0::2], padded[:, 1::2] << 4, dtype=np.uint8)


def _unpack_nibbles(packed: NDArray[np.uint8], d_in: int) -> NDArray[np.uint8]:
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
    return np.ascontiguousarray(codes[:, :d_in])
