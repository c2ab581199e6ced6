"""Will it port? A score before any label is seen and before anything is trained."""

from peftport.predicting.features import FEATURES, NEED_TEXTS, measure
from peftport.predicting.model import Calibration, Prediction, fit
from peftport.predicting.run import Predicted, predict, predict_prepared, shipped_calibration

__all__ = [
    "FEATURES",
    "NEED_TEXTS",
    "Calibration",
    "Predicted",
    "Prediction",
    "fit",
    "measure",
    "predict",
    "predict_prepared",
    "shipped_calibration",
]
