"""The operator library: where it is, and its kernels called without a runtime (checks, parity tests, measurements)."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AwpError
from .sparse_packing import SparseLinear

LIBRARY = "libawp_edge_ops.so"  # on macOS too: CMake calls a loadable module so, and folders name it
Floats = NDArray[np.float32]

_SIZES = (
    ("rows", ctypes.c_int64),
    ("inputs", ctypes.c_int64),
    ("group", ctypes.c_int64),
    ("kept", ctypes.c_int64),
)
_PARTS = ("masks", "codes", "scales", "zeros", "offsets")


class _Packed(ctypes.Structure):
    """Mirror awp::kernels::Packed."""

    _fields_ = (
        *_SIZES,
        *(field for part in _PARTS for field in ((part, ctypes.c_void_p), (f"n_{part}", ctypes.c_size_t))),
        ("gated", ctypes.c_int64),
    )


def library_path() -> Path | None:
    """Return the operator library that was installed with this package, or None where there was no compiler."""
    path = Path(__file__).resolve().parent.parent / LIBRARY
    return path if path.is_file() else None


def require_library() -> Path:
    """Return the operator library. Raises: AwpError where it was not built."""
    path = library_path()
    if path is None:
        raise AwpError(
            "sparse weights need the operator library, which was not built: install a C++ compiler and reinstall, "
            "or use --weights dense"
        )
    return path


@cache
def _library() -> Any:
    library = ctypes.CDLL(str(require_library()))
    size = getattr(library, "awp_edge_packed_size", None)
    if size is None or size() != ctypes.sizeof(_Packed):
        raise AwpError(
            "the operator library is of another version than this package: install the package again"
        )
    for name in ("version", "isa", "check", "multiply"):
        getattr(library, f"awp_edge_{name}").restype = ctypes.c_char_p
    library.awp_edge_read.restype = ctypes.c_uint64
    library.awp_edge_expanded_bytes.restype = ctypes.c_size_t
    return library


def version() -> str:
    """Return what the library says of itself, "awp-edge VERSION, format F"."""
    return str(_library().awp_edge_version().decode())


def kernels(isa: str = "") -> str | None:
    """Return the kernels that a name of AWP_ISA stands for, by default those that AWP_ISA itself asks for, or the best.

    None where this machine lacks them.
    """
    name = _library().awp_edge_isa(isa.encode())
    return None if name is None else str(name.decode())


def check(packed: SparseLinear, *, gated: bool = False) -> str | None:
    """Return what the operator would refuse in a packed layer, or None."""
    wrong = _library().awp_edge_check(ctypes.byref(_describe(packed, gated=gated)))
    return None if wrong is None else str(wrong.decode())


def multiply(packed: SparseLinear, x: Floats, *, accuracy_level: int = 4, isa: str = "", repeats: int = 1,
             gated: bool = False, expand: bool = False) -> Floats:  # fmt: skip
    """Return x W^T on the calling thread, (rows, N) float32; the interpreter lock is released.

    Args:
        packed: the weight, (N, K).
        x: (rows, K) float32.
        accuracy_level: 4 for int8 inputs, 0 for float32.
        isa: a name of AWP_ISA; by default what AWP_ISA asks for, or the best.
        repeats: how often to do it, for measurements.
        expand: expand the weight first where the operator may do so for single tokens, see `expanded_bytes`.
        gated: the rows are those of a gate G and of as many others U: silu(x G^T) (x U^T), (rows, N / 2).

    Raises:
        ValueError: shapes that clash, or what the operator refuses.
    """
    if x.ndim != 2 or x.shape[1] != packed.shape[1]:
        raise ValueError(f"inputs of shape {x.shape} do not fit a {packed.shape} weight")
    inputs = np.ascontiguousarray(x, dtype=np.float32)
    out = np.empty((len(inputs), packed.shape[0] // (2 if gated else 1)), dtype=np.float32)
    wrong = _library().awp_edge_multiply(
        ctypes.byref(_describe(packed, gated=gated)), isa.encode(), _pointer(inputs), ctypes.c_size_t(len(inputs)),
        int(packed.interleaved), accuracy_level, _pointer(out), ctypes.c_size_t(repeats), int(expand),
    )  # fmt: skip
    if wrong is not None:
        raise ValueError(wrong.decode())
    return out


def expanded_bytes(packed: SparseLinear, isa: str = "") -> int:
    """Return the bytes of the copy that the operator makes of a weight: four bits for every input, for single tokens.

    It keeps the copy where that turns out to be faster. 0 where the kernels expand fast enough as they go, and where
    AWP_EXPAND=0 forbids it. At accuracy level 4 only.
    """
    return int(_library().awp_edge_expanded_bytes(ctypes.byref(_describe(packed, gated=False)), isa.encode()))


def expands(packed: SparseLinear, isa: str = "", *, gated: bool = False) -> bool | None:
    """Return whether this process's operators use that copy for weights of this shape; None until it is decided."""
    found = int(_library().awp_edge_expands(ctypes.byref(_describe(packed, gated=gated)), isa.encode()))
    return None if found < 0 else bool(found)


def read(data: NDArray[np.uint64]) -> int:
    """Read a buffer once and return the sum of its words: the speed of memory, when timed."""
    return int(_library().awp_edge_read(_pointer(data), ctypes.c_size_t(data.size)))


def _describe(packed: SparseLinear, *, gated: bool) -> _Packed:
    described = _Packed(*packed.shape, packed.block_size, packed.kept, gated=int(gated))
    for name in _PARTS:
        part = getattr(packed, name)
        if part is not None:
            setattr(described, name, part.ctypes.data)
            setattr(described, f"n_{name}", part.size)
    return described


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
