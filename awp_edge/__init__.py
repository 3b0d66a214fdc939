"""Compress language models on a CPU and run them on the edge.

Activation-aware weight pruning and quantization by projected gradient descent (AWP, arXiv 2506.10205): a NumPy
reference one can read, a native twin, a streaming calibration and an ONNX exporter.
"""

from .constraints import NM, BalancedBlock, BlockSparse, Dense, IntGrid, LowRank, Reals, RowSparse, Sparse
from .methods import METHODS, CompressSpec, compress_layer
from .problem import Problem
from .solvers import Result, Stop, pgd
from .solvers.solve import solve

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "NM",
    "BalancedBlock",
    "BlockSparse",
    "CompressSpec",
    "Dense",
    "IntGrid",
    "LowRank",
    "Problem",
    "Reals",
    "Result",
    "RowSparse",
    "Sparse",
    "Stop",
    "compress_layer",
    "pgd",
    "solve",
]
