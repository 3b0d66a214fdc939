"""Published methods as pure functions of (problem, constraint)."""

from .alps import Alps, alps
from .asvd import asvd
from .awq import Awq, Scaled, awq
from .gptq import Gptq, gptq
from .magnitude import magnitude
from .rtn import rtn
from .sparsegpt import sparsegpt
from .svd import svd
from .wanda import wanda, wanda_mask

__all__ = [
    "Alps",
    "Awq",
    "Gptq",
    "Scaled",
    "alps",
    "asvd",
    "awq",
    "gptq",
    "magnitude",
    "rtn",
    "sparsegpt",
    "svd",
    "wanda",
    "wanda_mask",
]
