"""Published methods as pure functions of (problem, constraint)."""

from .asvd import asvd
from .magnitude import magnitude
from .rtn import rtn
from .wanda import wanda

__all__ = ["asvd", "magnitude", "rtn", "wanda"]
