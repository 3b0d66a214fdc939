"""Sets a compressed weight may lie in, each with its exact projection."""

from .base import Constraint, Mask, Shape, Support, Traits, top_k
from .low_rank import LowRank
from .sparse import Sparse, gain
from .supports import NM, BalancedBlock, BlockSparse, Dense, RowSparse, interleaved
from .values import BITS, BoundGrid, IntGrid, Reals, Values

__all__ = [
    "BITS",
    "NM",
    "BalancedBlock",
    "BlockSparse",
    "BoundGrid",
    "Constraint",
    "Dense",
    "IntGrid",
    "LowRank",
    "Mask",
    "Reals",
    "RowSparse",
    "Shape",
    "Sparse",
    "Support",
    "Traits",
    "Values",
    "gain",
    "interleaved",
    "top_k",
]
