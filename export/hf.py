"""Write a model as a Hugging Face folder: compressed linears as plain matrices, pruned weights exactly 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..models import WEIGHTS_FILE, copy_companions
from ..storage import StoredTensor, write_json, write_tensor_stream
from .source import Source

#: Model types whose linears keep their weight as (d_in, d_out).
_TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONFIG_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_hf(source: Source, out: Path, *, dtype: str | None = None) -> str:
    """Write safetensors, config and tokenizer files; return the dtype of the floats.

    Args:
        source: the model.
        out: an existing folder.
        dtype: "F32", "F16" or "BF16"; None: that of the model where it holds every weight exactly, else "F32".
    """
    dtype = dtype or exact_dtype(source)
    turn = source.config.get("model_type") in _TRANSPOSED
    layers = {source.tensor_name(name): name for name in source.layers}
    shapes = {tensor: (dtype, source.shape(name)[:: -1 if turn else 1]) for tensor, name in layers.items()}
    for name in source.rest_names():
        kept = source.rest_dtype(name)
        shapes[name] = (dtype if kept in _CONFIG_NAMES else kept, source.rest_shape(name))

    def read(tensor: str) -> StoredTensor:
        if tensor in layers:
            weight = source.dense(layers[tensor])
            return narrowed(np.ascontiguousarray(weight.T) if turn else weight, dtype)
        stored = source.rest(tensor)
        return narrowed(stored.widened(), dtype) if stored.dtype in _CONFIG_NAMES else stored

    copy_companions(source.path, out)
    config = {
        key: value
        for key, value in source.config.items()
        if key not in ("torch_dtype", "quantization_config")
    }
    write_json(out / "config.json", {**config, "dtype": _CONFIG_NAMES[dtype]})
    write_tensor_stream(out / WEIGHTS_FILE, shapes, read, metadata={"format": "pt"})
    return dtype


def exact_dtype(source: Source) -> str:
    """Return the dtype of the tensors that were not compressed if it holds every compressed weight, else "F32"."""
    stored = {source.rest_dtype(name) for name in source.rest_names()} & set(_CONFIG_NAMES)
    if len(stored) != 1:
        return "F32"
    (dtype,) = stored
    exact = dtype == "F32" or all(_survives(source.dense(name), dtype) for name in source.layers)
    return dtype if exact else "F32"


def narrowed(values: NDArray[np.float32], dtype: str) -> StoredTensor:
    """Return float32 values in a stored dtype; bfloat16 and float16 round to nearest even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return StoredTensor(dtype, (rounded >> np.uint32(16)).astype(np.uint16))
    return StoredTensor.of(values.astype(np.float16 if dtype == "F16" else np.float32))


def _survives(values: NDArray[np.float32], dtype: str) -> bool:
    return np.array_equal(narrowed(values, dtype).widened(), values)
