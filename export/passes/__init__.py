"""Small graph rewrites, one a file; each takes finished weights and touches nothing but its own nodes."""

from .factor import FactorMatMuls
from .pack import PackMatMuls
from .sparse import SparseMatMuls
from .tie import TieEmbedding

__all__ = ["FactorMatMuls", "PackMatMuls", "SparseMatMuls", "TieEmbedding"]
