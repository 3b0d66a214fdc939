"""Gram matrices in a folder: written while a dense model is streamed, read again by later runs without a forward pass.

manifest.json    model hash, calibration, every linear of every block, SHA-256 of the files; written last
unfinished.json    model hash and calibration of the files that are there, until the manifest is
sensitivity-000.safetensors    what the loss gradient says of a block, where it was asked for
block-000.safetensors    C (d_in, d_in) float32 of every distinct input, by the name of its first linear
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Gram, LinearInfo, Sensitivity
from ..errors import AwpError, UsageError
from ..models import ModelFolder
from ..storage import (
    TensorFile,
    file_sha256,
    partial_of,
    read_json,
    sole_owner,
    write_json,
    write_tensors,
    writing,
)
from .names import skipped_names

SCHEMA_VERSION = 1
KIND = "awp-edge statistics"
MANIFEST_FILE = "manifest.json"
UNFINISHED_FILE = "unfinished.json"
#: What a key stands for in a set that was saved before there was a choice.
_ABSENT: Mapping[str, str] = MappingProxyType({"token_weights": "uniform"})
Weights = Mapping[str, NDArray[np.float32]]


class DenseStream(Protocol):
    """The one-shot stream whose statistics are saved; it skips no linear."""

    n_blocks: int
    calibration: Mapping[str, Any]
    n_tokens: int

    def linears(self, block: int) -> Sequence[LinearInfo]: ...
    def weight(self, name: str) -> NDArray[np.float32]: ...
    def is_transposed(self, name: str) -> bool: ...
    def statistics(self, block: int) -> Mapping[str, Gram]: ...
    def sensitivity(self, block: int) -> Sensitivity: ...
    @property
    def has_sensitivity(self) -> bool: ...
    def advance(self, block: int, weights: Weights) -> None: ...


def has_statistics(directory: Path) -> bool:
    """Return whether a folder holds a complete set."""
    return (directory / MANIFEST_FILE).is_file()


def saved_calibration(directory: Path) -> Mapping[str, Any]:
    """Return what a complete set was calibrated on. Raises: AwpError where it is no set of this version."""
    calibration: Mapping[str, Any] = _read_manifest(directory)["calibration"]
    return calibration


def require_apart(directory: Path, out: Path) -> None:
    """Raise UsageError where OUT or OUT.partial, which a run fills and renames, would hold the statistics."""
    for folder in (out, partial_of(out)):
        if directory.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"--statistics {directory} lies in {folder}: give a folder outside of OUT")


def require_claimable(directory: Path) -> None:
    """Raise AwpError where a folder has other files, or some of the kind and nothing says of what calibration.

    Or where another process is filling it.
    """
    left = _files(directory)
    others = sorted(set(directory.iterdir()) - set(left)) if directory.is_dir() else []
    if others and not (directory / UNFINISHED_FILE).is_file():
        raise AwpError(
            f"{directory} has {others[0].name}, which is no statistics; give an empty --statistics folder"
        )
    if left and not (directory / UNFINISHED_FILE).is_file():
        raise AwpError(
            f"{directory} has {left[0].name} of an unknown calibration; give an empty --statistics folder"
        )
    if directory.is_dir():
        with sole_owner(directory):
            pass


class SavedStatistics:
    """Read statistics from a folder instead of running the model.

    Args:
        folder: the model they were made from.
        directory: the folder of statistics.
        skip: shell patterns of linears to leave alone.
        asked: entries of the calibration that must be equal, those that are None aside.

    Raises: AwpError where the set is incomplete, damaged, of another version, another model or another calibration.
    """

    def __init__(
        self, folder: ModelFolder, directory: Path, *, skip: Sequence[str] = (),
        asked: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._directory = folder, Path(directory)
        self._manifest = _read_manifest(self._directory)
        _require_equal(self._directory, "model hash", saved=self._manifest["model_hash"], asked=folder.hash())
        self.calibration: Mapping[str, Any] = self._manifest["calibration"]
        for key, value in (asked or {}).items():
            if value is not None:
                _require_equal(
                    self._directory, key, saved=self.calibration.get(key, _ABSENT.get(key)), asked=value
                )
        blocks = [[_info(entry) for entry in block] for block in self._manifest["linears"]]
        skipped = skipped_names([info.name for block in blocks for info in block], skip)
        self._blocks = [tuple(info for info in block if info.name not in skipped) for block in blocks]
        self._transposed = frozenset(self._manifest["transposed"])
        self.n_blocks = len(self._blocks)

    def linears(self, block: int) -> Sequence[LinearInfo]:
        """List the linears of a block that are not skipped."""
        return self._blocks[block]

    def weight(self, name: str) -> NDArray[np.float32]:
        """Read a linear's weight, (d_out, d_in) float32."""
        weight = self._folder.tensor(f"{name}.weight", finite=True).astype(np.float32, copy=False)
        return np.ascontiguousarray(weight.T) if name in self._transposed else weight

    def statistics(self, block: int) -> Mapping[str, Gram]:
        """Read the Gram matrices of a block. Raises: AwpError where its file is missing or has changed."""
        file = TensorFile(self._checked(block_name(block)))
        return {name: Gram(file.tensor(name), self._manifest["n_tokens"]) for name in file.names()}

    def sensitivity(self, block: int) -> Sensitivity:
        """Read a block's sensitivity. Raises: AwpError where it was not saved, is missing or has changed."""
        if sensitivity_name(block) not in self._manifest["files"]:
            raise AwpError(
                f"{self._directory} was saved without loss gradients; give --allocate an empty --statistics folder"
            )
        return read_sensitivity(self._checked(sensitivity_name(block)))

    def _checked(self, name: str) -> Path:
        path = self._directory / name
        if not path.is_file() or file_sha256(path) != self._manifest["files"].get(name):
            state = "has changed" if path.is_file() else "is missing"
            raise AwpError(f"{path} {state}; delete {self._directory} and calibrate again")
        return path

    def advance(self, block: int, weights: Weights) -> None:
        """Do nothing: the statistics of every block are there already."""


