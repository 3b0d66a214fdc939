"""Iterations over the layer problem."""

from .base import Encoding, Result, Run, State, Stop
from .pgd import Pgd, pgd

__all__ = ["Encoding", "Pgd", "Result", "Run", "State", "Stop", "pgd"]
