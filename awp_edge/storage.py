"""Files on disk: atomic writes, JSON, SHA-256 and safetensors (8-byte length, JSON header, data)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import AwpError

#: What an unfinished compression keeps in OUT.partial.
STATE_FILE = "state.json"
CHUNK_BYTES = 1 << 22
_NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1", "F8_E4M3": "|u1", "F8_E5M2": "|u1",
}  # fmt: skip
_SAFETENSORS_NAMES = {
    np.dtype(v): k for k, v in _NUMPY_DTYPES.items() if k not in ("BF16", "F8_E4M3", "F8_E5M2")
}


@dataclass(frozen=True)
class StoredTensor:
    """Hold a tensor as its file does: the safetensors dtype name and the bits (bfloat16 as uint16)."""

    dtype: str
    bits: NDArray[Any]

    @staticmethod
    def of(array: NDArray[Any]) -> StoredTensor:
        """Wrap a NumPy array under its own dtype."""
        return StoredTensor(_SAFETENSORS_NAMES[array.dtype.newbyteorder("<")], np.ascontiguousarray(array))

    def widened(self) -> NDArray[Any]:
        """Return float32 for 16-bit and 32-bit floats, other dtypes as stored.

        Raises: AwpError for 8-bit floats, which carry a scale that this package does not read.
        """
        if self.dtype == "BF16":
            return (self.bits.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "F16":
            return self.bits.astype(np.float32)
        if self.dtype.startswith("F8"):
            raise AwpError(
                f"dtype {self.dtype} is not supported; save the model as bfloat16, float16 or float32"
            )
        return self.bits


class TensorFile:
    """Read one safetensors file: the header at once, each tensor when it is asked for.

    Raises: AwpError where the file is missing, unreadable, cut short or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, self._start = _read_header(path, file, size)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._entries: dict[str, Any] = header
        _check_entries(path, header, size - self._start)

    def names(self) -> list[str]:
        """List the tensors by name, sorted."""
        return sorted(self._entries)

    def dtype(self, name: str) -> str:
        """Return the safetensors dtype name, for example "BF16"."""
        return str(self._entry(name)["dtype"])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._entry(name)["shape"])

    def stored(self, name: str) -> StoredTensor:
        """Read one tensor without changing its bits."""
        entry = self._entry(name)
        begin, end = entry["data_offsets"]
        dtype = np.dtype(_NUMPY_DTYPES[entry["dtype"]])
        bits = np.empty((end - begin) // dtype.itemsize, dtype=dtype)
        with _reading(self.path), self.path.open("rb") as file:
            file.seek(self._start + begin)
            # Not np.fromfile: a Ctrl-C that meets its check of the file's type comes out as a TypeError.
            count = file.readinto(bits.data.cast("B")) if bits.size else 0
        if count != end - begin:
            raise AwpError(f"{self.path}: {name} has {count} of {end - begin} bytes; copy the file again")
        return StoredTensor(entry["dtype"], bits.reshape(entry["shape"]))

    def tensor(self, name: str) -> NDArray[Any]:
        """Read one tensor; 16-bit floats are widened to float32."""
        return self.stored(name).widened()

    def _entry(self, name: str) -> Any:
        if name not in self._entries:
            raise AwpError(f"{self.path}: no tensor named {name}; the file does not fit its config or index")
        return self._entries[name]


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 0 < length <= 100_000_000:
        raise AwpError(
            f"{path}: not a safetensors file ({size} bytes, header length {length}); copy the file again"
        )
    if 8 + length > size:
        raise AwpError(
            f"{path}: cut short: the header needs {8 + length} bytes and the file has {size}; copy it again"
        )
    try:
        header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError
    except ValueError:
        raise AwpError(
            f"{path}: not a safetensors file: its {length}-byte header is not JSON; copy it again"
        ) from None
    return header, 8 + length


def _check_entries(path: Path, entries: Mapping[str, Any], data_bytes: int) -> None:
    needed = 0
    for name, entry in entries.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            item = np.dtype(_NUMPY_DTYPES[dtype]).itemsize
            valid = 0 <= begin <= end and end - begin == item * int(np.prod(shape, dtype=np.int64))
        except (KeyError, TypeError, ValueError):
            valid = False
        if not valid:
            raise AwpError(
                f"{path}: the header's entry for {name} is damaged or of an unknown dtype; copy it again"
            )
        needed = max(needed, end)
    if needed > data_bytes:
        raise AwpError(
            f"{path}: cut short: its tensors need {needed} bytes and the file holds {data_bytes}; copy it again"
        )


def write_tensors(
    path: Path,
    tensors: Mapping[str, StoredTensor | NDArray[Any]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file atomically, tensors sorted by name: equal input gives equal bytes."""
    stored = {n: t if isinstance(t, StoredTensor) else StoredTensor.of(t) for n, t in tensors.items()}
    shapes = {name: (tensor.dtype, tensor.bits.shape) for name, tensor in stored.items()}
    write_tensor_stream(path, shapes, lambda name: stored[name], metadata=metadata)


def write_tensor_stream(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], read: Callable[[str], StoredTensor],
    *, metadata: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a safetensors file atomically with one tensor in memory at a time; `shapes` maps name to (dtype, shape)."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    # Widest items first keeps every tensor aligned, as the format's own writer does.
    order = sorted(shapes, key=lambda n: (-np.dtype(_NUMPY_DTYPES[shapes[n][0]]).itemsize, n))
    for name in order:
        dtype, shape = shapes[name]
        end = offset + np.dtype(_NUMPY_DTYPES[dtype]).itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensor = read(name)
            if (tensor.dtype, tensor.bits.shape) != shapes[name]:
                raise ValueError(f"{name}: announced {shapes[name]}, got {(tensor.dtype, tensor.bits.shape)}")
            file.write(np.ascontiguousarray(tensor.bits).reshape(-1).view(np.uint8).data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour for writing that becomes `path`, synced to disk, only when the block ends well."""
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def partial_of(out: Path) -> Path:
    """Return the folder in which OUT is built."""
    return out.with_name(out.name + ".partial")


def output_folder(out: str | Path) -> Path:
    """Return where OUT really is: a link's target, "." and ".." by their names."""
    return Path(os.path.realpath(out)) if os.path.islink(out) or Path(out).name in ("", "..") else Path(out)


def require_free(out: Path) -> None:
    """Raise AwpError where OUT cannot become a folder of ours: it is a mount point, or there and not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AwpError(f"{out} is not empty; choose another folder or empty it")
    if os.path.ismount(out):  # the finished folder takes OUT's place by a rename
        raise AwpError(f"{out} is a mount point; choose a folder inside it")


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """Give OUT.partial, empty and owned by this process; it becomes OUT where the block ends well, else it goes.

    What a killed run left there goes, but never the checkpoint of a compression.

    Raises: AwpError where OUT is taken, OUT.partial is a checkpoint or another process's, or neither can be written.
    """
    require_free(out)
    partial = partial_of(out)
    with writing(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with sole_owner(partial):
        if (partial / STATE_FILE).exists():
            raise AwpError(
                f"{partial} holds an unfinished compression; finish it with awp-edge compress --resume, "
                "choose another output folder or delete it"
            )
        try:
            with writing(partial):
                empty_folder(partial)
            yield partial
            with writing(out):
                if out.exists():
                    out.rmdir()
                partial.replace(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def empty_folder(folder: Path) -> None:
    """Delete everything in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically with sorted keys: equal values give equal bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises: AwpError where it is missing, unreadable or not JSON."""
    with _reading(path):
        text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError:
        raise AwpError(
            f"{path}: not valid JSON ({len(text)} bytes); restore the file or make the folder again"
        ) from None


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with _reading(path), path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into one line. Raises: AwpError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise AwpError(f"no space left for {path.name} in {path.parent}; free some space") from None
        raise AwpError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AwpError(f"cannot read {path}: {error.strerror or error}") from None


@contextmanager
def sole_owner(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an advisory lock on a folder, which may be renamed meanwhile. No lock where the file system has none.

    Raises: AwpError where another owner has it and `wait` is false.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise AwpError(
                f"another process is working in {folder}; wait for it or choose another folder"
            ) from None
        except OSError:  # NFS locks what is open for writing, which a folder never is
            pass
        yield
    finally:
        os.close(descriptor)
