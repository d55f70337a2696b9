"""Whether captions are right, and whether they single out their regions."""

from ureca.evaluation.metrics import measure_captions, score
from ureca.evaluation.predictions import Prediction

__all__ = ["Prediction", "measure_captions", "score"]
