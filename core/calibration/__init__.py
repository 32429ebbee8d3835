"""Honest uncertainty from a finished model and held-out samples: fitted once, saved with the model."""

from mambakit.core.calibration.adaptive import AdaptiveConformal
from mambakit.core.calibration.files import Calibrator, load_calibration, save_calibration
from mambakit.core.calibration.intervals import SplitConformal
from mambakit.core.calibration.ranks import conformal_quantile, samples_needed
from mambakit.core.calibration.sets import ConformalSets
from mambakit.core.calibration.temperature import TemperatureScaling

__all__ = [
    "AdaptiveConformal",
    "Calibrator",
    "ConformalSets",
    "SplitConformal",
    "TemperatureScaling",
    "conformal_quantile",
    "load_calibration",
    "samples_needed",
    "save_calibration",
]
