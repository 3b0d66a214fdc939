"""Calibration: the only place that imports torch and transformers, and it does so no sooner than a model has to run."""

from .request import CalibrationRequest, context_length, open_statistics
from .saved import SavedStatistics, SavingStatistics, has_statistics

__all__ = [
    "CalibrationRequest",
    "SavedStatistics",
    "SavingStatistics",
    "context_length",
    "has_statistics",
    "open_statistics",
]