class SavingStatistics:
    """Pass on a dense stream's statistics and save them in a folder, the manifest after the last block.

    What a stopped run has left in the folder stays where it is of this model and calibration; else it is deleted.
    """

    def __init__(
        self, stream: DenseStream, folder: ModelFolder, directory: Path, *, skip: Sequence[str] = ()
    ) -> None:
        self._stream, self._folder, self._directory = stream, folder, Path(directory)
        self.n_blocks, self.calibration = stream.n_blocks, stream.calibration
        names = [info.name for block in range(self.n_blocks) for info in stream.linears(block)]
        self._names, self._skipped = names, skipped_names(names, skip)
        with writing(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        # Held until the set is complete: of two calibrations at once the second would replace the first one's blocks.
        self._ownership = ExitStack()
        self._ownership.enter_context(sole_owner(self._directory))
        with writing(self._directory):
            self._claim()

    def linears(self, block: int) -> Sequence[LinearInfo]:
        """List the linears of a block that are not skipped."""
        return tuple(info for info in self._stream.linears(block) if info.name not in self._skipped)

    def weight(self, name: str) -> NDArray[np.float32]:
        """Read a linear's weight, (d_out, d_in) float32."""
        return self._stream.weight(name)

    def statistics(self, block: int) -> Mapping[str, Gram]:
        """Compute, save and return the Gram matrices of a block.

        Raises: AwpError where the files of blocks before it are missing: their inputs are gone.
        """
        self._require_blocks(block)
        grams = self._stream.statistics(block)
        matrices = {name: gram.matrix for name, gram in grams.items()}
        write_tensors(self._directory / block_name(block), matrices)
        if self._stream.has_sensitivity:  # at hand, and a later run may allocate by it
            self.sensitivity(block)
        return grams

    def sensitivity(self, block: int) -> Sensitivity:
        """Compute, save and return a block's sensitivity."""
        found = self._stream.sensitivity(block)
        write_sensitivity(self._directory / sensitivity_name(block), found)
        return found

    def advance(self, block: int, weights: Weights) -> None:
        """Go on to the next block; after the last one the set is complete."""
        self._stream.advance(block, weights)
        if block + 1 == self.n_blocks:
            self._complete()

    def _claim(self) -> None:
        mark = self._directory / UNFINISHED_FILE
        of = {"model_hash": self._folder.hash(), "calibration": dict(self.calibration)}
        if mark.is_file() and read_json(mark) == of:
            return
        for path in _files(self._directory):
            path.unlink()
        write_json(mark, of)

    def _require_blocks(self, until: int) -> None:
        paths = (self._directory / block_name(block) for block in range(until))
        missing = next((path.name for path in paths if not path.is_file()), None)
        if missing is not None:
            raise AwpError(
                f"{self._directory} lacks {missing}, which a resumed run cannot make any more; "
                "go on without --statistics, or start again"
            )

    def _complete(self) -> None:
        self._require_blocks(self.n_blocks)
        linears = [[_entry(info) for info in self._stream.linears(block)] for block in range(self.n_blocks)]
        names = [block_name(block) for block in range(self.n_blocks)]
        felt = [sensitivity_name(block) for block in range(self.n_blocks)]
        if all((self._directory / name).is_file() for name in felt):
            names += felt
        manifest = {
            "schema_version": SCHEMA_VERSION, "kind": KIND, "model_hash": self._folder.hash(),
            "calibration": dict(self.calibration), "n_tokens": self._stream.n_tokens, "linears": linears,
            "transposed": [name for name in self._names if self._stream.is_transposed(name)],
            "files": {name: file_sha256(self._directory / name) for name in names},
        }  # fmt: skip
        write_json(self._directory / MANIFEST_FILE, manifest)
        (self._directory / UNFINISHED_FILE).unlink(missing_ok=True)
        self._ownership.close()


def block_name(block: int) -> str:
    """Return the file of a block's statistics."""
    return f"block-{block:03d}.safetensors"


def sensitivity_name(block: int) -> str:
    """Return the file of a block's sensitivity."""
    return f"sensitivity-{block:03d}.safetensors"


def _files(directory: Path) -> list[Path]:
    return sorted([*directory.glob("block-*.safetensors"), *directory.glob("sensitivity-*.safetensors")])


def write_sensitivity(path: Path, found: Sensitivity) -> None:
    """Write a block's sensitivity: tensors gram/INPUT, rows/LINEAR and tokens/INPUT."""
    parts = {"gram": found.gram, "rows": found.rows, "tokens": found.tokens}
    write_tensors(path, {f"{part}/{name}": array for part, of in parts.items() for name, array in of.items()})


def read_sensitivity(path: Path) -> Sensitivity:
    """Read what `write_sensitivity` wrote."""
    file = TensorFile(path)
    parts: dict[str, dict[str, NDArray[np.float32]]] = {"gram": {}, "rows": {}, "tokens": {}}
    for key in file.names():
        part, _, name = key.partition("/")
        parts[part][name] = file.tensor(key)
    return Sensitivity(**parts)


def _entry(info: LinearInfo) -> dict[str, Any]:
    return {"name": info.name, "input": info.input, "shape": list(info.shape)}


def _info(entry: Mapping[str, Any]) -> LinearInfo:
    rows, columns = entry["shape"]
    return LinearInfo(entry["name"], entry["input"], (rows, columns))


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST_FILE
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise AwpError(f"{path} does not describe statistics; give a folder that --statistics made")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise AwpError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; calibrate again"
        )
    return manifest


def _require_equal(directory: Path, what: str, *, saved: Any, asked: Any) -> None:
    if saved != asked:
        raise AwpError(
            f"{directory} was made with {what} {saved}, not {asked}; give another --statistics folder"
        )
